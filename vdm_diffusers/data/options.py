"""What commands are told of images: each option declared once."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from ..command_line import option
from ..guards.arguments import Count, Within, check_fields
from ..guards.messages import Message
from .decoding import CONVERSIONS, Preparation


SHORT_NAMES = {"train_data_dir": "`--data_dir`", "validation_split": "`--split`"}
"""How commands that don't train call two of these options, in messages."""


@dataclass(kw_only=True)
class SourceOptions:
    """Where images come from, as [`load_images`] takes it; `ValueError` for what no loader can use."""

    dataset_name: str | None = option(None, "A data set on the Hub, or digits, or emoji.")
    dataset_config_name: str | None = option(None, "Its configuration.")
    train_data_dir: str | None = option(
        None, "A folder of images or parquet files. Without either: the embedded digits.", aliases=("data_dir",)
    )
    cache_dir: str | None = option(None, "Where downloaded data sets and models are kept.")
    image_column: str | None = option(None, "The column of images. Default: the only one, or image.")
    validation_split: str | None = option(
        None, "Held-out split. Default: validation or test, else a twentieth of the training set.", aliases=("split",)
    )

    def __post_init__(self):
        check_fields(self)
        if self.cache_dir is not None:
            folder = Path(self.cache_dir).absolute()
            if not next(path for path in (folder, *folder.parents) if path.exists()).is_dir():
                raise ValueError(Message("{cache_dir} {!r} is no folder, nor can one be made there.", self.cache_dir))

    def loading(self) -> dict[str, Any]:
        """Arguments of the functions that load images."""
        return {field.name: getattr(self, field.name) for field in fields(SourceOptions)}


@dataclass(kw_only=True)
class DataOptions(SourceOptions):
    """
    Where images come from, which of their labels and captions count, and what is done to them.

    Attributes:
        preparation ([`Preparation`]): The last of these, made of the options.
    """

    label_column: str | None = option(None, "A column of class labels, for a class-conditional model.")
    caption_column: str | None = option(None, "A column of captions, texts or lists of texts, or a field such as json.caption.")
    num_spatial_dims: Annotated[int, Within(1, 3)] | None = option(
        None, "Dimensions of a sample beside its channels. Default: 1 of arrays (L), 3 of (D, H, W, C), 2 of all others."
    )
    resize: Count | None = option(
        None, "Resize images so that their shorter side has so many pixels, which makes them another data set."
    )
    center_crop: bool = option(False, "Cut out the middle square of resized images.")
    convert: Literal[CONVERSIONS] | None = option(
        None, "Convert images to this PIL mode: palettes and CMYK become colours, transparency is dropped."
    )
    skip_unreadable_images: bool = option(
        False, "Leave out images that can't be read, instead of refusing them; training lists them in unreadable_images.txt."
    )

    def __post_init__(self):
        super().__post_init__()
        self.preparation = Preparation(self.resize, self.center_crop, self.convert)

    def loading(self) -> dict[str, Any]:
        names = ("label_column", "caption_column", "num_spatial_dims", "preparation", "skip_unreadable_images")
        return super().loading() | {name: getattr(self, name) for name in names}
