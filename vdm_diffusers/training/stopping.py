"""Stopping between two steps at SIGTERM or SIGINT, which clusters send before they take a machine away."""

import signal

import torch
import torch.distributed as dist


class TrainingStopped(Exception):
    """A signal has ended the run; the message says after which step, and how to go on."""


class StopSignals:
    """
    While it is entered, SIGTERM and SIGINT are noted and don't end the process.

    Enter it on every process. Several processes agree over a group of their own on the CPU, so that they needn't wait for
    their accelerators.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __enter__(self) -> "StopSignals":
        self.received = 0
        self._group = dist.new_group(backend="gloo") if dist.is_initialized() else None
        self._previous = {number: signal.signal(number, self._note) for number in self.SIGNALS}
        return self

    def __exit__(self, *error) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: object) -> None:
        self.received = number

    def agreed(self) -> signal.Signals | None:
        """The signal that one of the processes has received, if any. Call it on all of them, for they wait for each other."""
        number = self._highest(self.received)
        return signal.Signals(number) if number else None

    def any(self, condition: bool) -> bool:
        """Whether a condition holds on one of the processes. Call it on all of them, for they wait for each other."""
        return bool(self._highest(int(condition)))

    def _highest(self, value: int) -> int:
        number = torch.tensor(value)
        if self._group is not None:
            dist.all_reduce(number, dist.ReduceOp.MAX, group=self._group)
        return number.item()
