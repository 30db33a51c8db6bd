"""Computes numbers for every image of a data set, in batches, on one process or several."""

from collections.abc import Callable
from contextlib import nullcontext

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset
from tqdm.auto import tqdm

from ..batching import InBatches
from ..conditioning import Condition, collate, split_batch, to_device
from ..guards.loading import DataError
from ..guards.messages import message_of
from ..randomness import counted_generator


Function = Callable[[Tensor, Condition, Tensor], Tensor]
"""`function(images, condition, indices) -> (B, ...)` of a batch `(B, *shape)`, its condition, and its places `(B,)` in the data
set."""


def for_each_image(
    function: Function,
    dataset: Dataset,
    batch_size: int,
    device: str | torch.device = "cpu",
    processes: PartialState | None = None,
    description: str | None = None,
) -> Tensor:
    """
    The results of a function for all images, `(N, ...)`, in float64 on the CPU, in the order of the data set.

    Args:
        function (`Callable`): See `Function`.
        dataset (`Dataset`): Items as [`ImageDataset`] has them.
        batch_size (`int`): Images a call; fewer, where memory runs out.
        device (`str` or `torch.device`, defaults to `"cpu"`): Where the function gets them.
        processes (`PartialState`, *optional*):
            The processes that share the work. Each must call this and gets all results; they wait for each other at the end
            only. Defaults to this process alone.
        description (`str`, *optional*): For a progress bar of the main process; by default there is none.

    Raises:
        [`DataError`]: on all processes, if one of them can't read an image.
    """
    indices, failures = list(range(len(dataset))), []
    with nullcontext(indices) if processes is None else processes.split_between_processes(indices) as own:
        try:
            results = _results(function, dataset, own, batch_size, device, _progress_bar(len(own), processes, description))
        except DataError as error:
            results, failures = [], [message_of(error)]
    if processes is not None:
        results, failures = gather_object(results), gather_object(failures)
    if failures:
        raise DataError(failures[0])
    return torch.cat(results)


def _results(
    function: Function, dataset: Dataset, indices: list[int], batch_size: int, device: str | torch.device, progress: tqdm
) -> list[Tensor]:
    function, results, start = InBatches(function, batch_size), [], 0
    own = torch.Generator()  # not the global one
    for batch in DataLoader(Subset(dataset, indices), batch_size, generator=own, collate_fn=collate):
        images, condition = split_batch(batch)
        rows = torch.tensor(indices[start : start + len(images)])
        results.append(function(images.to(device), to_device(condition, device), rows).cpu().double())
        start += len(images)
        progress.update(len(images))
    progress.close()
    return results


def _progress_bar(total: int, processes: PartialState | None, description: str | None) -> tqdm:
    hidden = description is None or not (processes is None or processes.is_main_process)
    return tqdm(total=total, desc=description, unit="image", disable=hidden)


def generators(seed: int, indices: Tensor) -> list[torch.Generator]:
    """One for each image, on the CPU: its draws depend on `seed` and its index alone, not on batches or processes."""
    return [counted_generator(seed, index) for index in indices.tolist()]
