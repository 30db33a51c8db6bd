"""The output folder of a run: what it may hold before, who may write to it, and its options."""

import json
import os
from contextlib import ExitStack
from pathlib import Path
from tempfile import mkdtemp

from accelerate import Accelerator

from ..guards.messages import Message, refuse_if
from .checkpoints.folders import clear_the_way, find_checkpoint, find_checkpoints, remove
from .config import TrainingConfig
from .output_files import CONFIG
from .processes import on_main_process
from .run_lock import RunLock, in_use, is_in_use, is_lock


def check_output_dir(config: TrainingConfig) -> Path | None:
    """Refuse a folder that can't be written, that a run is using, or that holds something other than the run to resume or to
    replace; find, verify and return the checkpoint that is to be resumed."""
    folder, checkpoint = Path(config.output_dir), None
    check_links(folder)
    if is_in_use(folder) and not config.dry_run:
        raise ValueError(in_use(folder))
    if config.resume_from_checkpoint is not None:
        checkpoint = find_checkpoint(config.resume_from_checkpoint, folder)
    if not lies_in(folder, checkpoint):
        check_that_folder_is_free(config, folder)
    parent = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    try:
        Path(mkdtemp(dir=parent)).rmdir()
    except OSError as error:
        raise unwritable(config, error) from error
    return checkpoint


def lies_in(folder: Path, checkpoint: Path | None) -> bool:
    """Whether a run that goes on from this checkpoint is that of this folder."""
    if checkpoint is None:
        return False
    return folder.resolve() in {checkpoint.absolute().parent.resolve(), *checkpoint.resolve().parents}


def check_links(folder: Path) -> None:
    """Refuse a path with a symbolic link that leads nowhere."""
    for path in (folder, *folder.absolute().parents):
        if path.is_symlink() and not path.exists():
            raise ValueError(
                Message(
                    "{output_dir}: {!r} is a symbolic link to {!r}, which leads nowhere: make that folder, or name another.",
                    str(path),
                    os.readlink(path),
                )
            )


def check_that_folder_is_free(config: TrainingConfig, folder: Path) -> None:
    """Refuse a folder with another run unless it is to be replaced, and any other with files."""
    if folder.exists() and (not folder.is_dir() or not all(map(is_lock, folder.iterdir()))):
        refuse_if(
            not (folder / CONFIG).is_file(),
            "{output_dir} {!r} holds something other than a run: name another folder.",
            config.output_dir,
        )
        refuse_if(
            not config.overwrite_output_dir,
            "{output_dir} {!r} holds another run: name another folder, go on with that run by {resume_from_checkpoint:latest},"
            " or replace it by {overwrite_output_dir}.",
            config.output_dir,
        )


def unwritable(config: TrainingConfig, error: OSError) -> ValueError:
    """What to say of an output folder that gave this error."""
    return ValueError(
        Message("{output_dir} {!r} can't be written: {}. Name a folder that can be.", config.output_dir, error.strerror)
    )


def take_output_dir(
    accelerator: Accelerator, config: TrainingConfig, checkpoint: Path | None, seen: list[Path], until_the_end: ExitStack
) -> None:
    """Lock the output folder on all processes and prepare it, unless another run has written there since it was checked."""
    lock = RunLock(Path(config.output_dir), accelerator.process_index)
    on_main_process(accelerator, _take, config, checkpoint, seen, lock, until_the_end)
    check_that_folder_is_shared(config)
    if not accelerator.is_main_process:
        until_the_end.enter_context(lock)


def _take(config: TrainingConfig, checkpoint: Path | None, seen: list[Path], lock: RunLock, until_the_end: ExitStack) -> None:
    folder = Path(config.output_dir)
    until_the_end.enter_context(lock)
    if not lies_in(folder, checkpoint):
        check_that_folder_is_free(config, folder)
    elif find_checkpoints(folder) != seen:
        raise ValueError(
            Message("Another run has written checkpoints to {output_dir} {!r} just now: start again.", config.output_dir)
        )
    prepare_output_dir(config, checkpoint)


def prepare_output_dir(config: TrainingConfig, checkpoint: Path | None) -> None:
    """Make the output folder, empty but for its lock unless the run in it is resumed, and write the options there."""
    folder = Path(config.output_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not lies_in(folder, checkpoint):
            for path in folder.iterdir():
                if not is_lock(path):
                    remove(path)
        if checkpoint is not None:
            clear_the_way(folder, checkpoint)
        (folder / CONFIG).write_text(json.dumps(config.public(), indent=2) + "\n")
    except OSError as error:
        raise unwritable(config, error) from error


def check_that_folder_is_shared(config: TrainingConfig) -> None:
    """Every process reads checkpoints, and where the model is sharded it writes its part of them."""
    refuse_if(
        not Path(config.output_dir, CONFIG).is_file(),
        "{output_dir} {!r} is not the same folder on all machines: name one that they share, since each looks for checkpoints"
        " there.",
        config.output_dir,
    )
