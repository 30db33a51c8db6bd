"""What a data set of images is to everything that learns from it: its items, and what is known of all of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from ..conditioning import CAPTIONS, LABELS
from ..guards.loading import DataError
from ..guards.messages import Message
from ..pictures import UnsuitableImage
from .captions import captions_in, stored_caption
from .checking import Format, describe_format
from .decoding import AS_STORED, PLAIN_DECODER, Decoder, Preparation


class ImageDataset(Dataset):
    """Rows of images as `{"images": (C, *size) integers}`, with `LABELS: int` and `CAPTIONS: list[str]` if there are any.

    Args:
        rows: A sequence of mappings, such as a [`datasets.Dataset`].
        image_column (`str`): Its images, in any form that a [`Decoder`] takes.
        label_column (`str`, *optional*): Its integer labels.
        decoder ([`Decoder`]): What reads them.
        format (`tuple`, *optional*): The shape and number of levels that every image must have.
        caption_column (`str`, *optional*): Its captions: texts, or lists of texts. A missing one is `""`.

    An item raises [`DataError`] if its image can't be read, or has another format.
    """

    def __init__(
        self,
        rows: Sequence[dict[str, Any]],
        image_column: str = "image",
        label_column: str | None = None,
        decoder: Decoder = PLAIN_DECODER,
        format: Format | None = None,
        caption_column: str | None = None,
    ):
        self.rows, self.image_column, self.label_column, self.caption_column = rows, image_column, label_column, caption_column
        self.decoder, self.format = decoder, format

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Tensor | int | list[str]]:
        row = self.rows[index]
        return {"images": self._pixels(row[self.image_column], index)} | told(row, self.label_column, self.caption_column)

    def captions(self, index: int) -> list[str]:
        """Those of an item, its image unread; the empty one if there are none."""
        return [""] if self.caption_column is None else captions_in(stored_caption(self.rows[index], self.caption_column))

    def _pixels(self, stored: Any, index: int) -> Tensor:
        path = stored.get("path") if isinstance(stored, dict) else None
        try:
            pixels, levels = self.decoder(stored)
            if self.format not in (None, found := (tuple(pixels.shape), levels)):
                raise UnsuitableImage(f"It is {describe_format(found)} instead of {describe_format(self.format)}.")
        except UnsuitableImage as error:
            text = "The image {} is not what it was when it was checked. {}"
            raise DataError(Message(text, path or index, error)) from error
        return pixels


def told(row: Mapping[str, Any], label_column: str | None, caption_column: str | None) -> dict[str, int | list[str]]:
    """What an item has beside its image."""
    label = {} if label_column is None else {LABELS: row[label_column]}
    return label if caption_column is None else label | {CAPTIONS: captions_in(stored_caption(row, caption_column))}


@dataclass
class ImageData:
    """A training and a validation set of images of one shape.

    Attributes:
        train, validation (`Dataset`): Their items are `{"images": (C, *size) integers in [0, num_levels)}`, and
            their condition beside it: `LABELS` in `[0, num_classes)` if there are classes, and `CAPTIONS`, a list of at least
            one text, if `has_captions`. `train` may be an [`ImageStream`].
        shape (`tuple[int, ...]`): `(C, *size)`; of images, channels, height and width.
        num_levels (`int`): Number of grey levels.
        num_classes (`int`, *optional*): Number of classes.
        name (`str`): For messages and the model card.
        origin (`str`, *optional*): Of latents, which images they were encoded from and by what.
        class_names (`list[str]`, *optional*): Names of the classes in the order of their labels, where the data have them.
        preparation ([`Preparation`]): What was done to the images beyond reading them.
        unreadable (`tuple[str, ...]`): A sentence for every image that was left out because it can't be read.
        has_captions (`bool`): Whether the items have `CAPTIONS`.
        attribution (`str`, *optional*): Whose work the images are and under what licence, in sentences for the model card.
    """

    train: Dataset | IterableDataset
    validation: Dataset
    shape: tuple[int, ...]
    num_levels: int
    num_classes: int | None
    name: str
    origin: str | None = None
    class_names: list[str] | None = None
    preparation: Preparation = AS_STORED
    unreadable: tuple[str, ...] = ()
    has_captions: bool = False
    attribution: str | None = None
