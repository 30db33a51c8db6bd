"""Image files by name: found, read one by one, and written so that reading them gives the same integers."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NamedTuple

import numpy as np
import PIL.Image
from torch import Tensor
from torch.utils.data import Dataset

from ..guards.messages import Message
from ..pictures import UnsuitableImage
from .decoding import AS_STORED, Decoder, Preparation


PICTURE, ARRAY = ".png", ".npy"
"""What images are written as, and what no picture holds."""

MAX_NAME_BYTES = 250


class ImageFile(NamedTuple):
    """A file, and its name in the folder that it was found in."""

    path: Path
    name: str


def find_image_files(paths: Sequence[Path]) -> list[ImageFile]:
    """
    Files as they are given, and all images and arrays below folders, by name.

    Raises `ValueError` for what is not there, for folders without any, and for names that [`write_image`] can't write again.
    """
    suffixes = {*PIL.Image.registered_extensions(), ARRAY}
    found = []
    for path in paths:
        if not path.exists():
            raise ValueError(f"There is no file or folder {str(path)!r}.")
        inside = sorted(file for file in path.rglob("*") if file.suffix.lower() in suffixes and file.is_file())
        if path.is_dir() and not inside:
            raise ValueError(f"There are no images in {str(path)!r}: name a folder of image files, or the files.")
        found += [ImageFile(file, file.relative_to(path).as_posix()) for file in inside] or [ImageFile(path, path.name)]
    for suffix in (PICTURE, ARRAY):
        names = Counter(_written_name(file.name, suffix) for file in found)
        if doubled := next((name for name, times in names.items() if times > 1), None):
            raise ValueError(f"Two images would be written back as {doubled!r}: name one folder above both, or rename one.")
    return found


class ImageFiles(Dataset):
    """
    Image files as items `{"images": (C, *size) integers}`, read when they are asked for.

    `ValueError`, naming the file, for one that can't be read, that has levels beyond `num_levels`, or that would be another
    picture after [`write_image`].
    """

    def __init__(self, files: Sequence[ImageFile], num_levels: int, preparation: Preparation = AS_STORED):
        self.files, self.num_levels, self.decoder = files, num_levels, Decoder(preparation)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        path = self.files[index].path
        is_array = path.suffix.lower() == ARRAY
        try:
            pixels, levels = self.decoder(_array(path) if is_array else path.read_bytes())
        except (UnsuitableImage, OSError) as error:
            raise ValueError(Message("{!r}: {}", str(path), error)) from error
        if not is_array and levels != (written := levels_of_pictures(self.num_levels)):
            text = "{!r} is a picture of {} levels, but what is read back would be one of {}: "
            text += "{convert:L} or `RGB` makes it so." if written == 256 else "give pictures of that depth."
            raise ValueError(Message(text, str(path), levels, written))
        if (highest := int(pixels.max())) >= self.num_levels:
            raise ValueError(f"{str(path)!r} has the level {highest}, but the model has {self.num_levels} levels, from 0.")
        return {"images": pixels}


def _array(path: Path) -> np.ndarray:
    try:
        return np.load(path, allow_pickle=False)
    except ValueError as error:
        raise UnsuitableImage("It is no array that can be read without running code.") from error


def levels_of_pictures(num_levels: int) -> int:
    """How many levels a picture's format has that holds so many: 2, 256 or 65,536."""
    return next((levels for levels in (2, 256) if num_levels <= levels), 1 << 16)


def write_image(folder: Path, name: str, image: Tensor, num_levels: int) -> Path:
    """
    Write an integer image `(C, *size)` below a folder: a PNG where one holds it, else, or by its name, an array `(*size, C)`.

    A name with another suffix gets that one more. Raises `ValueError` for a name that leads out of the folder, or is there
    already.
    """
    picture = None if name.lower().endswith(ARRAY) else _picture(image, num_levels)
    path = folder / _written_name(name, ARRAY if picture is None else PICTURE)
    with _new_file(path) as file:
        if picture is None:
            np.save(file, image.movedim(0, -1).numpy().astype(_dtype(num_levels)))
        else:
            picture.save(file, "PNG")
    return path


def _new_file(path: Path) -> BinaryIO:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("xb")
    except (FileExistsError, NotADirectoryError) as error:
        raise ValueError(f"{str(path)!r} is there already, or has a file where its folder should be.") from error


def _written_name(name: str, suffix: str) -> str:
    """The name of a file below a folder, with `/`, that has the suffix; `ValueError` if there can be none."""
    name = name if name.lower().endswith(suffix) else name + suffix
    path = PurePosixPath(name)
    plain = name.isprintable() and "\\" not in name and ":" not in name and len(name.encode()) <= MAX_NAME_BYTES
    if not plain or path.is_absolute() or ".." in path.parts or path.as_posix() != name or not path.name:
        raise ValueError(f"{name[:60]!r} is no name that a file below a folder can have on every system: rename it.")
    return name


def _picture(image: Tensor, num_levels: int) -> PIL.Image.Image | None:
    channels, levels = image.shape[0], levels_of_pictures(num_levels)
    if image.ndim != 3 or channels > 4 or num_levels > 1 << 16 or (levels != 256 and channels > 1):
        return None
    array = image.movedim(0, -1).numpy().astype(bool if levels == 2 else _dtype(num_levels))
    return PIL.Image.fromarray(array[..., 0] if channels == 1 else np.ascontiguousarray(array))


def _dtype(num_levels: int) -> type[np.integer]:
    return np.uint8 if num_levels <= 256 else np.uint16 if num_levels <= 1 << 16 else np.int32
