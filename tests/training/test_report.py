"""The report of a run: a page that is whole by itself, says what was measured, and holds nothing but text and pictures."""

import base64
import json
import shlex
from html.parser import HTMLParser
from pathlib import Path

import torch

from vdm_diffusers import VDM
from vdm_diffusers.data import load_digits
from vdm_diffusers.evaluate import main as evaluate
from vdm_diffusers.figures import save_bits_maps
from vdm_diffusers.likelihood import bits_per_pixel
from vdm_diffusers.training import bits_map


PICTURES = ("bits_map.png", "samples.png", "training_curve.png", "noise_schedule.png", "forward_process.png")
AWKWARD = "<script>alert('&amp;')<b>\"run\""
"""A folder's name that is markup."""


class Page(HTMLParser):
    """Its tags with their attributes, the text in each, the rows of its tables, and what is folded away."""

    VOID = ("meta", "img", "br")

    def __init__(self, path: Path):
        super().__init__()
        self.tags, self.open, self.texts, self.rows, self.folded = [], [], [], [], []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append((self.open[-1] if self.open else None, data))
        self.folded += [data] if "details" in self.open else []
        if "td" in self.open or "th" in self.open:
            self.rows[-1][-1] += data

    def text_in(self, tag: str) -> str:
        return "".join(text for place, text in self.texts if place == tag)

    def pictures(self) -> list[bytes]:
        sources = [attributes["src"] for tag, attributes in self.tags if tag == "img"]
        assert all(source.startswith("data:image/png;base64,") for source in sources)
        return [base64.b64decode(source.partition(",")[2], validate=True) for source in sources]


def test_a_report_has_all_that_the_run_left(train, tmp_path, capsys, monkeypatch):
    mapped = []
    monkeypatch.setattr(bits_map, "save_bits_maps", lambda *given: mapped.append(given) or save_bits_maps(*given))
    train(output_dir=tmp_path / AWKWARD, final_validation_repeats=2)
    folder = tmp_path / AWKWARD
    ((images, bits, path),) = mapped
    digits = load_digits().validation[0]["images"][None]
    assert torch.equal(images, digits / 16) and path == folder / "bits_map.png"
    again = bits_per_pixel(VDM.from_pretrained(folder), digits, generator=torch.Generator().manual_seed(0), num_repeats=2)
    torch.testing.assert_close(bits, again)

    page = Page(folder / "report.html")
    assert page.open == [] and page.text_in("h1") == AWKWARD and page.text_in("title").startswith(AWKWARD)
    assert page.pictures() == [(folder / name).read_bytes() for name in PICTURES]
    assert all(attributes["alt"] for tag, attributes in page.tags if tag == "img")

    links = [attributes["href"] for _, attributes in page.tags if "href" in attributes]
    assert links == ["https://arxiv.org/abs/2107.00630"]  # which is not loaded
    assert {tag for tag, _ in page.tags} <= {
        "html", "head", "meta", "title", "style", "body", "h1", "h2", "p", "a", "table", "tr", "th", "td", "code", "pre", "div",
        "figure", "figcaption", "img", "details", "summary",
    }  # fmt: skip
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    (policy,) = [attributes["content"] for tag, attributes in page.tags if "http-equiv" in attributes]
    assert "default-src 'none'" in policy and "script" not in policy

    metrics = json.loads((folder / "metrics.json").read_text())
    rows = {row[0]: row[1] for row in page.rows}
    assert rows["variational bound"] == f"{metrics['bits_per_dim']:.4f} ± {metrics['standard_error']:.4f}"
    for term in ("prior", "reconstruction", "diffusion"):
        assert rows[f"— {term}"] == f"{metrics[term]:.4f}"
    assert rows["error from the draws of times and noises alone"] == f"{metrics['standard_error_draws']:.4f}"
    assert {part: float(rows[part]) for part in metrics["seconds"]}.keys() >= {"training", "sampling"}

    config = json.loads((folder / "training_config.json").read_text())
    shown = {row[0].removeprefix("--"): row[1] for row in page.rows if row[0].startswith("--")}
    assert {name: json.loads(value) for name, value in shown.items()} == config
    given = {name for name in shown if f"--{name}" not in page.folded}
    assert {"block_channels", "max_train_steps", "output_dir"} <= given and given.isdisjoint({"vae_model_name_or_path", "seed"})

    command = shlex.split(page.texts[[place for place, _ in page.texts].index("code")][1])
    assert command[:3] == ["python", "-m", "vdm_diffusers.evaluate"] and command[4] == AWKWARD
    capsys.readouterr()
    evaluate([str(folder) if part == AWKWARD else part for part in command[3:]])
    assert rows["variational bound"] in capsys.readouterr().out
