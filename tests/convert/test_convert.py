"""Checkpoints of the authors: number for number what their code computes, bit for bit back, and no harm from bad files.

`pytest tests/convert/test_convert.py -k authors -s` prints how far both codes are apart.
"""

import json
import math
import random
import re
import struct
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler
from paths import ROOT
from torch import Tensor, nn

from vdm_diffusers import VDM, LearnedMonotoneSchedule, LinearSchedule, VDMPipeline, VDMUNet2DModel, scheduling_vdm
from vdm_diffusers.convert import (
    OfficialConfig,
    build_official_vdm,
    convert_official_checkpoint,
    export_official_checkpoint,
    load_official_checkpoint,
    official_views,
    read_config,
)
from vdm_diffusers.convert.__main__ import main
from vdm_diffusers.convert.flax_state import CHUNKED
from vdm_diffusers.data import load_images
from vdm_diffusers.likelihood import variational_bound
from vdm_diffusers.units import LOG_2
from vdm_diffusers.vdm import stratified_times


TRAVELLING = Path(__file__).parent / "official_vdm"
SHARED = ROOT.parent / "shared" / "official_vdm"
VECTORS = {path.stem: path for folder in (SHARED, TRAVELLING) for path in sorted(folder.glob("*.npz"))}
TOLERANCE = 2e-4

FIXED = (TRAVELLING / "fixed_continuous.msgpack").read_bytes()
"""A good file to be broken."""


class Vectors:
    """What the authors' code computed, channels first and in some dtype, and the model that it was computed with."""

    def __init__(self, path: Path, dtype: torch.dtype):
        self.dtype, self.arrays = dtype, dict(np.load(path))
        self.config = OfficialConfig(**json.loads(self.arrays["config"].item()), resolution=16)
        self.checkpoint = path.with_suffix(".msgpack")
        self.vdm = load_official_checkpoint(self.checkpoint, self.config)[0].to(dtype)

    def __getitem__(self, key: str) -> Tensor:
        value = torch.from_numpy(self.arrays[key])
        value = value.permute(0, 3, 1, 2) if value.ndim == 4 else value
        return value.to(self.dtype) if value.is_floating_point() else value


class Conditioned(nn.Module):
    """A denoiser that is always told the same."""

    def __init__(self, unet: VDMUNet2DModel, conditioning: Tensor):
        super().__init__()
        self.unet, self.conditioning = unet, conditioning[:, None]

    def forward(self, sample: Tensor, timestep: Tensor, **kwargs) -> tuple[Tensor]:
        return self.unet(sample, timestep, conditioning=self.conditioning, **kwargs)


@pytest.fixture(params=VECTORS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=[torch.float32, torch.float64], ids=["float32", "float64"])
def vectors(request: pytest.FixtureRequest, name: str) -> Vectors:
    return Vectors(VECTORS[name], request.param)


def relative_difference(actual: Tensor, expected: Tensor) -> float:
    """The largest difference, relative to the largest value of its row."""
    actual, expected = actual.flatten(1).double(), expected.flatten(1).double()
    return ((actual - expected).abs().amax(1) / expected.abs().amax(1)).max().item()


def check(request: pytest.FixtureRequest, **pairs: tuple[Tensor, Tensor]) -> None:
    for name, (actual, expected) in pairs.items():
        difference = relative_difference(actual, expected)
        print(f"\n{request.node.callspec.id:55} {name:15} {difference:.1e}", end="")
        assert difference < TOLERANCE, name


@torch.no_grad()
def test_schedule_is_the_authors(vectors, request):
    gamma = vectors.vdm.noise_schedule(torch.linspace(0, 1, 5, dtype=vectors.dtype))
    check(request, gamma=(gamma[:, None], vectors["gamma"][:, None]))


@torch.no_grad()
def test_loss_terms_are_the_authors(vectors, request):
    vdm = vectors.vdm
    vdm.unet = Conditioned(vdm.unet, vectors["conditioning"])
    times = stratified_times(torch.from_numpy(vectors.arrays["t0"]), 4).to(vectors.dtype)
    loss = vdm(vectors["images"], times=times, noise=torch.stack([vectors["eps0"], vectors["eps"]]))
    terms = {"loss_klz": loss.prior, "loss_recon": loss.reconstruction, "loss_diff": loss.diffusion}
    check(request, **{name: (term[:, None], vectors[name][:, None]) for name, term in terms.items()})


@torch.no_grad()
def test_ancestral_step_is_the_authors(vectors, request, monkeypatch):
    monkeypatch.setattr(scheduling_vdm, "randn_tensor", lambda *args, **kwargs: vectors["eps_s"])
    scheduler = vectors.vdm.to_scheduler()
    scheduler.set_timesteps(vectors["T"].item())
    timestep, z_t = scheduler.timesteps[vectors["i"]], vectors["z_t"]
    output = Conditioned(vectors.vdm.unet, vectors["conditioning"])(z_t, timestep, return_dict=False)[0]
    check(request, z_s=(scheduler.step(output, timestep, z_t).prev_sample, vectors["z_s"]))


@torch.no_grad()
def test_decoding_is_exactly_the_authors(vectors):
    images = vectors.vdm.to_pipeline()._decode(vectors["z0"], "pt")
    assert torch.equal((images * 255).round().long(), vectors["x"].long())


def test_folder_loads_trains_and_samples(name, tmp_path, monkeypatch):
    vectors = Vectors(VECTORS[name], torch.float32)
    convert_official_checkpoint(vectors.checkpoint, vectors.config, tmp_path / "out")
    vdm = VDM.from_pretrained(tmp_path / "out", num_timesteps=vectors.config.sm_n_timesteps or None)
    times, noise = stratified_times(vectors["t0"], 4), torch.stack([vectors["eps0"], vectors["eps"]])
    losses = [model(vectors["images"], times=times, noise=noise).nats for model in (vdm.eval(), vectors.vdm)]
    torch.testing.assert_close(losses[0], losses[1], rtol=0, atol=0)
    losses[0].sum().backward()
    assert all(parameter.grad.isfinite().all() and parameter.grad.any() for parameter in vdm.parameters() if parameter.ndim)
    pipe = VDMPipeline.from_pretrained(tmp_path / "out")
    pipe.set_progress_bar_config(disable=True)
    assert pipe(batch_size=2, num_inference_steps=2, output_type="np").images.shape == (2, 16, 16, 3)
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    assert np.isfinite(pipe(batch_size=2, num_inference_steps=2, output_type="np").images).all()
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"| {vectors.config.gamma_type}, gamma from" in card and "| training steps | 7 |" in card
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall("^```python\n(.*?)^```$", card, re.DOTALL | re.MULTILINE)
    exec(compile(block.replace("batch_size=16", "batch_size=2").replace("steps=250", "steps=2"), "README.md", "exec"), {})


def test_converted_model_is_evaluated_and_trained_on(train, tmp_path):
    vectors = Vectors(TRAVELLING / "fixed_continuous.npz", torch.float32)
    convert_official_checkpoint(vectors.checkpoint, vectors.config, tmp_path / "official")
    for split in ("train", "test"):
        (tmp_path / "data" / split).mkdir(parents=True)
        for i, image in enumerate(vectors.arrays["images"]):
            PIL.Image.fromarray(image).save(tmp_path / "data" / split / f"{i}.png")
    options = {"train_data_dir": tmp_path / "data", "cache_dir": tmp_path / "cache", "train_batch_size": 4}
    train(pretrained_model_name_or_path=tmp_path / "official", learning_rate=1e-4, max_train_steps=2, **options)
    before, after = (VDM.from_pretrained(tmp_path / name) for name in ("official", "out"))
    assert not torch.equal(before.unet.conv_in.weight, after.unet.conv_in.weight)
    bound = variational_bound(before, load_images(train_data_dir=str(tmp_path / "data")).validation)
    assert bound.prior == pytest.approx(vectors["loss_klz"].mean().item() / (3 * 16 * 16 * LOG_2), rel=TOLERANCE)


def test_round_trip_keeps_every_byte_of_the_file(name, tmp_path):
    config = Vectors(VECTORS[name], torch.float32).config
    source = VECTORS[name].with_suffix(".msgpack")
    convert_official_checkpoint(source, config, tmp_path / "out")
    vdm = VDM.from_pretrained(tmp_path / "out", num_timesteps=config.sm_n_timesteps or None)
    assert export_official_checkpoint(vdm, tmp_path / "back", step=7) == config
    assert (tmp_path / "back").read_bytes() == source.read_bytes()


def random_vdm(config: OfficialConfig) -> VDM:
    vdm = build_official_vdm(config)
    vdm.unet.to_empty(device="cpu")
    for parameter in vdm.parameters():
        nn.init.normal_(parameter, std=0.1)
    return vdm


@pytest.mark.parametrize("gamma_type", ["learnable_scalar", "learnable_nnet"])
def test_round_trip_of_weights_and_their_average(gamma_type, tmp_path):
    config = OfficialConfig(sm_n_embd=32, sm_n_layer=1, with_fourier_features=False, gamma_type=gamma_type)
    vdm, ema_vdm = random_vdm(config), random_vdm(config)
    export_official_checkpoint(vdm, tmp_path / "state", ema_vdm, step=10_000_000)
    loaded = {weights: load_official_checkpoint(tmp_path / "state", config, weights) for weights in ("params", "ema")}
    for weights, expected in (("params", vdm), ("ema", ema_vdm)):
        assert loaded[weights][1] == 10_000_000
        for actual, parameter in zip(loaded[weights][0].parameters(), expected.parameters()):
            assert torch.equal(actual, parameter)


@pytest.mark.parametrize(
    "name, count",
    [
        ("cifar10", 30_578_181),
        ("cifar10_aug", 122_140_677),
        ("cifar10_aug_paper", 139_279_877),
        ("imagenet32", 122_137_605),
        ("imagenet64", 237_603_845),
    ],
)
def test_published_configurations_have_the_published_parameter_counts(name, count):
    vdm = build_official_vdm(read_config(name))
    assert sum(parameter.numel() for parameter in vdm.parameters()) == count
    assert sum(view.numel() for view in official_views(vdm).values()) == count


def config_of(name: str) -> OfficialConfig:
    return OfficialConfig(**json.loads(np.load(VECTORS[name])["config"].item()), resolution=16)


def text(value: str) -> bytes:
    return b"\xda" + struct.pack(">H", len(value)) + value.encode()


def array(shape: tuple[int, ...], dtype: str, content: bytes, code: int = 1) -> bytes:
    """An array as msgpack, every length in its longest form."""
    payload = b"\xdd" + struct.pack(">I", 3) + b"\xdd" + struct.pack(">I", len(shape))
    payload += b"".join(b"\xcf" + struct.pack(">Q", length) for length in shape)
    payload += text(dtype) + b"\xc6" + struct.pack(">I", len(content)) + content
    return b"\xc9" + struct.pack(">Ib", len(payload), code) + payload


BIAS = FIXED[FIXED.index(b"\xa4bias") + 5 :][:144]
"""The first array of the file, `params/score_model/GroupNorm_0/bias`, as it is stored: its last 128 bytes are its values."""


def chunked(*chunks: bytes) -> bytes:
    """`BIAS` in chunks; with ten or more of them, JAX has sorted their numbers as texts."""
    numbers = sorted(map(str, range(len(chunks))))
    content = b"".join(text(i) + array((len(chunks[int(i)]) // 4,), "float32", chunks[int(i)]) for i in numbers)
    head = b"\xdf" + struct.pack(">I", 3) + text(CHUNKED) + b"\xc3" + text("shape") + b"\x81" + text("0") + b"\x20"
    return head + text("chunks") + b"\xde" + struct.pack(">H", len(chunks)) + content


@pytest.mark.parametrize(
    "stored",
    [array((32,), "float32", BIAS[-128:]), chunked(*(BIAS[-128:][start : start + 8] for start in range(0, 128, 8)))],
    ids=["long lengths", "chunks"],
)
def test_array_is_read_in_other_forms(stored, tmp_path):
    (tmp_path / "state").write_bytes(FIXED.replace(BIAS, stored))
    config = config_of("fixed_continuous")
    expected = np.frombuffer(BIAS[-128:], np.float32)
    vdm, _ = load_official_checkpoint(tmp_path / "state", config, "params")
    assert np.array_equal(official_views(vdm)["score_model/GroupNorm_0/bias"], expected)


@pytest.mark.parametrize(
    "stored",
    [array((), "int32", b"\x07\0\0\0"), array((), "int32", b"\x07\0\0\0", 3), b"\xd3" + bytes(7) + b"\7"],
    ids=["array", "scalar", "int64"],
)
def test_step_is_read_in_other_forms_and_the_optimiser_is_passed_over(stored, tmp_path):
    optimiser = text("opt_state") + b"\x83" + text("0") + b"\x80" + text("1") + b"\xc0"
    optimiser += text("2") + array((2,), "float64", bytes(16)) + FIXED[1:].replace(b"\xa4step\x07", b"\xa4step" + stored, 1)
    (tmp_path / "state").write_bytes(b"\x84" + optimiser)
    assert load_official_checkpoint(tmp_path / "state", config_of("fixed_continuous"))[1] == 7


def test_newest_file_of_a_folder_is_read(tmp_path):
    for number in (9, 10):
        (tmp_path / f"ckpt-{number}.flax").write_bytes(FIXED.replace(b"\xa4step\x07", b"\xa4step" + bytes([number]), 1))
    assert load_official_checkpoint(tmp_path, config_of("fixed_continuous"))[1] == 10


NAN = struct.pack("<f", math.nan)
CONV_IN = b"\x94\x03\x03\x0f\x20\xa7float32"

BROKEN = {
    "no file": (None, "There is no checkpoint"),
    "empty": (b"", "The file claims 1 bytes or more, but the file has 0 left"),
    "text": (b"weights\n", "The file begins with int"),
    "pickle": (b"\x80\x05}\x94.", "goes on for 4 bytes"),
    "truncated array": (FIXED[:-100_000], "`ema_params/score_model/up.block_1/conv1/kernel` claims .* truncated or damaged"),
    "truncated name": (FIXED[:20], "`params` claims 11 bytes or more, but the file has 4 left"),
    "more after the end": (FIXED + b"\0", "goes on for 1 bytes"),
    "no step": (FIXED.replace(b"\xa4step\x07", b"\xa4step\xc0", 1), "`step`"),
    "no averages": (FIXED.replace(b"ema_params", b"EMA_params", 1), "`ema_params/score_model/GroupNorm_0/bias` is missing"),
    "missing name": (FIXED.replace(b"conv_in", b"conv_on", 1), "`params/score_model/conv_in/bias` is missing"),
    "unknown name": (
        FIXED.replace(b"\x83\xa4step", b"\x84\xa4evil\x07\xa4step", 1),
        "`evil` is in the checkpoint, but not in a model of this configuration",
    ),
    "name used twice": (FIXED.replace(b"\xa5scale", b"\xa4bias", 1), "`params/score_model/GroupNorm_0` has .* 'bias'"),
    "name that is a number": (FIXED.replace(b"\xa4bias", b"\x07", 1), "`params/score_model/GroupNorm_0` has .* 7"),
    "name that is no text": (FIXED.replace(b"\xa4bias", b"\xa4b\n\xff\0", 1), "`params/score_model/GroupNorm_0` has a text"),
    "shape of another model": (
        FIXED.replace(CONV_IN, CONV_IN.replace(b"\x0f\x20", b"\x20\x0f"), 1),
        r"`params/score_model/conv_in/kernel` has the shape \(3, 3, 32, 15\), but .* \(3, 3, 15, 32\)",
    ),
    "shape of terabytes": (
        FIXED.replace(BIAS, array((1 << 40,), "float32", BIAS[-128:]), 1),
        r"`params/score_model/GroupNorm_0/bias` has the shape \(1099511627776,\), but 128 bytes",
    ),
    "length beyond the file": (
        FIXED.replace(BIAS, b"\xc9\xff\xff\xff\xff" + BIAS[2:], 1),
        "`params/score_model/GroupNorm_0/bias` claims 4,294,967,295 bytes",
    ),
    "map beyond the file": (b"\xdf\xff\xff\xff\xff", "The file claims 4,294,967,295 bytes"),
    "list beyond the file": (b"\x81\xa1a\xdd\xff\xff\xff\xff", "`a` claims 4,294,967,295 bytes"),
    "very many values": (
        b"\x81\xa1a\xdd" + struct.pack(">I", 300_000) + bytes(300_000),
        r"`a\[\d+\]` is beyond 262,144 values",
    ),
    "very deep": (b"\x81\xa1a" + b"\x91" * 100_000, r"`a(\[0\])+` is beyond .* 32 levels"),
    "long text": (b"\x81\xda\x10\x00" + b"a" * 4096 + b"\xc0", "The file has a text of 4,096 bytes"),
    "extension that is no array": (
        FIXED.replace(BIAS, BIAS[:2] + b"\x05" + BIAS[3:], 1),
        "`params/score_model/GroupNorm_0/bias` is of the extension type 5",
    ),
    "extension too long": (
        FIXED.replace(BIAS, bytes([BIAS[0], BIAS[1] + 1]) + BIAS[2:], 1),
        "`params/score_model/GroupNorm_0/bias` does not fill",
    ),
    "array of objects": (
        FIXED.replace(BIAS, array((16,), "object", BIAS[-128:]), 1),
        "`params/score_model/GroupNorm_0/bias` is no array",
    ),
    "array of doubles": (
        FIXED.replace(BIAS, array((16,), "float64", BIAS[-128:]), 1),
        "`params/score_model/GroupNorm_0/bias` is float64, but must be an array of float32",
    ),
    "no array at all": (FIXED.replace(BIAS, b"\xa1a", 1), "`params/score_model/GroupNorm_0/bias` is str"),
    "complex number": (
        FIXED.replace(BIAS, b"\xc7\x13\x02\x92\xcb" + bytes(8) + b"\xcb" + bytes(8), 1),
        "`params/score_model/GroupNorm_0/bias` is complex",
    ),
    "chunks too few": (
        FIXED.replace(BIAS, chunked(BIAS[-64:]), 1),
        r"`params/.*/GroupNorm_0/bias` has the shape \(32,\), but 64",
    ),
    "no chunks": (FIXED.replace(BIAS, chunked(), 1), "`params/score_model/GroupNorm_0/bias` is no chunked array"),
    "byte that means nothing": (
        FIXED.replace(BIAS, b"\xc1", 1),
        "`params/score_model/GroupNorm_0/bias` begins with the byte 0xc1",
    ),
    "not a number": (FIXED[:-12] + NAN * 3, "`ema_params/score_model/up.block_1/nin_shortcut/kernel` has values .* not finite"),
}


@pytest.mark.parametrize("content, message", BROKEN.values(), ids=BROKEN.keys())
def test_bad_file_is_refused_in_one_sentence_and_nothing_is_written(content, message, tmp_path):
    if content is not None:
        (tmp_path / "state").write_bytes(content)
    before = list(tmp_path.iterdir())
    with pytest.raises(ValueError, match=message) as error:
        convert_official_checkpoint(tmp_path / "state", config_of("fixed_continuous"), tmp_path / "folder" / "out")
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    "change, key",
    [
        ({"with_attention": True}, "ema_params/score_model/down.attn_0/GroupNorm_0/bias"),
        ({"gamma_type": "learnable_nnet"}, "ema_params/gamma/l1/bias"),
        ({"sm_n_layer": 2}, "ema_params/score_model/down.block_1/GroupNorm_0/bias"),
        ({"sm_n_layer": 0}, "ema_params/score_model/down.block_0/GroupNorm_0/bias"),
        ({"sm_n_embd": 64}, "ema_params/score_model/dense0/kernel"),
        ({"with_fourier_features": False}, "ema_params/score_model/conv_in/kernel"),
    ],
)
def test_another_configuration_is_refused(change, key, tmp_path):
    values = json.loads(np.load(VECTORS["fixed_continuous"])["config"].item())
    (tmp_path / "config.json").write_text(json.dumps(values | change))
    with pytest.raises(ValueError, match=f"`{key}` .*: check `config`"):
        convert_official_checkpoint(TRAVELLING / "fixed_continuous.msgpack", str(tmp_path / "config.json"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"gamma_type": "cosine"}, "`gamma_type`"),
        ({"gamma_min": 6.0}, "`gamma_min`"),
        ({"sm_n_embd": 48}, "`sm_n_embd`"),
        ({"sm_n_layer": "32"}, "`sm_n_layer`"),
        ({"sm_n_layer": True}, "`sm_n_layer`"),
        ({"sm_n_timesteps": -1}, "`sm_n_timesteps`"),
        ({"depth": 3}, "missing or unknown: depth"),
        ({"sm_pdrop": None}, "`sm_pdrop`"),
    ],
)
def test_configuration_without_meaning_is_refused(change, message, tmp_path):
    values = json.loads(np.load(VECTORS["fixed_continuous"])["config"].item())
    (tmp_path / "config.json").write_text(json.dumps(values | change))
    with pytest.raises(ValueError, match=message):
        read_config(str(tmp_path / "config.json"))


@pytest.mark.parametrize("content", ["{", "[1]", "{}"])
def test_file_that_is_no_configuration_is_refused(content, tmp_path):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match="`config`"):
        read_config(str(tmp_path / "config.json"))


def test_unknown_configuration_is_refused():
    with pytest.raises(ValueError, match="neither one of cifar10, "):
        read_config("cifar100")


def test_folder_in_use_is_refused(tmp_path):
    (tmp_path / "mine").touch()
    for folder in (tmp_path, tmp_path / "mine"):
        with pytest.raises(ValueError, match="`output_dir`"):
            convert_official_checkpoint(TRAVELLING / "fixed_continuous.msgpack", "cifar10", folder)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_interrupted_conversion_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(self, folder):
        folder.mkdir()
        raise KeyboardInterrupt

    monkeypatch.setattr(VDM, "save_pretrained", interrupt)
    with pytest.raises(KeyboardInterrupt):
        convert_official_checkpoint(TRAVELLING / "fixed_continuous.msgpack", config_of("fixed_continuous"), tmp_path / "out")
    assert not list(tmp_path.iterdir())


OTHERS = {
    "`num_class_embeds`": {"num_class_embeds": 11},
    "`in_channels`": {"in_channels": 1},
    "`attention_head_dim`": {"attention_head_dim": 8},
    "`norm_num_groups`": {"norm_num_groups": 16},
    "`fourier_powers`": {"fourier_powers": (3,)},
    "of Identity": {},
    "and LearnedMonotoneSchedule": {},
    "'v_prediction', but 'epsilon'": {},
}


@pytest.mark.parametrize("message, options", OTHERS.items(), ids=OTHERS.keys())
def test_models_that_the_authors_have_not_are_refused(message, options, tmp_path):
    schedule = LearnedMonotoneSchedule() if "Schedule" in message else LinearSchedule()
    unet = nn.Identity() if "Identity" in message else VDMUNet2DModel(block_channels=32, layers_per_side=0, **options)
    vdm = VDM(unet, schedule)
    vdm.prediction_type = "v_prediction" if "prediction" in message else "epsilon"
    with pytest.raises(ValueError, match=message):
        export_official_checkpoint(vdm, tmp_path / "state")
    assert not list(tmp_path.iterdir())


def test_command_line(tmp_path, capsys):
    values = json.loads(np.load(VECTORS["fixed_continuous"])["config"].item())
    (tmp_path / "config.json").write_text(json.dumps(values | {"resolution": 16}))
    options = ["--checkpoint_path", str(TRAVELLING / "fixed_continuous.msgpack"), "--output_dir", str(tmp_path / "out")]
    with pytest.raises(SystemExit, match="^convert.py: `ema_params/gamma/b` is missing"):
        main([*options, "--config", "cifar10"])
    main([*options, "--config", str(tmp_path / "config.json"), "--weights", "params"])
    assert f"{tmp_path / 'out'}/" in capsys.readouterr().out
    assert VDMPipeline.from_pretrained(tmp_path / "out").unet.config.sample_size == 16


def mutated(content: bytes, places: list[int], draw: random.Random) -> bytes:
    """The content with one to three changes at some of the places: bytes overwritten, removed, repeated or inserted."""
    for _ in range(draw.randint(1, 3)):
        start = draw.choice(places) if draw.random() < 0.8 else draw.randrange(len(content))
        stop = start + draw.choice((1, 1, 1, 2, 4, 9, 1000))
        noise = draw.choice((draw.randbytes(stop - start), b"\xff" * min(stop - start, 9), b""))
        repeated = content[start:stop] * 2
        content = content[:start] + draw.choice((noise, noise, repeated, noise + content[start:stop])) + content[stop:]
    return content if draw.random() < 0.9 else content[: draw.randrange(len(content))]


def test_400_mutated_files_raise_nothing_but_value_errors(tmp_path):
    config = OfficialConfig(sm_n_embd=32, sm_n_layer=0)
    vdm = random_vdm(config)
    vdm.noise_schedule.slope.data.fill_(18.3)
    export_official_checkpoint(vdm, tmp_path / "good")
    good = (tmp_path / "good").read_bytes()
    heads = [i for i in range(len(good)) if good.startswith(b"float32", i)]
    places = sorted({place for head in heads for place in range(max(0, head - 60), head + 12)})
    draw, refused, state = random.Random(0), [], tmp_path / "state"
    for _ in range(400):
        state.write_bytes(mutated(good, places, draw))
        try:
            load_official_checkpoint(state, config)
        except ValueError as error:
            refused.append(str(error))
    assert 200 < len(refused) < 400
    assert not any("\n" in message for message in refused)
