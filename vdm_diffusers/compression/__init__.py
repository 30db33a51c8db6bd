"""A lossless codec at the bound: bits-back coding over the chain of latents (docs/compression.md)."""

from .codec import Compressor, Decompressed, Decompressor, compress, decompress
from .container import DamagedFile


__all__ = ["Compressor", "DamagedFile", "Decompressed", "Decompressor", "compress", "decompress"]
