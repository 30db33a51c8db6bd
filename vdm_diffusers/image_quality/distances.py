"""FID and KID, by torchmetrics, between features of images by Inception or another network."""

import hashlib
import math
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

from ..guards.loading import refused_as
from ..guards.messages import Message


def distances(
    real: Iterator[Tensor],
    generated: Iterator[Tensor],
    extractor: nn.Module,
    shape: Sequence[int],
    kid_subset_size: int,
    kid_subsets: int,
    device: str,
) -> dict[str, float]:
    """FID, KID and KID's standard deviation over its subsets, of batches `(B, 3, H, W)` of uint8.

    Raises `ValueError` for generated images of another size, and for features that are not finite.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.kid import KernelInceptionDistance
    from torchmetrics.wrappers import FeatureShare

    fid = FrechetInceptionDistance(extractor, input_img_size=(3, *shape[1:]))
    kid = KernelInceptionDistance(extractor, subsets=kid_subsets, subset_size=kid_subset_size)
    metrics = FeatureShare([fid, kid]).to(device)
    for images, are_real in ((real, True), (generated, False)):
        for batch in images:
            if tuple(batch.shape[2:]) != tuple(shape[1:]):
                raise ValueError(
                    f"The pipeline makes images of {batch.shape[2]}×{batch.shape[3]}, but those of the data are"
                    f" {shape[1]}×{shape[2]}: compare it with data of its size."
                )
            metrics.update(batch.to(device), real=are_real)
    figures = metrics.compute()
    mean, deviation = figures["KernelInceptionDistance"]
    figures = {
        "fid": figures["FrechetInceptionDistance"].item(),
        "kid": mean.item(),
        "kid_standard_deviation": deviation.item(),
    }
    if not all(map(math.isfinite, figures.values())):
        raise ValueError("The distances are not finite: the extractor's features are NaN or infinite for some images.")
    return figures


def inception(weights_path: Path | None) -> nn.Module:
    """Inception as FID is defined by, with 2048 features; its weights are given, or downloaded and compared with their hash.

    torch-fidelity would unpickle whatever a file holds, so that it gets a copy of what was loaded as weights alone.
    """
    if find_spec("torch_fidelity") is None or find_spec("torchvision") is None:
        raise ValueError("Inception needs torch-fidelity and torchvision: `pip install 'vdm-diffusers[fid]'` installs them.")
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3
    from torchmetrics.image.fid import NoTrainInceptionV3

    what = Message("{extractor_weights_path} {!r}", str(weights_path))
    what = "Inception could not be downloaded" if weights_path is None else what
    with refused_as(what), TemporaryDirectory() as folder:
        if weights_path is None:
            weights = torch.hub.load_state_dict_from_url(URL_INCEPTION_V3, check_hash=True, weights_only=True)
        else:
            weights = torch.load(weights_path, "cpu", weights_only=True)
        copy = Path(folder, "weights.pth")
        torch.save(weights, copy)
        return NoTrainInceptionV3("inception-v3-compat", ["2048"], str(copy))


def digest(extractor: nn.Module) -> str:
    """SHA-256 of the names and values of all weights."""
    total = hashlib.sha256()
    for name, tensor in sorted(extractor.state_dict().items()):
        total.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return total.hexdigest()
