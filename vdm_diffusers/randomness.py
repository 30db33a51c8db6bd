"""Random generators from a seed and a counter, for draws that don't depend on earlier draws."""

import torch


GOLDEN_RATIO = 0x9E3779B1
"""2³² over the golden ratio, rounded to an odd number: the multiples modulo 2³² are spread evenly."""


def counted_generator(seed: int, counter: int) -> torch.Generator:
    """A CPU generator for the `counter`-th of many draws of a `seed`.

    torch's CPU generator uses only 32 bits of its seed, so both numbers are mixed into 32 bits.
    """
    return torch.Generator().manual_seed((seed * GOLDEN_RATIO + counter) % 2**32)
