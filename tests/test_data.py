"""Image data: exact values from every source, and one sentence for everything unsuitable."""

import datasets
import numpy as np
import PIL.Image
import pytest
import torch
from sklearn.datasets import load_digits as sklearn_digits

from vdm_diffusers.data import image_to_tensor, load_images


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


def test_digits_are_scikit_learn_s_split_in_two():
    data = load_images()
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
        ({"image_column": "picture"}, "`--image_column` is 'picture', but the columns are 'image'"),
        ({"label_column": "label"}, "`--label_column` is 'label', but the columns are"),
        ({"resolution": 32}, "`--resolution` is 32, but the images are 4×6"),
        ({"num_channels": 3}, "`--num_channels` is 3, but the images have 1"),
        ({"validation_split": "dev"}, "`--validation_split` is 'dev', but the splits are 'train'"),
        ({"num_levels": 17}, "`--num_levels` is 17, but image 0 has values from"),
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
    with pytest.raises(ValueError, match="`--label_column` 'label' must hold integers from 0, but holds -1"):
        load_images(train_data_dir=folder, label_column="label")


def test_unknown_data_sets_are_named(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="`--train_data_dir` .*nowhere.* is no folder"):
        load_images(train_data_dir=str(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="`--train_data_dir` .*empty.* could not be loaded"):
        load_images(train_data_dir=str(tmp_path / "empty"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="`--dataset_name` 'user/nothing' could not be loaded"):
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
    with pytest.raises(ValueError, match="`--num_levels` is 256, but that of the digits is 17"):
        load_images(num_levels=256)
    with pytest.raises(ValueError, match="`--label_column` is 'digit'"):
        load_images(label_column="digit")
