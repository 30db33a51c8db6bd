"""Asymmetric numeral systems: a stack of bits that numbers are pushed on and popped from, each by a distribution of its own.

What is popped from random bits by a distribution is a draw from it, and pushing it again by the same one gives the bits back.
That is what bits-back coding lives on. The bits that were pushed last are random only if they were pushed by the distribution
that they have, so draws whiten them first. The coder itself is that of `constriction`, whose frequencies have 24 bits.
"""

import hashlib
from functools import cache
from types import ModuleType
from typing import NamedTuple

import numpy as np


STATE_BITS = 64
"""Of the coder, which holds so many bits at once."""

REACH = 16
"""Standard deviations to either side of a mean that are told apart at once; what lies beyond takes 32 bits more."""

REACH_OF_DRAWS = 8
"""Standard deviations beyond which no draw lies."""

MAX_REACH = 2**22
"""Whole numbers to either side of a mean for which the frequencies of the coder suffice."""

MAX_BIN = 2**30
"""The largest magnitude of a whole number that can be pushed."""

MAX_TABLE = 2**20
"""Probabilities of categorical distributions that are in memory together."""

SHEPPARD = 1 / 12
"""The variance that rounding to whole numbers adds: a normal variable rounded to them keeps its variance if it had so much
less before (Sheppard's correction)."""


class ImpossibleDraw(ArithmeticError):
    """Numbers that are given back to a distribution from which they can't have come: the bits are not those of a stack."""


class Normal(NamedTuple):
    """Whole numbers with the means and the standard deviations of these normal distributions, float64 `(D,)` each.

    The deviations are at least one half. Mean and variance are those of the rounded numbers, so that a chain of them has the
    moments that the chain of real numbers has.
    """

    mean: np.ndarray
    std: np.ndarray


class Levels(NamedTuple):
    """
    Levels `v` in `[0, num_levels)` with probabilities proportional to `exp(-½ ((v - center) / width)²)`.

    Attributes:
        center (`np.ndarray` of shape `(D,)`): Float64.
        width (`float`): The same for all.
        num_levels (`int`): At least 2.
    """

    center: np.ndarray
    width: float
    num_levels: int


class BitStack:
    """
    Bits, the last one first.

    Args:
        words (`np.ndarray`, *optional*): uint32, as [`~BitStack.words`] gives them; by default there are none.
    """

    def __init__(self, words: np.ndarray | None = None):
        self._coder = _coders().stack.AnsCoder() if words is None else _coders().stack.AnsCoder(words)

    @classmethod
    def of_random_bits(cls, words: np.ndarray) -> "BitStack":
        """A stack of any words, also of zeros."""
        stack = cls()
        stack._coder = _coders().stack.AnsCoder(words, seal=True)
        return stack

    def words(self) -> np.ndarray:
        """All bits as uint32."""
        return self._coder.get_compressed()

    @property
    def num_bits(self) -> float:
        """How much information there is, in bits."""
        position, state = self._coder.pos()
        return 32.0 * position + float(np.log2(max(int(state), 1)))

    def draw(self, normal: Normal, key: int) -> np.ndarray:
        """
        Whole numbers, int64 `(D,)`, that use up bits of the stack.

        Those bits are whitened by a sequence that the `key` stands for. Where there are no more, the sequence stands in.
        """
        center, offset, std, limit = _around_mean(normal, REACH_OF_DRAWS)
        self._whiten(_num_words(normal), key, 1)
        return center + self._coder.decode(_coders().model.QuantizedGaussian(-limit, limit), offset, std)

    def give_back(self, numbers: np.ndarray, normal: Normal, key: int) -> None:
        """Push the bits that the latest draw used up; [`ImpossibleDraw`] if that can't have been one."""
        center, offset, std, limit = _around_mean(normal, REACH_OF_DRAWS)
        distance = numbers - center
        if (np.abs(distance) > limit).any():
            raise ImpossibleDraw("Numbers were given back that no draw gives.")
        self._coder.encode_reverse(distance.astype(np.int32), _coders().model.QuantizedGaussian(-limit, limit), offset, std)
        self._whiten(_num_words(normal), key, -1)

    def _whiten(self, num_words: int, key: int, sign: int) -> None:
        """Add a sequence to the words of 16 bits that were pushed last, or subtract it."""
        sequence = np.frombuffer(hashlib.shake_128(key.to_bytes(8, "little")).digest(2 * num_words), "<u2").astype(np.int64)
        self.push_uniform((self.pop_uniform(num_words, 1 << 16) + sign * sequence) % (1 << 16), 1 << 16)

    def push_normal(self, numbers: np.ndarray, normal: Normal) -> None:
        """Push whole numbers, int64 `(D,)`, of magnitudes up to `MAX_BIN`, also those that are as good as impossible."""
        center, offset, std, limit = _around_mean(normal, REACH)
        distance = numbers - center
        near = distance.clip(-limit, limit)
        self._push_integers(np.abs(distance - near)[np.abs(near) == limit])
        self._coder.encode_reverse(near.astype(np.int32), _coders().model.QuantizedGaussian(-limit, limit), offset, std)

    def pop_normal(self, normal: Normal) -> np.ndarray:
        """The numbers, int64 `(D,)`, that were pushed last, by the same distribution."""
        center, offset, std, limit = _around_mean(normal, REACH)
        distance = self._coder.decode(_coders().model.QuantizedGaussian(-limit, limit), offset, std).astype(np.int64)
        far = np.abs(distance) == limit
        distance[far] += np.sign(distance[far]) * self._pop_integers(int(far.sum()))
        return center + distance

    def push_levels(self, levels: np.ndarray, distribution: Levels) -> None:
        """Push levels, int64 `(D,)`."""
        for part in reversed(_parts(distribution)):
            first, weights = _near_levels(part, distribution)
            elsewhere = weights.shape[1] - 1
            near = levels[part] - first
            is_far = (near < 0) | (near >= elsewhere)
            self._push_integers(levels[part][is_far])
            near = np.where(is_far, elsewhere, near).astype(np.int32)
            self._coder.encode_reverse(near, _coders().model.Categorical(perfect=False), weights)

    def pop_levels(self, distribution: Levels) -> np.ndarray:
        """Levels, int64 `(D,)`; those that no image has, which only damaged bits hold, are beyond `num_levels`."""
        levels = np.empty(len(distribution.center), np.int64)
        for part in _parts(distribution):
            first, weights = _near_levels(part, distribution)
            near = self._coder.decode(_coders().model.Categorical(perfect=False), weights)
            is_far = near == weights.shape[1] - 1
            levels[part] = first + near
            levels[part] = np.where(is_far, 0, levels[part])
            levels[np.arange(len(levels))[part][is_far]] = self._pop_integers(int(is_far.sum()))
        return levels

    def push_uniform(self, numbers: np.ndarray, size: int) -> None:
        """Push numbers of `[0, size)`, each as probable as any other."""
        high = -(-size >> 16) if size > 1 << 16 else 1
        if high > 1:
            self._coder.encode_reverse((numbers & 0xFFFF).astype(np.int32), _coders().model.Uniform(1 << 16))
            self._coder.encode_reverse((numbers >> 16).astype(np.int32), _coders().model.Uniform(high))
        else:
            self._coder.encode_reverse(numbers.astype(np.int32), _coders().model.Uniform(size))

    def pop_uniform(self, amount: int, size: int) -> np.ndarray:
        """So many of them, int64 `(amount,)`."""
        if size <= 1 << 16:
            return self._coder.decode(_coders().model.Uniform(size), amount).astype(np.int64)
        high = self._coder.decode(_coders().model.Uniform(-(-size >> 16)), amount).astype(np.int64)
        return (high << 16) + self._coder.decode(_coders().model.Uniform(1 << 16), amount)

    def _push_integers(self, numbers: np.ndarray) -> None:
        if len(numbers):
            self.push_uniform(numbers, 1 << 32)

    def _pop_integers(self, amount: int) -> np.ndarray:
        return self.pop_uniform(amount, 1 << 32) if amount else np.empty(0, np.int64)


@cache
def _coders() -> ModuleType:
    """Coders and models of constriction; `ValueError` without it."""
    try:
        import constriction
    except ImportError as error:
        raise ValueError("Compression needs constriction: `pip install 'vdm-diffusers[compression]'` installs it.") from error
    return constriction.stream


def _around_mean(normal: Normal, reach: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """The whole numbers nearest to the means, what the means lie off them, deviations before rounding, and how far to count.

    Raises `ValueError` for deviations that are too large to be coded.
    """
    mean = normal.mean.clip(-MAX_BIN, MAX_BIN)
    center, widest = np.rint(mean), normal.std.max()
    if not widest < MAX_REACH / REACH:
        raise ValueError(
            f"A latent has a standard deviation of {widest:.4g} bins, but less than {MAX_REACH // REACH:,} can be coded: lower"
            " `bin_precision`, or take a chain whose steps are less unlike."
        )
    return center.astype(np.int64), mean - center, np.sqrt(normal.std**2 - SHEPPARD), int(np.ceil(reach * widest)) + 1


def _num_words(normal: Normal) -> int:
    """As many words of 16 bits as a draw takes, but for one in thousands."""
    expected = np.log2(normal.std * (2 * np.pi * np.e) ** 0.5).sum()
    return int((expected + 4 * len(normal.std) ** 0.5) / 16) + 1


def _num_near(distribution: Levels) -> int:
    return min(2 * int(np.ceil(min(REACH * distribution.width, distribution.num_levels))) + 3, distribution.num_levels)


def _parts(distribution: Levels) -> list[slice]:
    """The elements in parts of which all probabilities fit into memory."""
    size = max(1, MAX_TABLE // (_num_near(distribution) + 1))
    return [slice(start, start + size) for start in range(0, len(distribution.center), size)]


def _near_levels(part: slice, distribution: Levels) -> tuple[np.ndarray, np.ndarray]:
    """The first `(n,)` of the levels near the centers, and the weights of these and, the least possible, of all others."""
    count, center = _num_near(distribution), distribution.center[part, None]
    first = np.rint(center - count // 2).clip(0, distribution.num_levels - count)
    exponent = -0.5 * ((first + np.arange(count) - center) / distribution.width) ** 2
    weights = np.exp(exponent - exponent.max(axis=1, keepdims=True))
    return first[:, 0].astype(np.int64), np.pad(weights, ((0, 0), (0, 1)))
