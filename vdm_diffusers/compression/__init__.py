"""A lossless codec at the bound: bits-back coding over the chain of latents (docs/compression.md)."""

from .blocks import Item, Rates
from .codec import Compressor, Decompressed, Decompressor, compress, decompress
from .coding_model import coding_model
from .container import DamagedFile


__all__ = [
    "Compressor",
    "DamagedFile",
    "Decompressed",
    "Decompressor",
    "Item",
    "Rates",
    "coding_model",
    "compress",
    "decompress",
]
