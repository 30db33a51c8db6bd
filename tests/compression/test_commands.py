"""The commands: image files in, one file, and image files out that hold the same pixels."""

import re
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from test_codec import tiny_pipeline

from vdm_diffusers import compress, decompress
from vdm_diffusers.compression.other_codecs import rates_of_others
from vdm_diffusers.data.image_files import write_image


def model(folder: Path, **options) -> str:
    tiny_pipeline(**options).save_pretrained(folder / "model")
    return str(folder / "model")


def run(command, *arguments: object) -> None:
    command.main([str(argument) for argument in arguments])


def refusal(capsys, command, *arguments: object) -> str:
    with pytest.raises(SystemExit) as stopped:
        run(command, *arguments)
    assert isinstance(stopped.value.code, str) and "\n" not in stopped.value.code
    return stopped.value.code


def pictures(folder: Path, mode: str, number: int, size: tuple[int, int] = (4, 3)) -> dict[str, np.ndarray]:
    """Files in two folders, with their pixels by name."""
    source, found = np.random.default_rng(0), {}
    for index in range(number):
        depth = {"L": (), "RGB": (3,), "RGBA": (4,), "LA": (2,), "I;16": ()}[mode]
        dtype = np.uint16 if mode == "I;16" else np.uint8
        array = source.integers(0, np.iinfo(dtype).max + 1, (*size, *depth), dtype=dtype)
        name = f"{'ab'[index % 2]}/image {index}.png"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(array).save(folder / name)
        found[name] = array
    return found


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("LA", 2), ("RGB", 3), ("RGBA", 4), ("I;16", 1)])
def test_folders_of_images_come_back(mode, channels, tmp_path, capsys):
    name = model(tmp_path, channels=channels, size=(4, 3), num_levels=65_536 if mode == "I;16" else 256)
    expected = pictures(tmp_path / "images", mode, 7)
    written, model_options = tmp_path / "images.vdm", ("--pretrained_model_name_or_path", name)
    steps = ("--num_inference_steps", 2, "--images_per_block", 4)
    run(compress, tmp_path / "images", *model_options, "--output", written, *steps)
    output = capsys.readouterr().out
    rates = {row: float(rate) for row, rate in re.findall(r"^\| (\w+)[^|]*\| ([\d.]+) \|$", output, re.MULTILINE)}
    assert {"gross", "net", "bound", "LZMA", "PNG"} <= rates.keys()
    assert rates["gross"] == pytest.approx(8 * written.stat().st_size / (7 * 12 * channels), abs=1e-4)
    run(decompress, written, *model_options, "--output_dir", tmp_path / "again")
    assert "7 images are in" in capsys.readouterr().out
    found = {path.relative_to(tmp_path / "again").as_posix(): path for path in (tmp_path / "again").rglob("*.png")}
    assert found.keys() == expected.keys()
    for file, array in expected.items():
        assert np.array_equal(np.asarray(PIL.Image.open(found[file])), array)


def test_black_and_white_comes_back(tmp_path):
    name = model(tmp_path, size=(4, 3), num_levels=2)
    picture = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 2, (4, 3)).astype(bool))
    picture.save(tmp_path / "x.png")
    rest = ("--pretrained_model_name_or_path", name)
    run(compress, tmp_path / "x.png", *rest, "--output", tmp_path / "f", "--num_inference_steps", 2)
    run(decompress, tmp_path / "f", *rest, "--output_dir", tmp_path / "again")
    written = PIL.Image.open(tmp_path / "again" / "x.png")
    assert written.mode == picture.mode == "1" and np.array_equal(np.asarray(written), np.asarray(picture))


@pytest.mark.parametrize(("num_levels", "array"), [(256, np.eye(4, 3) > 0), (65_536, np.eye(4, 3).astype(np.uint8))])
def test_pictures_that_would_be_others_afterwards_are_refused(num_levels, array, tmp_path, capsys):
    name = model(tmp_path, size=(4, 3), num_levels=num_levels)
    PIL.Image.fromarray(array).save(tmp_path / "x.png")
    message = refusal(capsys, compress, tmp_path / "x.png", "--pretrained_model_name_or_path", name, "--output", tmp_path / "f")
    assert f"but what is read back would be one of {num_levels}: " in message
    assert ("`--convert L`" in message) == (num_levels == 256)


def test_a_model_of_classes_is_told_none(tmp_path, capsys):
    name = model(tmp_path, size=(4, 3), num_levels=256, num_class_embeds=4)
    pictures(tmp_path / "images", "L", 5)
    model_options = ("--pretrained_model_name_or_path", name)
    run(compress, tmp_path / "images", *model_options, "--output", tmp_path / "f", "--num_inference_steps", 2)
    assert "| bound of the chain |" in capsys.readouterr().out
    run(decompress, tmp_path / "f", *model_options, "--output_dir", tmp_path / "again")


@pytest.mark.parametrize(("num_levels", "dtype"), [(256, np.uint8), (65_536, np.uint16)])
def test_arrays_come_back(num_levels, dtype, tmp_path):
    """Also three channels of 16 bits, which no PNG of Pillow holds."""
    name = model(tmp_path, channels=3, size=(2, 2), num_levels=num_levels)
    array = np.random.default_rng(0).integers(0, num_levels, (2, 2, 3), dtype=dtype)
    np.save(tmp_path / "x.npy", array)
    model_options = ("--pretrained_model_name_or_path", name)
    run(compress, tmp_path / "x.npy", *model_options, "--output", tmp_path / "f", "--num_inference_steps", 2)
    run(decompress, tmp_path / "f", *model_options, "--output_dir", tmp_path / "again")
    found = np.load(tmp_path / "again" / "x.npy")
    assert found.dtype == dtype and np.array_equal(found, array)


def test_a_name_gets_the_suffix_of_what_is_written(tmp_path):
    image = torch.zeros(1, 2, 2, dtype=torch.uint8)
    assert write_image(tmp_path, "a.jpg", image, 256).name == "a.jpg.png"
    assert write_image(tmp_path, "000001", image, 256).name == "000001.png"
    with pytest.raises(ValueError, match="is there already"):
        write_image(tmp_path, "a.jpg", image, 256)


@pytest.mark.parametrize("name", ["../a", "/a", "a/../../b", "a\\b", "C:a", "a\0", "a//b", "x" * 300, "a\nb"])
def test_names_that_lead_elsewhere_are_refused(name, tmp_path):
    with pytest.raises(ValueError, match="no name that a file below a folder can have"):
        write_image(tmp_path / "below", name, torch.zeros(1, 2, 2, dtype=torch.uint8), 256)
    assert not list(tmp_path.rglob("*"))


def test_what_is_wrong_is_said_before_any_work(tmp_path, capsys):
    name = model(tmp_path)
    images = pictures(tmp_path / "images", "RGB", 3)
    rest = ("--pretrained_model_name_or_path", name, "--output", tmp_path / "f", "--num_inference_steps", 2)
    assert "Name image files or folders" in refusal(capsys, compress, *rest)
    assert "There is no file or folder" in refusal(capsys, compress, tmp_path / "none", *rest)
    (tmp_path / "empty").mkdir()
    assert "There are no images in" in refusal(capsys, compress, tmp_path / "empty", *rest)
    write_image(tmp_path / "large", "black", torch.zeros(1, 5, 5, dtype=torch.uint8), 256)
    assert "but this is a model of" in refusal(capsys, compress, tmp_path / "large", *rest)
    twice = [tmp_path / "images" / next(iter(images))] * 2
    assert "Two images would be written back as" in refusal(capsys, compress, *twice, *rest)
    assert "`--output` is missing" in refusal(capsys, compress, tmp_path / "images", *rest[:2])
    missing = refusal(capsys, compress, tmp_path / "images", *rest, "--few_steps_dir", tmp_path / "none")
    assert "`--few_steps_dir`" in missing and "has no scheduler of few steps" in missing
    assert not (tmp_path / "f").exists() and not list(tmp_path.glob("*.unfinished"))
    assert "Name one compressed file" in refusal(capsys, decompress, *rest[:2], "--output_dir", tmp_path / "x")
    assert "is there already" in refusal(capsys, decompress, tmp_path / "f", *rest[:2], "--output_dir", tmp_path / "images")


def test_an_image_with_too_many_levels_is_named(tmp_path, capsys):
    name = model(tmp_path, size=(4, 3))
    pictures(tmp_path / "images", "L", 2)
    rest = ("--pretrained_model_name_or_path", name, "--output", tmp_path / "f")
    message = refusal(capsys, compress, tmp_path / "images", *rest)
    assert "image 0.png' has the level" in message and "the model has 17 levels" in message


def test_what_a_cut_file_has_is_written(tmp_path, capsys):
    name = model(tmp_path, size=(4, 3), num_levels=256)
    expected = pictures(tmp_path / "images", "L", 9)
    rest = ("--pretrained_model_name_or_path", name)
    settings = ("--num_inference_steps", 2, "--images_per_block", 3, "--no_compare")
    run(compress, tmp_path / "images", *rest, "--output", tmp_path / "f", *settings)
    content = (tmp_path / "f").read_bytes()
    (tmp_path / "f").write_bytes(content[:-60])
    message = refusal(capsys, decompress, tmp_path / "f", *rest, "--output_dir", tmp_path / "again")
    assert "cut off" in message and "The 6 images before that are in" in message
    found = sorted(path.relative_to(tmp_path / "again").as_posix() for path in (tmp_path / "again").rglob("*.png"))
    assert found == sorted(expected)[:6]


def test_other_codecs_are_without_loss():
    """Their rates are sizes of files that hold the pixels: of noise, above its own bits."""
    images = torch.randint(0, 256, (5, 3, 8, 8), dtype=torch.uint8)
    rates = rates_of_others(images, 256)
    assert {"LZMA", "PNG", "WEBP"} <= rates.keys() and "GIF" not in rates
    assert all(rate > 8 for rate in rates.values())
    assert rates_of_others(torch.zeros(5, 1, 8, 8, dtype=torch.uint8), 256)["PNG"] < 8
