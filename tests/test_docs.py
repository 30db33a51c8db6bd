"""The documentation runs: its Python blocks are executed, its tables are complete."""

import dataclasses
import re
from operator import attrgetter
from pkgutil import resolve_name
from shutil import copytree
from urllib.parse import urlsplit

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.utils import dynamic_modules_utils
from paths import ROOT
from prompted_pipelines import sd, sdxl
from sklearn.datasets import load_digits

from vdm_diffusers import VDM, LearnedMonotoneSchedule, VDMUNet2DModel
from vdm_diffusers.training.config import DIGITS, TrainingConfig
from vdm_diffusers.training.health import check_schedule


PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
EXTENDED = (
    "vdm_diffusers.data.images.SOURCES",
    "vdm_diffusers.gaussian.PREDICTIONS",
    "vdm_diffusers.likelihood.estimators.ESTIMATORS",
    "vdm_diffusers.probability_flow.dequantization.DEQUANTIZATIONS",
    "vdm_diffusers.training.augmentations.AUGMENTATIONS",
    "vdm_diffusers.weightings.WEIGHTINGS",
)
"""What docs/extending.md adds to; other tests must not find it there."""

BESIDE_A_MODEL = ("block.py", "pipeline.py", "vdm_diffusers.py")
"""What `save_pretrained` writes."""

OF_A_SPACE = ("app.py",)


@pytest.fixture
def digits_model(tmp_path, monkeypatch):
    """Folders with untrained models in the working directory: of digits, and `my-model` and `my-sdxl` of text and images."""
    monkeypatch.setattr(dynamic_modules_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.chdir(tmp_path)
    unet = VDMUNet2DModel(8, 1, block_channels=8, layers_per_side=1, norm_num_groups=4, fourier_powers=(2, 3))
    VDM(unet, LearnedMonotoneSchedule(-8.0, 5.0, num_features=8), num_levels=17).save_pretrained("vdm-digits")
    for name in ("vdm-first", "vdm-mine"):
        copytree("vdm-digits", name)
    for name, make in {"my-model": sd, "my-sdxl": sdxl}.items():
        make(DDPMScheduler(beta_schedule="scaled_linear")).save_pretrained(name)


@pytest.mark.parametrize(
    "page",
    [
        "README.md",
        "docs/index.md",
        "docs/quickstart.md",
        "docs/tutorials/your_pictures.md",
        "docs/tutorials/bits_per_dimension.md",
        "docs/text.md",
        "docs/schedulers.md",
        "docs/few_steps.md",
        "docs/adapting.md",
        "docs/extending.md",
        "docs/likelihood.md",
        "docs/demo.md",
        "docs/math.md",
    ],
)
def test_python_blocks_run_in_order(page, digits_model, monkeypatch):
    for extended in EXTENDED:
        monkeypatch.setattr(extended, resolve_name(extended) | {})
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    assert blocks
    if page == "docs/demo.md":
        monkeypatch.setattr(pytest.importorskip("gradio").Blocks, "launch", lambda blocks: None)
    names = {}
    for block in blocks:
        if page == "README.md":
            names["images"] = torch.randint(0, 256, (1, 3, 32, 32))
        exec(compile(block, page, "exec"), names)


@pytest.mark.parametrize("log_power", [0.0, -0.5])
def test_the_documented_schedule_trains(log_power):
    """From a line, and from a curve that is vertical at t = 0."""
    block = re.search(r"```python\n(.*?)```", (ROOT / "docs" / "extending.md").read_text(), re.DOTALL)
    exec(compile(block[1], "extending.md", "exec"), names := {})
    unet = VDMUNet2DModel(8, 1, block_channels=8, layers_per_side=1, norm_num_groups=4, fourier_powers=(2, 3))
    vdm = VDM(unet, names["LearnedPowerSchedule"](), num_levels=17)
    torch.nn.init.constant_(vdm.noise_schedule.log_power, log_power)
    optimizer = torch.optim.Adam(vdm.parameters(), lr=0.02)
    for _ in range(8):
        optimizer.zero_grad()
        vdm(torch.randint(0, 17, (16, 1, 8, 8))).objective.mean().backward()
        optimizer.step()
        assert all(parameter.isfinite().all() and parameter.grad.isfinite().all() for parameter in vdm.parameters())
    assert vdm.noise_schedule.log_power.item() != pytest.approx(log_power, abs=0.02)
    check_schedule(vdm.noise_schedule, step=8)


def test_every_option_is_explained():
    table = (ROOT / "docs" / "training.md").read_text()
    for field in dataclasses.fields(TrainingConfig):
        default = field.default_factory() if field.default is dataclasses.MISSING else field.default
        digits = f" ({DIGITS[field.name]})" if field.name in DIGITS else ""
        assert f"| `--{field.name}` | {default}{digits} | {field.metadata['help']} |" in table


def test_links_lead_somewhere():
    for page in PAGES:
        for link in re.findall(r"\]\(([^)#]+)", page.read_text()):
            assert link.startswith("http") or (page.parent / link).exists(), (page.name, link)


def test_links_to_elsewhere_are_https_and_spelled_one_way():
    """Whether somebody is there is not asked: that needs a network."""
    pages = [*ROOT.glob("*.md"), *(path for room in ("docs", "vdm_diffusers") for path in (ROOT / room).rglob("*.*"))]
    texts = [path.read_text() for path in pages if path.suffix in (".md", ".rst", ".py", ".jinja")]
    links = {link for text in texts for link in re.findall(r"https?://(?!127\.)[^\s)\"'>`\]]*[^\s)\"'>`\].,;]", text)}
    assert len(links) > 15
    spellings = {}
    for link in sorted(links):
        parts = urlsplit(link)
        assert parts.scheme == "https" and re.fullmatch(r"([a-z0-9-]+\.)+[a-z]{2,}", parts.netloc), link
        place = parts.netloc.removeprefix("www."), parts.path.rstrip("/").replace("/pdf/", "/abs/"), parts.fragment
        assert spellings.setdefault(place, link) == link


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=attrgetter("name"))
def test_files_that_a_page_names_exist(page):
    """Those of our folders, and Python files without one, at the root or beside a model; not a command's name in a message."""
    text = page.read_text()
    named = re.findall(r"(?<![\w./-])(?:(?:vdm_diffusers|tests|docs|benchmarks)/[\w./-]+\.\w+|\w+\.py)\b(?!:)", text)
    assert [path for path in named if not (ROOT / path).is_file() and path not in BESIDE_A_MODEL + OF_A_SPACE] == []


def test_digits_of_the_documentation_are_as_described():
    assert load_digits().images.shape == (1797, 8, 8) and load_digits().images.max() == 16
