"""What a bound is reported in: bits per dimension of integer images, nats per dimension of real-valued data."""

from typing import NamedTuple


LOG_2 = 0.6931471805599453


class Unit(NamedTuple):
    """A unit of bounds.

    Attributes:
        name (`str`): In metrics and logs.
        label (`str`): For a reader.
        nats (`float`): Nats per dimension in one unit.
    """

    name: str
    label: str
    nats: float


BITS_PER_DIM = Unit("bits_per_dim", "bits/dim", LOG_2)
NATS_PER_DIM = Unit("nats_per_dim", "nats/dim", 1.0)
"""For a density, such as that of latents: its logarithm depends on the scale of the data and counts no bits."""
