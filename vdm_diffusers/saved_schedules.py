"""The noise schedule beside a pipeline, in a folder or on the Hub: the module that training goes on with."""

import os
from pathlib import Path

import huggingface_hub
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from .guards.foreign_models import check_sizes
from .noise_schedules import NoiseSchedule


SCHEDULE = "noise_schedule"
"""Its folder."""


def saved_schedule(name_or_path: str | os.PathLike, **kwargs) -> NoiseSchedule | None:
    """
    The noise schedule that [`VDM.save_pretrained`] put beside a pipeline, if there is one; `kwargs` go to the loaders.

    Raises `ValueError` for a configuration of sizes that no schedule has, before anything is built.
    """
    if not has_schedule(name_or_path, **kwargs):
        return None
    check_sizes(NoiseSchedule.load_config(name_or_path, subfolder=SCHEDULE, **kwargs))
    return NoiseSchedule.from_pretrained(name_or_path, subfolder=SCHEDULE, **kwargs)


def has_schedule(name_or_path: str | os.PathLike, **kwargs) -> bool:
    """Whether there is one, in a folder or on the Hub."""
    if Path(name_or_path).is_dir():
        return (Path(name_or_path) / SCHEDULE).exists()
    return _is_on_hub(str(name_or_path), f"{SCHEDULE}/config.json", **kwargs)


def _is_on_hub(name: str, file: str, **kwargs) -> bool:
    """Whether a repository has a file; offline, whether the cache has."""
    of_hub = {key: value for key, value in kwargs.items() if key in ("cache_dir", "local_files_only", "revision", "token")}
    try:
        hf_hub_download(name, file, **of_hub)
    except LocalEntryNotFoundError:
        if not (huggingface_hub.constants.HF_HUB_OFFLINE or kwargs.get("local_files_only")):
            raise
        return False
    except EntryNotFoundError:
        return False
    return True
