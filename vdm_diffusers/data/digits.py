"""The embedded digits: the data set that needs nothing but scikit-learn."""

import numpy as np

from ..guards.messages import Argument, refuse_if
from .image_data import ImageData, ImageDataset


TRAIN_SIZE = 1500
NUMERALS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def load_digits(label_column: str | None = None, caption_column: str | None = None) -> ImageData:
    """scikit-learn's 1,797 handwritten digits, 8×8 with 17 grey levels, in a fixed random split of 1,500 and 297.

    Their labels come along if `label_column` is `"label"`, and captions such as "a handwritten three" if `caption_column` is
    `"caption"`.
    """
    text = "{} is {!r}, but that of the digits is {!r}."
    refuse_if(label_column not in (None, "label"), text, Argument("label_column"), label_column, "label")
    refuse_if(caption_column not in (None, "caption"), text, Argument("caption_column"), caption_column, "caption")
    from sklearn import datasets

    digits = datasets.load_digits()
    order = np.random.RandomState(0).permutation(len(digits.images))
    rows = [
        {
            "image": digits.images[i].astype(np.uint8),
            "label": int(digits.target[i]),
            "caption": f"a handwritten {NUMERALS[digits.target[i]]}",
        }
        for i in order
    ]
    return ImageData(
        train=ImageDataset(rows[:TRAIN_SIZE], "image", label_column, caption_column=caption_column),
        validation=ImageDataset(rows[TRAIN_SIZE:], "image", label_column, caption_column=caption_column),
        shape=(1, 8, 8),
        num_levels=17,
        num_classes=None if label_column is None else 10,
        name="digits",
        class_names=None if label_column is None else [str(digit) for digit in digits.target_names],
        has_captions=caption_column is not None,
    )
