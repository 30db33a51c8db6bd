"""Streams: every row of an epoch once, disjoint between processes and workers, and an order that is taken up exactly."""

from types import SimpleNamespace

import datasets
import numpy as np
import PIL.Image
import pytest
import torch

from vdm_diffusers.data import load_images
from vdm_diffusers.streaming import ImageStream, StreamLoader, load_image_stream


ROWS = 60


def picture(number: int) -> PIL.Image.Image:
    return PIL.Image.fromarray(np.full((4, 6), number, dtype=np.uint8))


@pytest.fixture
def folder(tmp_path, monkeypatch) -> str:
    """Images of the constants 0, ..., 59 in four parquet files of two row groups each, and six held-out ones."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    names = datasets.ClassLabel(names=["even", "odd"])
    features = datasets.Features({"image": datasets.Image(), "label": names})
    (tmp_path / "data").mkdir()
    files = {"test": range(6)} | {f"train-{i}": range(15 * i, 15 * i + 15) for i in range(4)}
    for split, numbers in files.items():
        rows = {"image": [picture(number) for number in numbers], "label": [number % 2 for number in numbers]}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "data" / f"{split}.parquet", batch_size=8)
    return str(tmp_path / "data")


def loader(folder: str, rank: int = 0, world: int = 1, num_workers: int = 0, batch_size: int = 4, **kwargs) -> StreamLoader:
    stream = load_image_stream(4, train_data_dir=folder, label_column="label", **({"buffer_size": 7} | kwargs)).train
    accelerator = SimpleNamespace(process_index=rank, num_processes=world, device="cpu")
    return StreamLoader(accelerator, stream, batch_size, num_workers)


def numbers(batches, count: int) -> list[int]:
    taken = [next(batches) for _ in range(count)]
    for batch in taken:
        assert torch.equal(batch["class_labels"], batch["images"][:, 0, 0, 0].long() % 2)
    return [number for batch in taken for number in batch["images"][:, 0, 0, 0].tolist()]


def test_a_stream_has_the_images_of_the_data_set(folder):
    streamed, loaded = load_image_stream(4, train_data_dir=folder), load_images(train_data_dir=folder)
    assert (streamed.shape, streamed.num_levels, streamed.name) == (loaded.shape, loaded.num_levels, loaded.name)
    assert len(streamed.validation) == 4
    for i in range(4):
        assert torch.equal(streamed.validation[i]["images"], loaded.validation[i]["images"])
    assert isinstance(streamed.train, ImageStream)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_every_epoch_has_every_row_once_in_an_order_of_its_own(folder, num_workers):
    batches = iter(loader(folder, num_workers=num_workers, batch_size=5))
    epochs = [numbers(batches, 12) for _ in range(3)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(ROWS))] * 3
    assert all(epoch != sorted(epoch) for epoch in epochs) and len(set(map(tuple, epochs))) == 3
    assert numbers(iter(loader(folder, num_workers=num_workers, batch_size=5, seed=1)), 12) != epochs[0]


@pytest.mark.parametrize("world", [2, 3])
def test_processes_read_rows_of_their_own(folder, world):
    shares = [numbers(iter(loader(folder, rank, world, batch_size=5)), ROWS // (5 * world)) for rank in range(world)]
    assert sorted(sum(shares, [])) == list(range(ROWS))


@pytest.mark.parametrize("stop", [1, 5, 14, 23])
@pytest.mark.parametrize(("num_workers", "world"), [(0, 1), (0, 3), (2, 1)])
def test_a_stream_goes_on_where_it_was_left(folder, monkeypatch, num_workers, world, stop):
    monkeypatch.setattr("vdm_diffusers.streaming.gather_object", lambda objects: objects * world)
    whole = numbers(iter(loader(folder, world - 1, world, num_workers)), 30)
    broken = loader(folder, world - 1, world, num_workers)
    batches = iter(broken)
    first, state = numbers(batches, stop), broken.state_dict()
    again = loader(folder, world - 1, world, num_workers)
    again.load_state_dict(state)
    assert first + numbers(iter(again), 30 - stop) == whole


def test_another_number_of_processes_is_refused(folder):
    with pytest.raises(ValueError, match="2 processes have read goes on with as many, not with 1"):
        loader(folder).load_state_dict({"processes": [{}, {}]})


def test_more_workers_than_files_are_refused(folder):
    with pytest.raises(ValueError, match="`--dataloader_num_workers` is 3, but the stream has 2 files for each process"):
        loader(folder, 0, 2, num_workers=3)


def test_images_of_another_shape_are_named_when_they_come(folder):
    rows = datasets.Dataset.from_dict({"image": [[[1, 2]], [[1, 2]], [[1, 2, 3]]]}).to_iterable_dataset()
    stream = iter(ImageStream(rows, "image", None, ((1, 1, 2), 2**31), buffer_size=3, seed=0))
    with pytest.raises(ValueError, match="All images must have one shape and type"):
        [next(stream) for _ in range(3)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_column": "picture"}, "`--image_column` is 'picture', but the columns are 'image'"),
        ({"validation_split": "dev"}, "`--validation_split` is 'dev', but the splits are"),
        ({"resolution": 32}, "`--resolution` is 32, but the images are 4×6"),
        ({"num_levels": 3}, "`--num_levels` is 3, but image 3 has values from 3 to 3"),
    ],
)
def test_options_that_contradict_the_stream(folder, options, message):
    with pytest.raises(ValueError, match=message):
        load_image_stream(4, train_data_dir=folder, **options)


def test_levels_may_be_as_many_as_the_type_holds_and_no_more(folder):
    assert load_image_stream(4, train_data_dir=folder, num_levels=256).num_levels == 256
    assert load_image_stream(4, train_data_dir=folder, label_column="label").class_names == ["even", "odd"]
    with pytest.raises(ValueError, match="`--num_levels` is 257, but the images are of a type that holds 256"):
        load_image_stream(4, train_data_dir=folder, num_levels=257)
