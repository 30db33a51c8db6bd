"""Data sets: images from a folder, the Hub or a stream, or latents of them, checked before anything else runs."""

from ..guards.loading import DataError
from ..pictures import image_format, image_to_tensor
from .digits import load_digits
from .image_data import ImageData, ImageDataset
from .images import load_images


__all__ = ["DataError", "ImageData", "ImageDataset", "image_format", "image_to_tensor", "load_digits", "load_images"]
