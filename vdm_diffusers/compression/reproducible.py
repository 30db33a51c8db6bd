"""The same numbers on every run, whatever the threads, the batches and the autotuning that a program has set."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import TypeVar

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..vdm import VDM, evaluating


Result = TypeVar("Result")


class ReproducibleWorkers:
    """
    Computes with a model as every reader and writer of a file does, in as many threads as torch has.

    An operation has one thread, because sums over several depend on their number; kernels are deterministic and not chosen by
    timing; attention is plain; there is no dropout, no autocast and no TF32. It is a context, at whose end all is as before.
    """

    def __init__(self, vdm: VDM, on_image: Callable[[], None]):
        self.vdm, self.on_image = vdm, on_image

    def __enter__(self) -> "ReproducibleWorkers":
        self._leaving = False
        self.num_threads = torch.get_num_threads()
        self._results: deque = deque()
        with ExitStack() as contexts:
            contexts.enter_context(evaluating(self.vdm))
            contexts.enter_context(_reproducible())
            self._pool = contexts.enter_context(ThreadPoolExecutor(self.num_threads))
            self._contexts = contexts.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._leaving = True
        self._pool.shutdown(cancel_futures=True)
        self._contexts.close()

    def run(self, function: Callable[[], Result]) -> Iterator[Result]:
        """Take on a function, and give results that are due, in the order in which their functions were taken on."""
        self._results.append(self._pool.submit(self._run, function))
        while len(self._results) > self.num_threads:
            yield self._results.popleft().result()

    def count(self) -> None:
        """To be called after every image: hands the call on, or raises `CancelledError` once nobody waits for more."""
        if self._leaving:
            raise CancelledError
        self.on_image()

    def rest(self) -> Iterator[Result]:
        """All other results."""
        while self._results:
            yield self._results.popleft().result()

    def _run(self, function: Callable[[], Result]) -> Result:
        """What of this a thread has to be told itself."""
        torch.set_num_threads(1)
        torch.set_flush_denormal(False)
        with torch.inference_mode(), torch.autocast(self.vdm.noise_schedule.device.type, enabled=False):
            return function()


@contextmanager
def _reproducible() -> Iterator[None]:
    num_threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    (had_mkldnn, *_) = torch.backends.mkldnn.set_flags(torch.backends.mkldnn.is_available(), _fp32_precision=None)
    torch.set_num_threads(1)
    torch.set_float32_matmul_precision("highest")
    try:
        with (
            torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False),
            sdpa_kernel(SDPBackend.MATH),
        ):
            yield
    finally:
        torch.backends.mkldnn.set_flags(had_mkldnn, _fp32_precision=None)
        torch.set_num_threads(num_threads)
        torch.set_float32_matmul_precision(precision)
