"""Decoding: the values that were stored, for every mode, depth and container, or one sentence."""

import io
import struct
import zlib

import numpy as np
import PIL.Image
import pytest

from vdm_diffusers.data.decoding import Decoder, Preparation, UnreadableImage
from vdm_diffusers.pictures import UnsuitableImage


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(width: int, height: int, depth: int, colours: int, rows: list[bytes], *chunks: bytes) -> bytes:
    """A PNG written by hand; Pillow can't write all of them."""
    header = struct.pack(">IIBBBBB", width, height, depth, colours, 0, 0, 0)
    content = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(chunks) + chunk(b"IDAT", content) + chunk(b"IEND", b"")


def written(picture: PIL.Image.Image, format: str, **options) -> bytes:
    file = io.BytesIO()
    picture.save(file, format, **options)
    return file.getvalue()


def picture(mode: str = "RGB", size: tuple[int, int] = (6, 4)) -> PIL.Image.Image:
    return PIL.Image.frombytes(mode, size, np.random.default_rng(0).bytes(len(PIL.Image.new(mode, size).tobytes())))


def decoded(content: bytes, **preparation) -> tuple[np.ndarray, int]:
    """`(H, W, C)` and the number of levels."""
    pixels, levels = Decoder(Preparation(**preparation))({"bytes": content, "path": None})
    assert int(pixels.min()) >= 0 and int(pixels.max()) < levels
    return pixels.permute(1, 2, 0).numpy(), levels


LOSSLESS = {
    "PNG": ("L", "LA", "RGB", "RGBA"),
    "TIFF": ("L", "LA", "RGB", "RGBA"),
    "compressed TIFF": ("L", "LA", "RGB", "RGBA"),
    "TGA": ("L", "LA", "RGB", "RGBA"),
    "WEBP": ("RGB", "RGBA"),
    "BMP": ("L", "RGB"),
    "PPM": ("L", "RGB"),
}


@pytest.mark.parametrize(("format", "mode"), [(format, mode) for format, modes in LOSSLESS.items() for mode in modes])
def test_eight_bits_are_read_as_they_were_stored(format, mode):
    stored = np.random.default_rng(0).integers(0, 256, (4, 6, len(mode)), dtype=np.uint8)
    image = PIL.Image.fromarray(stored.squeeze(2) if mode == "L" else stored, mode=mode)
    options = {"WEBP": {"lossless": True, "exact": True}, "compressed TIFF": {"compression": "tiff_lzw"}}.get(format, {})
    pixels, levels = decoded(written(image, format.split()[-1], **options))
    np.testing.assert_array_equal(pixels, stored)
    assert levels == 256


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_grey_of_every_depth_has_the_levels_of_its_file(depth):
    stored = np.array([[0, 1, 2**depth - 1, 0], [1, 2**depth - 1, 0, 2 ** (depth - 1)]])
    rows = [int("".join(f"{value:0{depth}b}" for value in row).ljust(8, "0"), 2) for row in stored]
    rows = [row.to_bytes(max(1, depth // 2), "big") for row in rows]
    pixels, levels = decoded(png(4, 2, depth, 0, rows))
    np.testing.assert_array_equal(pixels[:, :, 0], stored)
    assert levels == 2**depth
    grey, levels = decoded(png(4, 2, depth, 0, rows), convert="L")
    expected = stored >> 8 if depth == 16 else stored * 255 // (2**depth - 1)
    np.testing.assert_array_equal(grey[:, :, 0], expected)
    assert levels == 256


@pytest.mark.parametrize(("maximum", "width"), [(3, 1), (15, 1), (255, 1), (1023, 2), (65535, 2)])
def test_portable_greymaps_have_the_levels_that_they_say(maximum, width):
    stored = [0, 1, maximum // 2, maximum]
    content = b"P5 4 1 %d\n" % maximum + b"".join(value.to_bytes(width, "big") for value in stored)
    pixels, levels = decoded(content)
    assert pixels.flatten().tolist() == stored and levels == maximum + 1


def test_sixteen_bits_of_a_tiff_in_either_order():
    stored = np.array([[0, 258, 65535]], dtype=np.uint16)
    for array in (stored, stored.astype(">u2")):
        pixels, levels = decoded(written(PIL.Image.fromarray(array), "TIFF"))
        assert pixels.flatten().tolist() == [0, 258, 65535] and levels == 65536


@pytest.mark.parametrize("colours", [2, 4, 6])
def test_sixteen_bits_a_channel_are_not_reduced_unasked(colours):
    channels = {2: 3, 4: 2, 6: 4}[colours]
    content = png(1, 1, 16, colours, [bytes(range(1, 2 * channels + 1))])
    with pytest.raises(UnsuitableImage, match="16 bits a channel, of which Pillow reads 8: `convert='RGB'`"):
        decoded(content)
    upper = list(range(1, 2 * channels + 1, 2))[: 1 if colours == 4 else 3]
    assert decoded(content, convert="RGB")[0].flatten().tolist() == upper * (3 // len(upper))


TURNS = {
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.transpose(1, 0, 2),
    6: lambda x: x.transpose(1, 0, 2)[:, ::-1],
    7: lambda x: x[::-1, ::-1].transpose(1, 0, 2),
    8: lambda x: x.transpose(1, 0, 2)[::-1],
}
"""What the EXIF specification says of where the stored first row and column are shown."""


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP"])
def test_images_are_turned_as_their_tag_says(orientation, format):
    image = picture()
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if format == "WEBP" else {}
    pixels, _ = decoded(written(image, format, exif=exif, **options))
    np.testing.assert_array_equal(pixels, TURNS[orientation](np.asarray(image)))


@pytest.mark.parametrize("format", ["PNG", "TIFF", "GIF", "WEBP"])
def test_pages_and_frames_are_not_dropped_unasked(format):
    first, second = PIL.Image.new("RGB", (3, 3), "blue"), PIL.Image.new("RGB", (3, 3), "red")
    content = written(first, format, save_all=True, append_images=[second], **{"lossless": True} if format == "WEBP" else {})
    with pytest.raises(UnsuitableImage, match="holds 2 pages or frames.*`convert='RGB'` takes the first"):
        decoded(content)
    assert decoded(content, convert="RGB")[0][0, 0].tolist() == [0, 0, 255]


@pytest.mark.parametrize(("mode", "format"), [("P", "PNG"), ("P", "GIF"), ("PA", "TIFF"), ("CMYK", "TIFF"), ("CMYK", "JPEG")])
def test_colours_by_another_name_are_converted_where_that_is_asked_for(mode, format):
    red = PIL.Image.new("RGB", (4, 4), "red")
    red = red.convert("P").convert("PA") if mode == "PA" else red.convert(mode)
    with pytest.raises(UnsuitableImage, match=rf"PIL mode '{mode}'.*`convert='RGB'`"):
        decoded(written(red, format))
    for convert, colour in {"RGB": [255, 0, 0], "RGBA": [255, 0, 0, 255], "L": [76], "LA": [76, 255]}.items():
        pixels, _ = decoded(written(red, format), convert=convert)
        assert np.abs(pixels[0, 0].astype(int) - colour).max() <= 1


def test_transparency_is_kept_or_dropped_where_that_is_asked_for():
    palette = png(1, 1, 8, 3, [b"\0"], chunk(b"PLTE", bytes([9, 8, 7])), chunk(b"tRNS", b"\x05"))
    assert decoded(palette, convert="RGBA")[0].flatten().tolist() == [9, 8, 7, 5]
    assert decoded(palette, convert="RGB")[0].flatten().tolist() == [9, 8, 7]
    key = png(2, 1, 8, 0, [b"\1\2"], chunk(b"tRNS", b"\0\1"))
    with pytest.raises(UnsuitableImage, match="colours means transparent"):
        decoded(key)
    assert decoded(key, convert="LA")[0].tolist() == [[[1, 0], [2, 255]]]


@pytest.mark.parametrize(
    ("mode", "format"), [("I", "TIFF"), ("F", "TIFF"), ("LAB", "TIFF"), ("YCbCr", "TIFF"), ("L", "JPEG2000")]
)
def test_what_is_not_known_to_be_levels_is_refused(mode, format):
    with pytest.raises(UnsuitableImage, match=f"PIL mode '{mode}'|reads {format} files like it without loss"):
        decoded(written(PIL.Image.new(mode, (4, 4)), format))


def test_unreadable_files_are_named_as_such():
    whole = written(picture(size=(64, 64)), "PNG")
    bomb, half_a_bomb = (png(side, side, 1, 0, [b""]) for side in (20_000, 10_000))
    cases = {
        b"": "It is empty",
        b"<!DOCTYPE html><html></html>": "no image that Pillow knows; it begins with b'<!DOCTYPE ht'",
        b'<svg xmlns="http://www.w3.org/2000/svg"/>': "no image that Pillow knows",
        whole[: len(whole) // 2]: "truncated",
        written(picture(size=(64, 64)), "JPEG")[:1000]: "truncated",
        bomb: "exceeds limit of",
        half_a_bomb: "exceeds limit of",
    }
    for content, message in cases.items():
        with pytest.raises(UnreadableImage, match=message):
            decoded(content)
    for stored in (None, {"bytes": None, "path": None}, {"bytes": None, "path": "/nowhere/to/be.png"}):
        with pytest.raises(UnreadableImage, match="no image|No such file"):
            Decoder()(stored)


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int8", "uint16", "int16", "int32", "int64"])
def test_arrays_have_the_levels_of_their_declared_type(dtype):
    levels = {"bool": 2, "uint8": 256, "int8": 128, "uint16": 65536, "int16": 32768}.get(dtype)
    image = Decoder(dtype=dtype)([[0, 1], [1, 0], [0, 0]])
    assert image.levels == levels and image.pixels.tolist() == [[[0, 1], [1, 0], [0, 0]]]


@pytest.mark.parametrize(
    ("array", "message"),
    [
        ([[0.5]], "must be integers"),
        ([[1, 2], [3]], "rows are of different lengths"),
        ([[1, None]], "must be integers"),
        ([[[[[1]]]]], "must be integers"),
        (7, "must be integers"),
        ([[-1, 2]], "values from -1 to 2"),
        ([[2**40]], "values from 1099511627776"),
        ("a.png", "must be integers"),
        ([[]], "must be integers"),
    ],
)
def test_arrays_that_are_no_images_are_refused(array, message):
    with pytest.raises(UnsuitableImage, match=message):
        Decoder()(array)


def test_a_picture_with_damaged_exif_is_read_as_it_is_stored():
    file, stored = io.BytesIO(), picture(size=(6, 4))
    stored.save(file, "PNG", exif=b"Exif\x00\x00no TIFF at all")
    pixels, levels = Decoder()({"bytes": file.getvalue(), "path": None})
    np.testing.assert_array_equal(pixels.permute(1, 2, 0), np.asarray(stored))
    assert levels == 256


SHAPES = [
    ((5,), None, (1, 5)),
    ((5, 3), None, (1, 5, 3)),
    ((5, 3), 1, (3, 5)),
    ((5, 3), 2, (1, 5, 3)),
    ((5, 3, 2), None, (2, 5, 3)),
    ((5, 3, 2), 3, (1, 5, 3, 2)),
    ((5, 3, 2, 4), None, (4, 5, 3, 2)),
]


@pytest.mark.parametrize(("stored", "num_spatial_dims", "shape"), SHAPES)
def test_the_channels_of_arrays_come_first(stored, num_spatial_dims, shape):
    """The value of every place, by its coordinates."""
    array = np.arange(np.prod(stored), dtype=np.uint8).reshape(stored)
    pixels = Decoder(num_spatial_dims=num_spatial_dims)(array).pixels.numpy()
    assert pixels.shape == shape
    for place in np.ndindex(*shape):
        assert pixels[place] == array[(*place[1:], place[0])[: len(stored)]]


@pytest.mark.parametrize(
    ("stored", "options", "message"),
    [
        (np.zeros((2, 3, 4), int), {"num_spatial_dims": 1}, r"integers, \(L\) or \(L, C\)"),
        (np.zeros(3, int), {"num_spatial_dims": 2}, r"integers, \(H, W\) or \(H, W, C\)"),
        (np.zeros(3, int), {"preparation": Preparation(resize=2)}, "`resize` is for images, but it has 1 spatial dim"),
        (PIL.Image.new("RGB", (3, 3)), {"num_spatial_dims": 3}, "Pictures have 2 spatial dimensions"),
    ],
    ids=["too many", "too few", "resized", "picture"],
)
def test_arrays_of_other_dimensions_are_refused(stored, options, message):
    with pytest.raises(UnsuitableImage, match=message):
        Decoder(**options)(stored)


def test_resizing_is_that_of_the_examples_of_diffusers():
    """Shorter side to N, bilinear with antialiasing, then the middle: here by torch, in whose tests it is Pillow's."""
    import torch

    image = picture(size=(90, 60))
    ours, _ = decoded(written(image, "PNG"), resize=20, center_crop=True)
    x = torch.from_numpy(np.asarray(image).astype(np.float32)).permute(2, 0, 1)[None]
    theirs = torch.nn.functional.interpolate(x, (20, 30), mode="bilinear", antialias=True)[0].permute(1, 2, 0).numpy()
    assert ours.shape == (20, 20, 3)
    assert np.abs(ours - theirs[:, 5:25]).max() <= 1.5
    assert decoded(written(image, "PNG"), resize=20)[0].shape == (20, 30, 3)


def test_sixteen_bits_and_arrays_are_resized_without_loss_of_levels():
    ramp = np.arange(0, 64000, 1000, dtype=np.uint16).reshape(8, 8)
    means = ramp.reshape(4, 2, 4, 2).mean((1, 3))
    for image in ({"bytes": written(PIL.Image.fromarray(ramp), "PNG"), "path": None}, ramp):
        pixels, levels = Decoder(Preparation(resize=4))(image)
        assert levels == 65536
        np.testing.assert_allclose(pixels[0].numpy()[1:3, 1:3], means[1:3, 1:3], atol=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"center_crop": True}, "`center_crop` needs `resize`"),
        ({"resize": 0}, "`resize` is 0"),
        ({"convert": "CMYK"}, "`convert` is 'CMYK', but must be one of L, LA, RGB, RGBA"),
    ],
)
def test_preparations_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Preparation(**options)


def test_two_levels_are_not_blended():
    for stored in ({"bytes": written(PIL.Image.new("1", (4, 4)), "PNG"), "path": None}, np.zeros((4, 4), dtype=bool)):
        with pytest.raises(UnsuitableImage, match="can't be blended"):
            Decoder(Preparation(resize=2))(stored)


def test_a_preparation_says_what_it_does_and_what_asks_for_it():
    preparation = Preparation(32, True, "RGB")
    assert str(preparation) == "converted to RGB, resized to 32 pixels on the shorter side, cropped to the middle 32×32"
    assert preparation.flags() == ["--resize", "32", "--center_crop", "--convert", "RGB"]
    assert not Preparation() and preparation
