"""Generators that follow from a seed and a counter, for draws that shall not depend on what was drawn before."""

import torch


GOLDEN_RATIO = 0x9E3779B1
"""Of 2³², rounded to an odd number: its multiples are spread evenly."""


def counted_generator(seed: int, counter: int) -> torch.Generator:
    """A CPU generator for the `counter`-th of many draws of a `seed`.

    Of a seed torch's CPU generator reads 32 bits, so these must hold both numbers.
    """
    return torch.Generator().manual_seed((seed * GOLDEN_RATIO + counter) % 2**32)
