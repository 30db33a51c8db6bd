"""What must be the same where a file is written and where it is read: the weights, the variances, and the arithmetic."""

import hashlib
import textwrap
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from ..error_profiles import ErrorProfile
from ..guards.messages import Message
from ..precision import compute_dtype
from ..vdm import VDM
from .container import MAX_REASON, Header


LIBRARIES = ("torch", "diffusers", "transformers", "numpy", "constriction")
"""Whose versions may change a last digit, by which a file becomes unreadable."""

PARTS = {
    "weights": "another model, or other weights of it,",
    "num_levels": "another number of levels",
    "variances": "other variances of the steps",
}
"""Of a header, which must be those of the pipeline."""


def digest_of_weights(vdm: VDM) -> str:
    """A hash of the denoiser, of what its outputs mean, and of text encoders, 32 hexadecimal digits."""
    meaning = (type(vdm.unet).__name__, vdm.prediction_type, sorted(vdm.timestep_map.config.items()), vdm.num_levels)
    encoders = [] if vdm.prompt_encoder is None else [encoder for _, encoder in vdm.prompt_encoder.parts]
    return _digest(repr(meaning), *(module.state_dict() for module in (vdm.unet, *encoders)))


def digest_of_variances(error_profile: ErrorProfile | None) -> str | None:
    """A hash of what optimal variances are computed from, 32 hexadecimal digits; `None` for q's variances."""
    return None if error_profile is None else _digest(error_profile.basis, dict(error_profile.named_buffers()))


def _digest(text: str, *states: dict[str, Tensor]) -> str:
    digest = hashlib.sha256(text.encode())
    for name, tensor in (item for state in states for item in sorted(state.items())):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:32]


def arithmetic_of(vdm: VDM) -> dict[str, Any]:
    """By what the denoiser's outputs are computed."""
    device = vdm.noise_schedule.device
    kind = torch.cuda.get_device_name(device) if device.type == "cuda" else torch.backends.cpu.get_cpu_capability()
    computed = {"device": f"{device.type}, {kind}", "dtype": str(compute_dtype(vdm.unet)).removeprefix("torch.")}
    return computed | {library: version(library) for library in LIBRARIES}


def check_same(written: Header, own: Header, force: bool) -> None:
    """Raise `ValueError`, saying what differs, unless a file was written with this model and, but for `force`, arithmetic."""
    for name, what in PARTS.items():
        if getattr(written, name) != getattr(own, name):
            raise ValueError(
                f"The file was written with {what} than this pipeline has ({getattr(written, name)}, here"
                f" {getattr(own, name)}): load the pipeline that it was compressed with."
            )
    other = [
        f"{name} {written.arithmetic.get(name)} (here {own.arithmetic.get(name)})"
        for name in sorted(written.arithmetic.keys() | own.arithmetic.keys())
        if written.arithmetic.get(name) != own.arithmetic.get(name)
    ]
    if other and not force:
        text = (
            "The file was written with {}, where the last digits of the denoiser's outputs may be others: decompress it there,"
            " or try it here by {force}, which checks every image."
        )
        raise ValueError(Message(text, textwrap.shorten(", ".join(other), MAX_REASON, placeholder=" …")))
