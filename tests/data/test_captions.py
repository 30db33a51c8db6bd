"""Captions: the same texts from every kind of source, loaded and streamed, and one sentence for what is none."""

import io
import json
import tarfile
from dataclasses import replace
from itertools import islice
from pathlib import Path

import datasets
import numpy as np
import PIL.Image
import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from conftest import TINY
from tiny_pipelines import vae
from torch.utils.data import DataLoader, Subset

from vdm_diffusers import VDM, LinearSchedule, VDMUNet2DModel
from vdm_diffusers.conditioning import captions_of, collate, split_batch
from vdm_diffusers.data import DataError, ImageData, load_images
from vdm_diffusers.data.fingerprints import fingerprint, fingerprint_of_captions
from vdm_diffusers.data.histogram import histogram_bits_per_dim
from vdm_diffusers.data.latents import in_latent_space
from vdm_diffusers.data.streaming import StreamLoader, load_image_stream
from vdm_diffusers.image_quality.batches import real_images
from vdm_diffusers.likelihood import variational_bound
from vdm_diffusers.train import build_accelerator
from vdm_diffusers.training import Trainer
from vdm_diffusers.training.config import TrainingConfig
from vdm_diffusers.training.model_building import build_vdm


ROWS = 6
TEXTS = [f"number {i}, ünï" for i in range(ROWS)]


@pytest.fixture(autouse=True)
def private_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def png(number: int) -> bytes:
    """An image that says which it is, 1×16×16."""
    file = io.BytesIO()
    PIL.Image.fromarray(np.full((16, 16), number, dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


def number_of(item: dict) -> int:
    return int(item["images"][0, 0, 0])


def write_folder(folder: Path, captions: dict[str, list]) -> None:
    for split, texts in captions.items():
        (folder / split).mkdir(parents=True)
        for i in range(ROWS):
            (folder / split / f"{i}.png").write_bytes(png(i))
        rows = [json.dumps({"file_name": f"{i}.png", "caption": text}) for i, text in enumerate(texts)]
        (folder / split / "metadata.jsonl").write_text("\n".join(rows))


def write_parquet(folder: Path, captions: dict[str, list], feature=None) -> None:
    folder.mkdir()
    for split, texts in captions.items():
        columns = {"image": [{"bytes": png(i)} for i in range(len(texts))], "caption": texts}
        features = datasets.Dataset.from_dict({"caption": texts}).features | ({"caption": feature} if feature else {})
        features = datasets.Features({"image": datasets.Image()} | features)
        datasets.Dataset.from_dict(columns, features=features).to_parquet(folder / f"{split}.parquet")


def write_shards(folder: Path, captions: dict[str, list], name: str = "txt") -> None:
    """Tar files as webdataset has them, with captions in files `.txt`, or in files `.json` beside something else."""
    folder.mkdir()
    for split, texts in captions.items():
        with tarfile.open(folder / f"{split}-0.tar", "w") as tar:
            for i, text in enumerate(texts):
                told = json.dumps({"caption": text, "width": 16}) if name == "json" else text
                files = {"png": png(i), name: told.encode() if isinstance(told, str) else told}
                for suffix, content in files.items():
                    if content is None:
                        continue
                    member = tarfile.TarInfo(f"{i:04}.{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))


def write_json_shards(folder: Path, captions: dict[str, list]) -> None:
    write_shards(folder, captions, "json")


KINDS = {
    "metadata.jsonl": (write_folder, "caption"),
    "parquet": (write_parquet, "caption"),
    "webdataset": (write_shards, "txt"),
    "a field in webdataset": (write_json_shards, "json.caption"),
}


def load(folder: Path, column: str = "caption", streaming: bool = False, **options) -> ImageData:
    options = {"train_data_dir": str(folder), "caption_column": column} | options
    return load_image_stream(ROWS, **options) if streaming else load_images(**options)


def texts_of(data: ImageData) -> list[dict[int, list[str]]]:
    """The captions of training and held-out images, by the numbers of the images."""
    return [{number_of(item): item["captions"] for item in islice(split, ROWS)} for split in (data.train, data.validation)]


@pytest.mark.parametrize("streaming", [False, True], ids=["loaded", "streamed"])
@pytest.mark.parametrize("kind", KINDS)
def test_captions_come_from_every_source(tmp_path, kind, streaming):
    write, column = KINDS[kind]
    write(tmp_path / "data", {"train": TEXTS, "test": TEXTS[::-1]})
    data = load(tmp_path / "data", column, streaming)
    train, held_out = texts_of(data)
    assert data.has_captions
    assert train == {i: [TEXTS[i]] for i in range(ROWS)} and held_out == {i: [TEXTS[-1 - i]] for i in range(ROWS)}
    assert not load(tmp_path / "data", None, streaming).has_captions


@pytest.mark.parametrize("streaming", [False, True], ids=["loaded", "streamed"])
def test_several_captions_missing_ones_and_empty_ones(tmp_path, streaming):
    stored = [["one", "two"], [], None, [""], [None, "three"], ["four"]]
    write_parquet(tmp_path / "data", {"train": stored, "test": stored})
    expected = [["one", "two"], [""], [""], [""], ["three"], ["four"]]
    assert texts_of(load(tmp_path / "data", streaming=streaming)) == [dict(enumerate(expected))] * 2


@pytest.mark.parametrize("streaming", [False, True], ids=["loaded", "streamed"])
@pytest.mark.parametrize("kind", ["webdataset", "a field in webdataset"])
def test_images_of_a_shard_without_a_caption_have_an_empty_one(tmp_path, kind, streaming):
    write, column = KINDS[kind]
    stored = [*TEXTS[:-1], None]
    write(tmp_path / "data", {"train": stored, "test": stored})
    assert texts_of(load(tmp_path / "data", column, streaming))[0] == {i: [text or ""] for i, text in enumerate(stored)}


@pytest.mark.parametrize("streaming", [False, True], ids=["loaded", "streamed"])
def test_text_in_bytes_is_read_as_utf_8(tmp_path, streaming):
    stored = [text.encode() for text in TEXTS]
    write_parquet(tmp_path / "data", {"train": stored, "test": stored})
    assert texts_of(load(tmp_path / "data", streaming=streaming))[0] == {i: [TEXTS[i]] for i in range(ROWS)}


WRONG = {
    "numbers": (list(range(ROWS)), r"'caption' must hold text or lists of text, but holds int: name another.*\(train\[0\]\)"),
    "lists of numbers": ([[], [1], [2], [], [], []], r"but holds int: name another column\. It is that of \(train\[1\]\)"),
    "mappings": ([{"en": "a"}] * ROWS, r"but holds a mapping: name one of its fields, such as 'caption\.en'"),
    "mappings in lists": ([[{"en": "a"}]] * ROWS, "must hold text or lists of text, but holds "),
    "no UTF-8": (
        [b"a", b"\xff\xfe", b"", b"", b"", b""],
        r"'caption' holds bytes that are no UTF-8, b'\\xff\\xfe'.*\(train\[1\]\)",
    ),
    "nothing": ([None] * ROWS, "'caption' holds no text for any image of the split '"),
    "empty texts": ([""] * ROWS, "'caption' holds no text for any image of the split '"),
}


@pytest.mark.parametrize("streaming", [False, True], ids=["loaded", "streamed"])
@pytest.mark.parametrize("kind", WRONG)
def test_what_is_no_caption_is_refused_in_a_sentence(tmp_path, kind, streaming):
    stored, message = WRONG[kind]
    write_parquet(tmp_path / "data", {"train": stored, "test": stored})
    with pytest.raises(ValueError, match=message) as error:
        load(tmp_path / "data", streaming=streaming)
    assert str(error.value).startswith("`caption_column` 'caption' ") and "\n" not in str(error.value)


@pytest.mark.parametrize("streaming", [False, True], ids=["loaded", "streamed"])
def test_columns_that_are_not_there_are_answered_with_those_of_text(tmp_path, streaming):
    write_shards(tmp_path / "data", {"train": TEXTS, "test": TEXTS}, "json")
    for column in ("txt", "json.text", "json.caption.en", "", "."):
        with pytest.raises(ValueError, match=r"`caption_column` is '.*', but the columns that hold text are .*'json\.caption'"):
            load(tmp_path / "data", column, streaming)
    with pytest.raises(ValueError, match="`caption_column` is 'png', which is the column of images"):
        load(tmp_path / "data", "png", streaming)


def test_a_data_set_without_text_says_so(tmp_path):
    write_parquet(tmp_path / "data", {"train": [0] * ROWS, "test": [0] * ROWS})
    with pytest.raises(ValueError, match="`caption_column` is 'text', but no column holds text"):
        load(tmp_path / "data", "text")


@pytest.mark.parametrize("streaming", [False, True], ids=["loaded", "streamed"])
def test_captions_of_one_split_alone_are_refused(tmp_path, streaming):
    write_parquet(tmp_path / "data", {"train": TEXTS, "test": [None] * ROWS}, datasets.Value("string"))
    with pytest.raises(ValueError, match="`caption_column` 'caption' holds no text for any image of the split 'test'"):
        load(tmp_path / "data", streaming=streaming)


def test_a_stream_stops_at_the_row_that_is_no_caption(tmp_path, monkeypatch):
    monkeypatch.setattr("vdm_diffusers.data.streaming.FIRST_ROWS", 2)
    write_parquet(tmp_path / "data", {"train": [b"a", b"b", b"c", b"\xff", b"d", b""], "test": [b"a"] * ROWS})
    with pytest.raises(DataError, match="^Row 3 of epoch 0 of the stream: `caption_column` 'caption' holds bytes"):
        list(islice(load(tmp_path / "data", streaming=True).train, ROWS))


@pytest.mark.parametrize("streaming", [False, True], ids=["loaded", "streamed"])
def test_shards_whose_text_is_no_utf_8_are_refused(tmp_path, streaming):
    write_shards(tmp_path / "data", {"train": [b"\xff"] * ROWS, "test": [b"a"] * ROWS})
    with pytest.raises(ValueError, match="decode byte 0xff") as error:
        load(tmp_path / "data", "txt", streaming)
    assert "\n" not in str(error.value)


def test_labels_and_captions_come_together():
    data = load_images(label_column="label", caption_column="caption")
    words = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    for item in (data.train[i] for i in range(30)):
        assert item["captions"] == [f"a handwritten {words[item['class_labels']]}"]
    with pytest.raises(ValueError, match="`caption_column` is 'text', but that of the digits is 'caption'"):
        load_images(caption_column="text")


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_have_a_list_for_each_image_and_no_caption_in_the_condition(num_workers):
    data = load_images(label_column="label", caption_column="caption")
    loader = Accelerator(cpu=True).prepare(DataLoader(data.train, 5, num_workers=num_workers, collate_fn=collate))
    for start, batch in zip((0, 5), loader):
        items = [data.train[start + i] for i in range(5)]
        images, condition = split_batch(batch)
        assert captions_of(batch) == [item["captions"] for item in items]
        assert torch.equal(images, torch.stack([item["images"] for item in items]))
        assert condition.keys() == {"class_labels"} and condition["class_labels"].tolist() == [i["class_labels"] for i in items]
    assert captions_of(collate([load_images().train[0]])) is None


@pytest.mark.parametrize("num_workers", [0, 1])
def test_batches_of_a_stream_have_them_too(tmp_path, num_workers):
    stored = [[text] * (1 + i % 3) for i, text in enumerate(TEXTS)]
    write_parquet(tmp_path / "data", {"train": stored, "test": stored})
    stream = load(tmp_path / "data", streaming=True, skip_unreadable_images=True).train
    for batch in StreamLoader(Accelerator(cpu=True), stream, 3, num_workers).take(4):
        assert captions_of(batch) == [stored[number] for number in batch["images"][:, 0, 0, 0].tolist()]


@pytest.mark.parametrize("folder", [None, "latents"])
def test_latents_keep_captions(tmp_path, folder):
    stored = [[text] * (1 + i % 3) for i, text in enumerate(TEXTS)]
    write_parquet(tmp_path / "data", {"train": stored, "test": stored})
    images, model = load(tmp_path / "data"), vae(in_channels=1, out_channels=1).eval()
    latent = in_latent_space(images, model, folder and tmp_path / folder)
    again = in_latent_space(images, model, folder and tmp_path / folder)
    for each in (latent, again):
        for ours, theirs in ((each.train, images.train), (each.validation, images.validation)):
            assert [item["captions"] for item in islice(ours, ROWS)] == [item["captions"] for item in islice(theirs, ROWS)]
        assert captions_of(collate(list(islice(each.train, 4)))) == stored[:4]


def test_latents_of_other_captions_are_refused(tmp_path):
    write_parquet(tmp_path / "a", {"train": TEXTS, "test": TEXTS})
    write_parquet(tmp_path / "b", {"train": TEXTS[::-1], "test": TEXTS})
    model = vae(in_channels=1, out_channels=1).eval()
    in_latent_space(load(tmp_path / "a"), model, tmp_path / "latents")
    for data in (load(tmp_path / "b"), load(tmp_path / "a", None)):
        with pytest.raises(ValueError, match="holds latents of other images or captions"):
            in_latent_space(data, model, tmp_path / "latents")


def test_captions_have_a_fingerprint_of_their_own():
    plain, captioned = load_images(), load_images(caption_column="caption")
    assert fingerprint(plain) == fingerprint(captioned) and fingerprint_of_captions(plain) is None
    swapped = replace(captioned, train=captioned.validation, validation=captioned.train)
    assert fingerprint_of_captions(captioned) not in (None, fingerprint_of_captions(swapped))


def trained(data: ImageData, folder: Path) -> dict[str, torch.Tensor]:
    """Weights after a few steps, with a validation in between."""
    config = TrainingConfig(**TINY | {"output_dir": str(folder), "gamma_min": -8.0, "max_train_steps": 2})
    accelerator = build_accelerator(config)
    set_seed(0)
    vdm = build_vdm(config, data)
    return Trainer(accelerator, config, vdm, data).train().state_dict()


def test_captions_leave_everything_else_as_it_is(tmp_path):
    """Training, bounds, histograms and the images that FID compares."""
    plain, captioned = load_images(), load_images(caption_column="caption")
    weights, others = trained(plain, tmp_path / "plain"), trained(captioned, tmp_path / "captioned")
    assert all(torch.equal(weights[name], others[name]) for name in weights)
    unet = VDMUNet2DModel(8, 1, block_channels=8, layers_per_side=1, norm_num_groups=4, fourier_powers=())
    vdm, images = VDM(unet, LinearSchedule(), num_levels=17), [Subset(data.validation, range(9)) for data in (plain, captioned)]
    assert len({variational_bound(vdm, each, batch_size=4).bits_per_dim for each in images}) == 1
    assert len({histogram_bits_per_dim(data.train, each, 17) for data, each in zip((plain, captioned), images)}) == 1
    assert torch.equal(*(torch.cat([*real_images(each, 4)]) for each in images))
