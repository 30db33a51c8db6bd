"""Data of one and of three dimensions: trained, sampled and evaluated by the commands, each by a denoiser of its own kind."""

import json

import datasets
import diffusers
import numpy as np
import pytest
import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from vdm_diffusers import VDMPipeline, evaluate


class UNet3DModel(ModelMixin, ConfigMixin):
    """A denoiser of volumes, as diffusers might have it."""

    @register_to_config
    def __init__(self, sample_size: list[int], in_channels: int, out_channels: int, hidden_channels: int = 8):
        super().__init__()
        self.conv_in = nn.Conv3d(in_channels, hidden_channels, 3, padding=1)
        self.time_embedding = nn.Linear(1, hidden_channels)
        self.conv_out = nn.Conv3d(hidden_channels, out_channels, 3, padding=1)

    def forward(self, sample: Tensor, timestep: Tensor, return_dict: bool = True) -> tuple[Tensor]:
        time = self.time_embedding(timestep.to(sample.dtype).reshape(-1, 1) / 1000)
        return (self.conv_out(torch.tanh(self.conv_in(sample) + time[..., None, None, None])),)


SEQUENCES = {
    "_class_name": "UNet1DModel", "use_timestep_embedding": True, "time_embedding_type": "positional", "act_fn": "silu",
    "block_out_channels": [8, 16], "down_block_types": ["DownResnetBlock1D"] * 2, "mid_block_type": "MidResTemporalBlock1D",
    "up_block_types": ["UpResnetBlock1D"] * 2, "out_block_type": "OutConv1DBlock", "norm_num_groups": 4,
}  # fmt: skip
KINDS = {
    "sequences": (datasets.List(datasets.Value("uint8")), (16,), SEQUENCES),
    "volumes": (datasets.Array4D((4, 4, 4, 2), "uint8"), (4, 4, 4, 2), {"_class_name": "UNet3DModel"}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_commands_know_no_images(train, monkeypatch, tmp_path, capsys, kind):
    monkeypatch.setattr(UNet3DModel, "__module__", "diffusers")
    monkeypatch.setattr(diffusers, "UNet3DModel", UNet3DModel, raising=False)
    feature, shape, config = KINDS[kind]
    for split, number in (("train", 16), ("validation", 4)):
        rows = np.random.default_rng(number).integers(0, 256, (number, *shape), dtype=np.uint8)
        (tmp_path / "data").mkdir(exist_ok=True)
        rows = datasets.Dataset.from_dict({"x": list(rows)}, features=datasets.Features({"x": feature}))
        rows.to_parquet(tmp_path / "data" / f"{split}.parquet")
    (tmp_path / "model.json").write_text(json.dumps(config))
    data = {"train_data_dir": tmp_path / "data", "image_column": "x"}
    own = dict.fromkeys(("block_channels", "layers_per_side", "norm_num_groups"))
    train(model_config_name_or_path=tmp_path / "model.json", **data, **own)

    size, channels = (shape, 1) if kind == "sequences" else (shape[:-1], shape[-1])
    assert np.load(tmp_path / "out" / "samples.npy").shape == (3, *size, channels)
    report = (tmp_path / "out" / "report.html").read_text()
    assert "samples.npy" in report and report.count("<img") == 2  # the curve and the schedule
    pipeline = VDMPipeline.from_pretrained(tmp_path / "out")
    images = pipeline(2, num_inference_steps=2, output_type="pt").images
    assert images.shape == (2, channels, *size) and images.min() >= 0 and images.max() <= 1
    options = {"pretrained_model_name_or_path": tmp_path / "out", "output_path": tmp_path / "result.json", **data}
    evaluate.main([part for name, value in options.items() for part in (f"--{name}", str(value))])
    bits = json.loads((tmp_path / "result.json").read_text())["results"][0]["bits_per_dim"]
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["bits_per_dim"] == pytest.approx(bits, rel=0.5)
