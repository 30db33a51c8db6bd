"""Image data: exact values from every source, and one sentence for everything unsuitable."""

import io
from itertools import islice
from pathlib import Path

import datasets
import numpy as np
import PIL.Image
import pyarrow.parquet
import pytest
import torch
from sklearn.datasets import load_digits as sklearn_digits
from torch.utils.data import DataLoader

from vdm_diffusers.data import DataError, image_to_tensor, load_images
from vdm_diffusers.data.decoding import Preparation
from vdm_diffusers.data.fingerprints import fingerprint
from vdm_diffusers.data.histogram import histogram_bits_per_dim
from vdm_diffusers.data.streaming import load_image_stream


def write_folder(folder, images: dict[str, list[PIL.Image.Image]]) -> str:
    """A folder of PNG files, one sub-folder a split."""
    for split, pictures in images.items():
        (folder / split).mkdir(parents=True)
        for i, picture in enumerate(pictures):
            picture.save(folder / split / f"{i}.png")
    return str(folder)


def random_picture(mode: str = "L", size: tuple[int, int] = (6, 4), high: int = 256) -> PIL.Image.Image:
    channels = len(PIL.Image.new(mode, (1, 1)).getbands())
    shape = size[::-1] if channels == 1 else (*size[::-1], channels)
    return PIL.Image.fromarray(np.random.randint(0, high, shape).astype(np.uint8), mode=mode)


def write_parquet(folder, columns: dict, features: datasets.Features | None = None) -> str:
    folder.mkdir(exist_ok=True)
    datasets.Dataset.from_dict(columns, features=features).to_parquet(folder / "train.parquet")
    return str(folder)


@pytest.fixture(autouse=True)
def private_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("name", [None, "digits"])
def test_digits_are_scikit_learn_s_split_in_two(name):
    data = load_images(dataset_name=name)
    assert (data.shape, data.num_levels, data.num_classes) == ((1, 8, 8), 17, None)
    assert (len(data.train), len(data.validation)) == (1500, 297)
    parts = [part[i]["images"] for part in (data.train, data.validation) for i in range(len(part))]
    ours = torch.stack(parts).flatten(1).numpy()
    theirs = sklearn_digits().images.reshape(-1, 64)
    np.testing.assert_array_equal(ours[np.lexsort(ours.T)], theirs[np.lexsort(theirs.T)])


def test_digits_have_labels_when_asked():
    data = load_images(label_column="label")
    assert data.num_classes == 10 and data.class_names == list("0123456789")
    assert {data.train[i]["class_labels"] for i in range(200)} == set(range(10))


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA"])
def test_folder_of_pictures_gives_their_exact_values(tmp_path, mode):
    pictures = [random_picture(mode) for _ in range(4)]
    data = load_images(train_data_dir=write_folder(tmp_path / "data", {"train": pictures, "test": pictures[:2]}))
    channels = len(mode)
    assert data.shape == (channels, 4, 6) and data.num_levels == 256
    for i, picture in enumerate(pictures):
        expected = np.asarray(picture).reshape(4, 6, channels).transpose(2, 0, 1)
        np.testing.assert_array_equal(data.train[i]["images"].numpy(), expected)
    assert len(data.validation) == 2


def test_the_only_column_of_pictures_is_found(tmp_path):
    features = datasets.Features({"label": datasets.Value("int64"), "img": datasets.Image()})
    pictures = [random_picture() for _ in range(3)]
    folder = write_parquet(tmp_path / "data", {"img": pictures, "label": [0, 1, 2]}, features)
    data = load_images(train_data_dir=folder, label_column="label")
    assert data.shape == (1, 4, 6) and data.num_classes == 3 and data.class_names is None


def test_folders_name_their_classes(tmp_path):
    for name in ("flower, wild", "dog", "日`|"):
        write_folder(tmp_path / "data", {f"{split}/{name}": [random_picture()] * 2 for split in ("train", "test")})
    data = load_images(train_data_dir=str(tmp_path / "data"), label_column="label")
    assert data.class_names == ["dog", "flower, wild", "日`|"] and data.num_classes == 3
    assert load_images(train_data_dir=str(tmp_path / "data")).class_names is None


def test_parquet_of_arrays_with_five_channels(tmp_path):
    images = np.random.randint(0, 9, (3, 4, 6, 5))
    features = datasets.Features({"image": datasets.Array3D((4, 6, 5), "int32")})
    folder = write_parquet(tmp_path / "data", {"image": list(images)}, features)
    data = load_images(train_data_dir=folder, num_levels=9)
    assert data.shape == (5, 4, 6) and data.num_levels == 9
    kept = [part[i]["images"].numpy() for part in (data.train, data.validation) for i in range(len(part))]
    assert {image.tobytes() for image in kept} == {image.transpose(2, 0, 1).astype(np.int32).tobytes() for image in images}


ARRAYS = {"sequences": datasets.List(datasets.Value("uint8")), "volumes": datasets.Array4D((3, 2, 4, 2), "uint8")}


@pytest.mark.parametrize("streaming", [False, True], ids=["loaded", "streamed"])
@pytest.mark.parametrize("kind", ARRAYS)
def test_arrays_of_any_shape(tmp_path, kind, streaming):
    stored = np.random.default_rng(0).integers(0, 256, (8, *{"sequences": (6,), "volumes": (3, 2, 4, 2)}[kind]), dtype=np.uint8)
    for split in ("train", "test"):
        rows = datasets.Dataset.from_dict({"x": list(stored)}, features=datasets.Features({"x": ARRAYS[kind]}))
        (tmp_path / "data").mkdir(exist_ok=True)
        rows.to_parquet(tmp_path / "data" / f"{split}.parquet")
    options = {"train_data_dir": str(tmp_path / "data"), "image_column": "x"}
    data = load_image_stream(8, **options) if streaming else load_images(**options)
    expected = np.moveaxis(stored if kind == "volumes" else stored[..., None], -1, 1)
    assert (data.shape, data.num_levels) == (expected.shape[1:], 256)
    np.testing.assert_array_equal([item["images"].numpy() for item in islice(data.validation, 8)], expected)
    seen = {item["images"].numpy().tobytes() for item in islice(data.train, 8)}
    assert seen == {sample.tobytes() for sample in expected}
    histogram = histogram_bits_per_dim(data.train, data.validation, 256)
    assert 0 < histogram < 8 and len(fingerprint(data)) == 64


def test_how_many_dimensions_of_an_array_are_spatial_can_be_said(tmp_path):
    features = datasets.Features({"image": datasets.Array3D((6, 8, 8), "uint8")})
    folder = write_parquet(tmp_path / "data", {"image": list(np.zeros((4, 6, 8, 8), dtype=np.uint8))}, features)
    assert load_images(train_data_dir=folder).shape == (8, 6, 8)
    assert load_images(train_data_dir=folder, num_spatial_dims=3).shape == (1, 6, 8, 8)
    with pytest.raises(ValueError, match=r"\(train\[0\]\): An image has the shape \(6, 8, 8\).*integers, \(L\) or \(L, C\)"):
        load_images(train_data_dir=folder, num_spatial_dims=1)
    with pytest.raises(ValueError, match="`resolution` is 8, but the images are 6×8×8: leave it out."):
        load_images(train_data_dir=folder, num_spatial_dims=3, resolution=8)


def test_samples_of_several_lengths_are_refused(tmp_path):
    folder = write_parquet(tmp_path / "data", {"image": [[1, 2, 3]] * 3 + [[1, 2]]})
    with pytest.raises(ValueError, match=r"there are 1×3 \(train\[0\]\), 1×2 \(train\[3\]\): make them alike beforehand\."):
        load_images(train_data_dir=folder, num_levels=4)


def test_sixteen_bits_and_one_bit_keep_their_levels():
    deep = image_to_tensor(PIL.Image.fromarray(np.array([[0, 65535]], dtype=np.uint16)))
    assert deep.tolist() == [[[0, 65535]]]
    assert image_to_tensor(PIL.Image.fromarray(np.array([[True, False]]))).tolist() == [[[1, 0]]]


def test_without_a_held_out_split_a_twentieth_is_held_out(tmp_path):
    folder = write_folder(tmp_path / "data", {"train": [random_picture() for _ in range(40)]})
    data = load_images(train_data_dir=folder)
    assert (len(data.train), len(data.validation)) == (38, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_column": "picture"}, "`image_column` is 'picture', but the columns are 'image'"),
        ({"label_column": "label"}, "`label_column` is 'label', but the columns are"),
        ({"resolution": 32}, "`resolution` is 32, but the images are 4×6"),
        ({"num_channels": 3}, "`num_channels` is 3, but the images have 1"),
        ({"validation_split": "dev"}, "`validation_split` is 'dev', but the splits are 'train'"),
        ({"num_levels": 17}, "`num_levels` is 17, but image 0 has values from"),
        ({"dataset_name": "cifar10"}, "both given"),
    ],
)
def test_options_that_contradict_the_data(tmp_path, options, message):
    folder = write_folder(tmp_path / "data", {"train": [random_picture() for _ in range(3)]})
    with pytest.raises(ValueError, match=message):
        load_images(train_data_dir=folder, **options)


def test_images_without_a_label_are_refused(tmp_path):
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    folder = write_parquet(tmp_path / "data", {"image": [random_picture()] * 30, "label": [0, 1, -1] * 10}, features)
    with pytest.raises(ValueError, match="`label_column` 'label' must hold integers from 0, but holds -1"):
        load_images(train_data_dir=folder, label_column="label")


PNG = io.BytesIO()
PIL.Image.new("L", (6, 4)).save(PNG, "PNG")
PICTURES = [{"bytes": PNG.getvalue()}] * 6


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        ({"image": ["0.png"] * 6}, {}, "It is text, but .*make paths images by `cast_column"),
        ({"image": PICTURES}, {"label_column": "image"}, "`label_column` is 'image', which is the column of images"),
        ({"image": PICTURES, "label": list("ababab")}, {"label_column": "label"}, "holds str: .*`class_encode_column`"),
        ({"image": PICTURES, "label": [0.0, 1.0] * 3}, {"label_column": "label"}, "holds float: .*`class_encode_column`"),
    ],
    ids=["paths", "label is image", "text", "numbers"],
)
def test_columns_of_another_kind_are_refused_with_what_makes_them_right(tmp_path, columns, options, message):
    with pytest.raises(ValueError, match=message):
        load_images(train_data_dir=write_parquet(tmp_path / "data", columns), **options)


def test_files_without_their_paths_are_images(tmp_path):
    data = load_images(train_data_dir=write_parquet(tmp_path / "data", {"image": PICTURES}))
    assert data.shape == (1, 4, 6) and data.num_levels == 256


def test_classes_that_are_held_out_alone_are_refused(tmp_path):
    splits = {"train": ("cat", "dog"), "test": ("cat", "zebra")}
    pictures = {f"{split}/{name}": [random_picture()] * 2 for split, names in splits.items() for name in names}
    folder = write_folder(tmp_path / "data", pictures)
    with pytest.raises(ValueError, match="The split 'test' has images of the class 2, 'zebra', but 'train' has none"):
        load_images(train_data_dir=folder, label_column="label")
    assert load_images(train_data_dir=folder).num_classes is None


@pytest.mark.parametrize(("number", "num_workers"), [(0, 0), (0, 2), (1, 0)])
def test_images_that_change_after_the_check_are_named(tmp_path, number, num_workers):
    """Removed, or replaced by one of another size."""
    data = load_images(train_data_dir=write_folder(tmp_path / "data", {"train": [random_picture()] * 6}))
    path = Path(data.train.rows[0]["image"]["path"])
    path.unlink()
    if number:
        PIL.Image.new("L", (6, 5)).save(path)
    what = "It is 1×5×6 of 256 levels instead of 1×4×6 of 256 levels" if number else "It can't be read: No such file"
    with pytest.raises(DataError, match=rf"^The image .*{path.name} is not what it was when it was checked\. {what}") as error:
        list(DataLoader(data.train, 4, num_workers=num_workers))
    assert "\n" not in str(error.value)


def test_unknown_data_sets_are_named(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="`train_data_dir` .*nowhere.* is no folder"):
        load_images(train_data_dir=str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="`train_data_dir` '' is no folder"):
        load_images(train_data_dir="")
    with pytest.raises(ValueError, match="`dataset_name` is empty"):
        load_images(dataset_name="")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="`train_data_dir` .*empty.* could not be loaded"):
        load_images(train_data_dir=str(tmp_path / "empty"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="`dataset_name` 'user/nothing' could not be loaded"):
        load_images(dataset_name="user/nothing", cache_dir=str(tmp_path / "cache"))


def test_images_of_several_sizes_are_refused(tmp_path):
    pictures = [random_picture(), random_picture(size=(6, 5))]
    with pytest.raises(ValueError, match=r"All images must have one shape and type, but there are 1×4×6 \(train\[0\]\)"):
        load_images(train_data_dir=write_folder(tmp_path / "data", {"train": pictures, "test": pictures[:1]}))


def test_palettes_are_refused(tmp_path):
    pictures = [random_picture().convert("P")]
    with pytest.raises(ValueError, match="PIL mode 'P'"):
        load_images(train_data_dir=write_folder(tmp_path / "data", {"train": pictures, "test": pictures}))


def test_float_arrays_are_refused(tmp_path):
    features = datasets.Features({"image": datasets.Array2D((4, 6), "float32")})
    folder = write_parquet(tmp_path / "data", {"image": list(np.random.rand(3, 4, 6))}, features)
    with pytest.raises(ValueError, match="images must be integers"):
        load_images(train_data_dir=folder)


def test_other_options_for_the_digits_are_refused():
    with pytest.raises(ValueError, match="`num_levels` is 256, but that of 'digits' is 17"):
        load_images(num_levels=256)
    with pytest.raises(ValueError, match="`label_column` is 'digit'"):
        load_images(label_column="digit")


def test_labels_beyond_all_classes_are_refused(tmp_path):
    folder = write_parquet(tmp_path / "data", {"image": PICTURES, "label": [0, 1, 10**12] * 2})
    with pytest.raises(ValueError, match="`label_column` 'label' holds 1,000,000,000,000, but at most 1,000,000 classes"):
        load_images(train_data_dir=folder, label_column="label")


@pytest.mark.parametrize(("labels", "message"), [([0, None, 1], "holds none"), ([0, 5, 1], "has 2 classes, but holds 5")])
def test_labels_that_are_none_or_too_large_are_named(tmp_path, labels, message):
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    table = datasets.Dataset.from_dict({"image": [random_picture()] * 3, "label": [0, 0, 0]}, features=features).data.table
    table = table.set_column(1, table.schema.field("label"), pyarrow.array(labels, pyarrow.int64()))
    (tmp_path / "data").mkdir()
    pyarrow.parquet.write_table(table, tmp_path / "data" / "train.parquet")
    with pytest.raises(ValueError, match=f"`label_column` 'label' .*{message}.*train"):
        load_images(train_data_dir=str(tmp_path / "data"), label_column="label")


@pytest.mark.parametrize("turned", [range(8), range(0, 8, 2)], ids=["all", "half"])
def test_turned_photographs_are_checked_as_they_are_trained_on(tmp_path, turned):
    """Stored lying, shown standing: some by their tag, the others as they are stored."""
    (tmp_path / "train").mkdir()
    shown = np.random.default_rng(0).integers(0, 256, (8, 6, 4, 3), dtype=np.uint8)
    for i, image in enumerate(shown):
        exif = PIL.Image.Exif()
        exif[0x0112] = 6 if i in turned else 1
        stored = np.ascontiguousarray(image.transpose(1, 0, 2)[::-1]) if i in turned else image
        PIL.Image.fromarray(stored).save(tmp_path / "train" / f"{i}.png", exif=exif)
    data = load_images(train_data_dir=str(tmp_path))
    assert data.shape == (3, 6, 4)
    kept = {part[i]["images"].numpy().tobytes() for part in (data.train, data.validation) for i in range(len(part))}
    assert kept == {np.ascontiguousarray(image.transpose(2, 0, 1)).tobytes() for image in shown}


@pytest.mark.parametrize("nested", [False, True], ids=["Array2D", "List"])
@pytest.mark.parametrize(("dtype", "levels"), [("uint8", 256), ("uint16", 65536), ("bool", 2)])
def test_arrays_have_the_levels_that_they_declare(tmp_path, nested, dtype, levels):
    images = np.random.default_rng(0).integers(0, 2, (8, 4, 6)).astype(dtype)
    feature = datasets.List(datasets.List(datasets.Value(dtype))) if nested else datasets.Array2D((4, 6), dtype)
    folder = write_parquet(tmp_path / "data", {"image": list(images)}, datasets.Features({"image": feature}))
    data = load_images(train_data_dir=folder)
    assert (data.shape, data.num_levels) == ((1, 4, 6), levels)
    kept = {part[i]["images"].numpy().tobytes() for part in (data.train, data.validation) for i in range(len(part))}
    assert kept == {image.astype(np.uint8 if levels <= 256 else np.int32).tobytes() for image in images}


def test_arrays_that_do_not_say_how_many_levels_they_have_need_it_said(tmp_path):
    folder = write_parquet(tmp_path / "data", {"image": [[[0, 7], [1, 2]]] * 5})
    with pytest.raises(ValueError, match="highest value is 7: give `num_levels`, such as 8"):
        load_images(train_data_dir=folder)
    assert load_images(train_data_dir=folder, num_levels=8).num_levels == 8
    with pytest.raises(ValueError, match="`num_levels` is 7, but image 0 has values from 0 to 7"):
        load_images(train_data_dir=folder, num_levels=7)


def test_arrays_with_their_channels_first_are_not_taken_for_low_pictures(tmp_path):
    features = datasets.Features({"image": datasets.Array3D((3, 8, 8), "uint8")})
    folder = write_parquet(tmp_path / "data", {"image": list(np.zeros((4, 3, 8, 8), dtype=np.uint8))}, features)
    with pytest.raises(ValueError, match=r"looks like \(C, H, W\): .* or confirm by `num_channels=8`"):
        load_images(train_data_dir=folder)
    assert load_images(train_data_dir=folder, num_channels=8).shape == (8, 3, 8)


@pytest.fixture
def damaged(tmp_path) -> str:
    """Eight pictures of the constants 0 to 7, of which 2 is empty and 5 a page of text."""
    pictures = [PIL.Image.fromarray(np.full((4, 6), i, dtype=np.uint8)) for i in range(8)]
    folder = write_folder(tmp_path / "data", {"train": pictures, "test": pictures[:2]})
    (tmp_path / "data" / "train" / "2.png").write_bytes(b"")
    (tmp_path / "data" / "train" / "5.png").write_text("<html>404</html>")
    return folder


@pytest.mark.parametrize("num_workers", [0, 2])
def test_unreadable_images_are_named_or_left_out(damaged, num_workers):
    with pytest.raises(ValueError, match=r"\(train\[2\]\) .*2\.png: It is empty\. 1 more images .*`skip_unreadable_images`"):
        load_images(train_data_dir=damaged, num_workers=num_workers)
    data = load_images(train_data_dir=damaged, skip_unreadable_images=True, num_workers=num_workers)
    assert [int(data.train[i]["images"].max()) for i in range(len(data.train))] == [0, 1, 3, 4, 6, 7]
    assert len(data.unreadable) == 2 and "5.png: It is no image that Pillow knows" in data.unreadable[1]


def test_the_check_is_repeated_for_files_that_change(tmp_path, damaged):
    """What it found is kept, by the files' times: a second start decodes nothing, a repaired or damaged file is seen."""
    load_images(train_data_dir=damaged, skip_unreadable_images=True)
    for name in ("2.png", "5.png"):
        PIL.Image.new("L", (6, 4)).save(tmp_path / "data" / "train" / name)
    assert len(load_images(train_data_dir=damaged).train) == 8
    (tmp_path / "data" / "train" / "7.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"7\.png: It is empty"):
        load_images(train_data_dir=damaged)


def test_a_second_check_decodes_nothing(tmp_path, damaged, monkeypatch):
    load_images(train_data_dir=damaged, skip_unreadable_images=True)
    monkeypatch.setattr("vdm_diffusers.data.checking._describe", None)
    assert len(load_images(train_data_dir=damaged, skip_unreadable_images=True).train) == 6


def test_a_row_without_an_image_is_named(tmp_path):
    features = datasets.Features({"image": datasets.Image()})
    folder = write_parquet(tmp_path / "data", {"image": [random_picture()] * 3 + [None]}, features)
    with pytest.raises(ValueError, match=r"\(train\[3\]\): There is no image"):
        load_images(train_data_dir=folder)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ({"train": 1}, "has 1 images, but at least 3 are needed"),
        ({"train": 2}, "has 2 images, but at least 3 are needed"),
        ({"train": 8, "test": 1}, "The held-out split 'test' has 1 images, but a standard error needs 2"),
    ],
)
def test_too_few_images_are_refused(tmp_path, images, message):
    pictures = {split: [random_picture() for _ in range(number)] for split, number in images.items()}
    with pytest.raises(ValueError, match=message):
        load_images(train_data_dir=write_folder(tmp_path / "data", pictures))


def test_an_empty_split_is_refused(tmp_path):
    features = datasets.Features({"image": datasets.Image()})
    folder = write_parquet(tmp_path / "data", {"image": [random_picture()] * 3}, features)
    datasets.Dataset.from_dict({"image": []}, features=features).to_parquet(tmp_path / "data" / "test.parquet")
    with pytest.raises(ValueError, match="\"test\" corresponds to no data|The split 'test' has no images"):
        load_images(train_data_dir=folder)


def test_images_of_any_size_and_mode_are_prepared_where_that_is_asked_for(tmp_path):
    pictures = [random_picture("RGB", (6 + i, 5)) for i in range(3)] + [random_picture("L", (9, 9))]
    folder = write_folder(tmp_path / "data", {"train": pictures, "test": pictures[:2]})
    with pytest.raises(ValueError, match="and 1 more: make them alike by `resize` with `center_crop` and `convert='RGB'`"):
        load_images(train_data_dir=folder)
    preparation = Preparation(resize=4, center_crop=True, convert="RGB")
    data = load_images(train_data_dir=folder, preparation=preparation)
    assert (data.shape, data.num_levels, data.preparation) == ((3, 4, 4), 256, preparation)
    with pytest.raises(ValueError, match="`resize` is 100000, but must be at least 1 and at most 8,192"):
        Preparation(resize=100_000)
    with pytest.raises(ValueError, match="`resize` is 4, but 'digits' has no choice of it"):
        load_images(preparation=Preparation(resize=4))
