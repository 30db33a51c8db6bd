"""Streams: every row of an epoch once, disjoint between processes and workers, and an order that is taken up exactly."""

from types import SimpleNamespace

import datasets
import numpy as np
import PIL.Image
import pytest
import torch
from processes import Ranks, train_vdm_with

from vdm_diffusers.data import load_images
from vdm_diffusers.data.streaming import ImageStream, StreamError, StreamLoader, load_image_stream
from vdm_diffusers.guards.messages import as_flag, spelled


ROWS = 60


def picture(number: int) -> PIL.Image.Image:
    return PIL.Image.fromarray(np.full((4, 6), number, dtype=np.uint8))


def write_stream(folder, changed: dict[int, tuple] = {}) -> str:  # noqa: B006
    """Images of the constants 0, ..., 59 in four parquet files of two row groups each, and six held-out ones.

    Of the rows `changed`, image and label are these.
    """
    names = datasets.ClassLabel(names=["even", "odd"])
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    folder.mkdir()
    files = {"test": range(6)} | {f"train-{i}": range(15 * i, 15 * i + 15) for i in range(4)}
    for split, numbers in files.items():
        rows = [changed.get(number, (picture(number), number % 2)) for number in numbers]
        columns = {"image": [image for image, _ in rows], "label": [label for _, label in rows]}
        table = datasets.Dataset.from_dict(columns, features=features).cast_column("label", names)
        table.to_parquet(folder / f"{split}.parquet", batch_size=8)
    return str(folder)


@pytest.fixture
def folder(tmp_path, monkeypatch) -> str:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    return write_stream(tmp_path / "data")


def loader(folder: str, rank: int = 0, world: int = 1, num_workers: int = 0, batch_size: int = 4, **kwargs) -> StreamLoader:
    stream = load_image_stream(4, train_data_dir=folder, label_column="label", **({"buffer_size": 7} | kwargs)).train
    accelerator = SimpleNamespace(process_index=rank, num_processes=world, device=torch.device("cpu"))
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
    monkeypatch.setattr("vdm_diffusers.data.streaming.gather_object", lambda objects: objects * world)
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
    with pytest.raises(ValueError, match="`dataloader_num_workers` is 3, but the stream has 2 files for each process"):
        loader(folder, 0, 2, num_workers=3)


def test_images_of_another_shape_are_named_when_they_come(folder):
    rows = datasets.Dataset.from_dict({"image": [[[1, 2]], [[1, 2]], [[1, 2, 3]]]}).to_iterable_dataset()
    stream = iter(ImageStream(rows, "image", None, ((1, 1, 2), 2**31), buffer_size=3, seed=0))
    with pytest.raises(ValueError, match="All images must have one shape and type"):
        [next(stream) for _ in range(3)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_column": "picture"}, "`image_column` is 'picture', but the columns are 'image'"),
        ({"validation_split": "dev"}, "`validation_split` is 'dev', but the splits are"),
        ({"resolution": 32}, "`resolution` is 32, but the images are 4×6"),
        ({"num_levels": 3}, "`num_levels` is 3, but image 3 has values from 3 to 3"),
    ],
)
def test_options_that_contradict_the_stream(folder, options, message):
    with pytest.raises(ValueError, match=message):
        load_image_stream(4, train_data_dir=folder, **options)


def test_levels_may_be_as_many_as_the_type_holds_and_no_more(folder):
    assert load_image_stream(4, train_data_dir=folder, num_levels=256).num_levels == 256
    assert load_image_stream(4, train_data_dir=folder, label_column="label").class_names == ["even", "odd"]
    with pytest.raises(ValueError, match="`num_levels` is 257, but the images are of a type that holds 256"):
        load_image_stream(4, train_data_dir=folder, num_levels=257)


DAMAGED = {"bytes": b"<html>", "path": "37.png"}
FAULTS = {
    "image": ((DAMAGED, 1), r"Row .* of epoch 0 of the stream, 37\.png: It is no image .*`skip_unreadable_images`"),
    "none": ((None, 1), "Row .*: There is no image"),
    "size": ((PIL.Image.new("L", (6, 5)), 1), "Row .*1×4×6 of 256 levels the stream has 1×5×6"),
    "mode": ((PIL.Image.new("P", (6, 4)), 1), "Row .*PIL mode 'P'.*`convert='RGB'`"),
    "unlabelled": ((picture(37), -1), "Row .*`label_column` 'label' must hold integers from 0, but holds -1"),
    "no label": ((picture(37), None), "Row .*`label_column` 'label' must hold integers from 0, but holds none"),
}


@pytest.mark.parametrize(
    ("fault", "num_workers"), [*((fault, 0) for fault in FAULTS), ("image", 2)], ids=[*FAULTS, "image in a worker"]
)
def test_rows_that_do_not_fit_are_named_in_one_sentence(folder, tmp_path, fault, num_workers):
    row, message = FAULTS[fault]
    batches = iter(loader(write_stream(tmp_path / "faulty", {37: row}), num_workers=num_workers))
    with pytest.raises(StreamError, match=message) as error:
        numbers(batches, 16)
    assert "\n" not in str(error.value)
    if fault == "image":
        assert spelled(error.value, as_flag()).endswith("Leave out such images by `--skip_unreadable_images`.")


@pytest.mark.parametrize("num_workers", [0, 2])
def test_unreadable_images_of_a_stream_are_left_out_and_told(folder, tmp_path, num_workers):
    options = {"skip_unreadable_images": True, "num_workers": num_workers, "batch_size": 1}
    stream = loader(write_stream(tmp_path / "faulty", {37: (DAMAGED, 1)}), **options)
    assert set(numbers(iter(stream), ROWS + 5)) == set(range(ROWS)) - {37}  # workers are at times in different epochs
    assert stream.unreadable and all("37.png: It is no image" in sentence for sentence in stream.unreadable)


def test_first_rows_and_held_out_ones_are_checked_before_training(folder, tmp_path):
    for number in (3, 5):  # both are held out too
        faulty = write_stream(tmp_path / f"faulty-{number}", {number: (DAMAGED, 1)})
        with pytest.raises(ValueError, match="37.png: It is no image"):
            load_image_stream(6, train_data_dir=faulty)


def test_values_of_a_stream_are_below_its_levels(folder):
    batches = iter(loader(folder, num_levels=40))
    with pytest.raises(StreamError, match="`num_levels` is 40, but the image has values up to [45]."):
        numbers(batches, 15)


@pytest.mark.parametrize("taken", [0, 5])
def test_what_was_taken_from_a_stream_can_be_taken_back(folder, monkeypatch, taken):
    monkeypatch.setattr("vdm_diffusers.data.streaming.gather_object", lambda objects: objects)
    whole, broken = loader(folder), loader(folder)
    expected = [batch["images"] for batch in whole.take(8)]
    if taken:
        broken.take(taken)
    broken.take(3), broken.go_back()
    again = loader(folder)
    again.load_state_dict(broken.state_dict())
    assert all(torch.equal(ours["images"], theirs) for ours, theirs in zip(again.take(3), expected[taken:]))


def test_a_run_on_a_stream_ends_at_a_row_with_a_checkpoint_and_goes_on_without_it(folder, tmp_path, train):
    options = {"train_data_dir": write_stream(tmp_path / "faulty", {37: (DAMAGED, 1)}), "max_validation_images": 4}
    options |= {"max_train_steps": 8, "shuffle_buffer_size": 7, "validation_steps": 100, "checkpointing_steps": 100}
    with pytest.raises(SystemExit, match=r"37\.png.*checkpoint-\d is written, go on from it by"):
        train("--streaming", **options)
    (checkpoint,) = (tmp_path / "out").glob("checkpoint-*")
    assert 0 < int(checkpoint.name.split("-")[1]) < 8
    train("--streaming", "--skip_unreadable_images", resume_from_checkpoint="latest", **options)
    assert "37.png: It is no image" in (tmp_path / "out" / "unreadable_images.txt").read_text()
    assert (tmp_path / "out" / "metrics.json").exists()


@pytest.mark.slow
def test_all_processes_end_where_one_of_them_meets_such_a_row(folder, tmp_path, monkeypatch):
    options = {"train_data_dir": write_stream(tmp_path / "faulty", {37: (DAMAGED, 1)}), "max_validation_images": 4}
    options |= {"streaming": True, "dataloader_num_workers": 2, "output_dir": tmp_path / "out", "train_batch_size": 3}
    options |= {"max_train_steps": 12, "validation_steps": 100, "checkpointing_steps": 100}
    ranks = Ranks(train_vdm_with, options, num_processes=2, log=tmp_path / "log")
    assert ranks.join() == [1, 1]
    log = (tmp_path / "log").read_text()
    assert log.count("37.png") == 1 and "Traceback" not in log and "is written, go on from it" in log
    assert list((tmp_path / "out").glob("checkpoint-*"))
