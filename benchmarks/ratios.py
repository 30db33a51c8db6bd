"""Ratios of running times, each measured in turns in one run, so that what else the machine does hits both sides alike."""

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple


class Ratio(NamedTuple):
    """Median and quartiles over the repeats, and the median of the numerator in seconds, where it is a time."""

    median: float
    low: float
    high: float
    seconds: float | None = None

    def __str__(self) -> str:
        return f"{self.median:.3f} ({self.low:.3f} to {self.high:.3f})"


def seconds(function: Callable[[], None]) -> float:
    """Of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def ratio(function: Callable[[], None], baseline: Callable[[], None], repeats: int) -> Ratio:
    """Time of `function` over that of `baseline`, called in turns, first one then the other at the front, after a warm-up."""
    function(), baseline()
    pairs = []
    for repeat in range(repeats):
        if repeat % 2:
            ours, theirs = seconds(function), seconds(baseline)
        else:
            theirs, ours = seconds(baseline), seconds(function)
        pairs.append((ours, theirs))
    low, median, high = statistics.quantiles([ours / theirs for ours, theirs in pairs], n=4)
    return Ratio(median, low, high, statistics.median(ours for ours, _ in pairs))
