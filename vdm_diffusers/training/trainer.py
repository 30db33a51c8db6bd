"""The training loop: trains a model, validates it from time to time, and survives interruptions."""

import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count, islice
from pathlib import Path
from typing import Any

import PIL.Image
import torch
from accelerate import Accelerator, PartialState, skip_first_batches
from accelerate.utils import gather_object, set_seed
from diffusers.optimization import get_scheduler
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset
from tqdm.auto import tqdm

from ..conditioning import Condition, captions_of, collate, drop, split_batch, to_device
from ..data.checking import describe_unreadable
from ..data.images import ImageData
from ..data.pinning import can_be_pinned
from ..data.streaming import ImageStream, StreamLoader
from ..data.texts import with_encoded_captions
from ..figures import save_noise_schedule
from ..guards.loading import DataError
from ..guards.messages import Message, message_of
from ..guards.secrecy import redacted
from ..likelihood.bound import VariationalBound, variational_bound
from ..units import BITS_PER_DIM
from ..vdm import VDM, VDMLoss
from .augmentations import AUGMENTATIONS
from .captions import draw_captions
from .checkpoints.folders import latest_checkpoint
from .checkpoints.manifests import read_manifest
from .checkpoints.state import RunState, unusable
from .checkpoints.writing import CheckpointError, CheckpointWriter
from .config import TrainingConfig
from .draws import draws_of
from .health import check_schedule, drifted_end_points, first_not_finite
from .lora import merge_adapters
from .optimizers import build_optimizer
from .output_files import CHECKPOINT, NOISE_SCHEDULE, UNREADABLE, samples_of
from .placement.choice import place, placement_of
from .planning import steps_an_epoch
from .resuming import Run
from .sample_grids import draw_samples, sample_prompts, save_samples
from .stopping import StopSignals, TrainingStopped


SHOWN_UNREADABLE = 3
"""So many images of a stream that can't be read are reported on the terminal, each when it comes."""


class History:
    """What has been logged so far, part of every checkpoint.

    Attributes:
        step (`int`): Optimiser steps done.
        window (`list[list[float]]`): For each step since the last log entry, the moments of the bound's terms and the norm of
            the gradient.
        training, validation (`list[dict]`): Records with `step` and the bound by the name of its unit, those of the validation
            with the other fields of [`VariationalBound`].
        schedules (`list[dict]`): Records with `step` and `gammas`, of the noise schedule at 101 equidistant times.
    """

    def __init__(self):
        self.step, self.window, self.training, self.validation, self.schedules = 0, [], [], [], []

    def state_dict(self) -> dict:
        return vars(self).copy()

    def load_state_dict(self, state: dict) -> None:
        if any(type(state[name]) is not type(value) for name, value in vars(self).items()):
            raise ValueError("its history is none")
        vars(self).update({name: state[name] for name in vars(self)})


class Trainer:
    """
    Trains a VDM with Accelerate; the options are those of [`TrainingConfig`].

    Args:
        checkpoint (`Path`, *optional*): A verified checkpoint, to go on from.
        publish (`Callable`, *optional*): Called on the main process after every validation but the first and the last, with a
            model that has the moving average of the weights and with the history; it returns what there is to warn of.

    Raises:
        `ValueError`: if there are fewer images than a step takes, or if the checkpoint is one of another model.

    Attributes:
        vdm ([`VDM`]): What is trained.
        history ([`History`]): What has been logged.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        config: TrainingConfig,
        vdm: VDM,
        data: ImageData,
        checkpoint: Path | None = None,
        publish: Callable[[VDM, History], str | None] | None = None,
    ):
        self.accelerator, self.config, self.vdm, self.data, self.publish = accelerator, config, vdm, data, publish
        self.output_dir = Path(config.output_dir)
        self.run = Run.of(config, data, accelerator.num_processes, placement_of(accelerator))
        optimizer = build_optimizer(config, vdm)
        self.lr_scheduler = get_scheduler(
            config.lr_scheduler,
            optimizer,
            num_warmup_steps=config.lr_warmup_steps,
            num_training_steps=config.max_train_steps,
        )
        self.placement = place(accelerator, vdm, config)
        self.model, self.optimizer, self.loader = self.placement.prepare(optimizer, self._build_loader())
        self.ema = self.placement.moving_average(decay=config.ema_decay, use_ema_warmup=True, power=config.ema_power)
        self.history = History()
        self.not_reduced: list[Tensor] = []
        stream = self.loader if isinstance(self.loader, StreamLoader) else None
        self.state = RunState(accelerator, self.placement, self.lr_scheduler, self.ema, self.history, stream)
        limit = config.checkpoints_total_limit
        self.checkpoints = CheckpointWriter(accelerator, self.state.snapshot, self.output_dir, self.run, limit)
        self.unreadable: set[str] = set()
        if checkpoint is not None:
            self._load(checkpoint)
        self.progress = tqdm(
            total=config.max_train_steps,
            initial=self.history.step,
            desc="Training",
            disable=not accelerator.is_main_process,
        )

    def train(self) -> VDM:
        """
        Run to `max_train_steps` and return the model with the moving average of its weights.

        A checkpoint is written while training goes on, but before the validation of the same step, so that a kill during the
        latter costs nothing else. Whatever ends training, a checkpoint that is being written is finished first.

        Raises:
            `FloatingPointError`: when a loss or a gradient is not finite, naming the step and the last good checkpoint.
            [`TrainingStopped`]: after SIGTERM or SIGINT, with a checkpoint of the last step.
            [`DataError`]: when an image can't be read any more, or a row of a stream can't be trained on, with a checkpoint of
                the last step.
            [`CheckpointError`]: if that checkpoint can't be written.
        """
        batches = self._batches()
        self._note_unreadable(self.data.unreadable if self.accelerator.is_main_process else ())
        self.model.train()
        with StopSignals() as signals, self._finishing_checkpoint():
            while self.history.step < self.config.max_train_steps or self._validation_is_due():
                if self.checkpoints.is_done:
                    self._finish_checkpoint()
                if number := signals.agreed():
                    self._stop(number)
                if self._validation_is_due():
                    self._finish_checkpoint()
                    with self._leaving_checkpoint():
                        self._validate()
                    continue
                self._optimizer_step(self._batches_of_step(batches, signals))
                if self._is_due(self.config.logging_steps):
                    self._log()
                if self._is_due(self.config.checkpointing_steps):
                    self._save_checkpoint()
        self.progress.close()
        self.ema.copy_to(self.placement.parameters())
        vdm = self.accelerator.unwrap_model(self.placement.whole_model(), keep_fp32_wrapper=False)
        merge_adapters(vdm.unet)
        return vdm

    def _is_due(self, interval: int) -> bool:
        return self.history.step % interval == 0 or self.history.step == self.config.max_train_steps

    def _validation_is_due(self) -> bool:
        last = self.history.validation[-1]["step"] if self.history.validation else None
        return self._is_due(self.config.validation_steps) and last != self.history.step

    def _build_loader(self) -> DataLoader | StreamLoader:
        size, num_workers = self.config.train_batch_size, self.config.dataloader_num_workers
        if isinstance(self.data.train, ImageStream):
            return StreamLoader(self.accelerator, self.data.train, size, num_workers)
        self.steps_an_epoch = steps_an_epoch(self.run, self.data)
        return DataLoader(
            self.data.train,
            size,
            shuffle=True,
            drop_last=True,
            num_workers=num_workers,
            generator=torch.Generator(),  # an iterator draws a seed, which must not come from the global generator
            collate_fn=collate,
            pin_memory=can_be_pinned(self.accelerator.device),
        )

    def _batches(self) -> Iterator[dict[str, Any]]:
        """Batches from where the run stands, epoch after epoch of whole steps, each in its own order."""
        if isinstance(self.loader, StreamLoader):
            return  # taken step by step
        first_epoch, done = divmod(self.history.step, self.steps_an_epoch)
        for epoch in count(first_epoch):
            self.loader.set_epoch(epoch)
            to_skip, to_take = (steps * self.config.gradient_accumulation_steps for steps in (done, self.steps_an_epoch - done))
            yield from islice(skip_first_batches(self.loader, to_skip) if to_skip else self.loader, to_take)
            done = 0

    def _batches_of_step(self, batches: Iterator[dict[str, Any]], signals: StopSignals) -> Iterable[dict[str, Any]]:
        """Those of the next step. Where an image can't be trained on, on any process, all of them stop."""
        number, taken, problem = self.config.gradient_accumulation_steps, [], None
        stream = self.loader if isinstance(self.loader, StreamLoader) else None
        try:
            taken = list(islice(batches, number)) if stream is None else stream.take(number)
        except DataError as error:
            problem = message_of(error)
        if stream is not None:
            self._note_unreadable(stream.unreadable)
            stream.unreadable.clear()
        if signals.any(problem is not None):
            if stream is not None:
                stream.go_back()
            with self._leaving_checkpoint():
                raise DataError(next(sentence for sentence in gather_object([problem]) if sentence is not None))
        return taken

    def _optimizer_step(self, batches: Iterable[dict[str, Any]]) -> None:
        moments = []
        for micro_step, batch in enumerate(batches):
            draws = draws_of(self.config, self.accelerator, self.history.step, micro_step)
            images, condition = split_batch(batch)
            images, augmentation = AUGMENTATIONS[self.config.augmentation](images)
            condition = drop(condition, self.config.class_dropout, self.vdm.unet)
            condition = {**condition, **self._text(batch, draws.captions), **(augmentation or {})}
            with self.accelerator.accumulate(self.model):
                loss = self.model(images, condition, draws.times)
                self.accelerator.backward(loss.objective.mean())
                moments.append(_moments(loss))
                if self.accelerator.sync_gradients:
                    norm = self.placement.clip_gradients()
                self.optimizer.step()
                self.optimizer.zero_grad()
        self.lr_scheduler.step()
        self.ema.step(self.placement.parameters())
        self.not_reduced.append(torch.cat([torch.stack(moments).mean(0), norm.detach().reshape(1)]))
        self.history.step += 1
        self.progress.update()

    def _text(self, batch: dict[str, Any], draws: Tensor) -> Condition:
        """What the denoiser is told of the captions of a batch, if it is told any."""
        captions, encoder = captions_of(batch), self.vdm.prompt_encoder
        if captions is None or encoder is None:
            return {}
        texts = draw_captions(captions, draws, self.config.caption_dropout)
        return to_device(encoder(texts, self.vdm.unet), self.accelerator.device)

    def _reduce_window(self) -> None:
        """Average over the processes what each has seen since the last time, and check it."""
        if not self.not_reduced:
            return
        rows = self.accelerator.reduce(torch.stack(self.not_reduced), reduction="mean").cpu()
        self.not_reduced.clear()
        bad = first_not_finite(rows, with_gradient=self.accelerator.scaler is None)
        if bad is not None:
            self._finish_checkpoint()
            self.accelerator.wait_for_everyone()
            checkpoint = latest_checkpoint(self.output_dir)
            resume = "There is no checkpoint yet" if checkpoint is None else f"The last good checkpoint is {checkpoint}"
            step = self.history.step - len(rows) + 1 + bad
            message = "The loss or its gradient is not finite at step {}. {}; go on with a lower {learning_rate}."
            raise FloatingPointError(Message(message, step, resume))
        self.history.window += rows.tolist()

    def _log(self) -> None:
        """Average what was seen since the last time, and tell it to the history, the progress bar and the trackers."""
        self._reduce_window()
        check_schedule(self.vdm.noise_schedule, self.history.step)
        prior, reconstruction, diffusion, square, gradient_norm = torch.tensor(self.history.window).mean(0).tolist()
        gamma_0, gamma_1 = self.vdm.noise_schedule.chain(1).tolist()
        record = {
            self.vdm.unit.name: prior + reconstruction + diffusion,
            "prior": prior,
            "reconstruction": reconstruction,
            "diffusion": diffusion,
            "diffusion_variance": square - diffusion**2,
            "gradient_norm": gradient_norm,
            "learning_rate": self.lr_scheduler.get_last_lr()[0],
            "gamma_0": gamma_0,
            "gamma_1": gamma_1,
        }
        self.history.window.clear()
        self.history.training.append({"step": self.history.step} | record)
        self.progress.set_postfix_str(f"{record[self.vdm.unit.name]:.3f} {self.vdm.unit.label}")
        with self._going_on_without("the log"):
            self.accelerator.log({f"train/{name}": value for name, value in record.items()}, self.history.step)
        if self.vdm.unit is BITS_PER_DIM:
            for sentence in drifted_end_points(record):
                self._warn(sentence)

    def _validate(self) -> None:
        """Evaluate the moving average of the weights, plot its schedule and draw samples."""
        images = self.data.validation
        if self.config.max_validation_images is not None:
            images = Subset(images, range(min(len(images), self.config.max_validation_images)))
        with self._averaged_weights() as vdm:
            images = with_encoded_captions(images, vdm.prompt_encoder, vdm.unet)
            bound = self._bound(vdm, images)
            self.history.validation.append({"step": self.history.step} | bound.record())
            gammas = vdm.noise_schedule.chain(100).tolist()
            self.history.schedules.append({"step": self.history.step, "gammas": gammas})
            samples = draw_samples(self.accelerator, vdm, self.config) if self.history.step else []
            figure = f"{bound.per_dim:.4f} ± {bound.standard_error:.4f} {bound.unit.label}"
            self._write(f"{figure} on {len(images)} held-out images")
            if self.accelerator.is_main_process:
                self._show(vdm, samples)
        self.accelerator.wait_for_everyone()

    def _show(self, vdm: VDM, samples: list[PIL.Image.Image]) -> None:
        """Log and draw the last validation, and publish it."""
        step, record = self.history.step, self.history.validation[-1]
        with self._going_on_without("the log and the pictures"):
            self.accelerator.log({f"validation/{name}": value for name, value in record.items() if type(value) is float}, step)
            save_noise_schedule(self.history.schedules, self.output_dir / NOISE_SCHEDULE)
            if samples:
                path = self.output_dir / samples_of(step)
                path.parent.mkdir(exist_ok=True)
                save_samples(samples, vdm, path, sample_prompts(self.config))
            publish = self.publish if 0 < step < self.config.max_train_steps else None
            if publish is not None and (warning := publish(self._without_adapters(vdm), self.history)):
                self._warn(warning)

    def _without_adapters(self, vdm: VDM) -> VDM:
        """The model as it is saved, itself left as it is."""
        if self.config.lora_rank is not None:
            vdm = vdm.copy()
            merge_adapters(vdm.unet)
        return vdm

    def _bound(self, vdm: VDM, images: Dataset) -> VariationalBound:
        """The bound on held-out images, which the processes share."""
        return variational_bound(
            vdm,
            images,
            self.config.validation_repeats,
            self.config.train_batch_size,
            self.config.seed,
            self.accelerator.device,
            PartialState(),
        )

    @contextmanager
    def _averaged_weights(self) -> Iterator[VDM]:
        """A model with the moving average of the weights, while it lasts."""
        self.ema.store(self.placement.parameters())
        self.ema.copy_to(self.placement.parameters())
        try:
            yield self.placement.whole_model()
        finally:
            self.ema.restore(self.placement.parameters())

    def _save_checkpoint(self) -> None:
        """Begin to write one, once that before is written."""
        self._finish_checkpoint()
        self._reduce_window()
        with self._going_on_without_checkpoint():
            self.checkpoints.begin(self.history.step)

    def _finish_checkpoint(self) -> None:
        """Wait for the checkpoint that is being written, if any. Other processes don't wait."""
        with self._going_on_without_checkpoint():
            self.checkpoints.wait()

    @contextmanager
    def _finishing_checkpoint(self) -> Iterator[None]:
        try:
            yield
        finally:
            self._finish_checkpoint()

    @contextmanager
    def _going_on_without_checkpoint(self) -> Iterator[None]:
        """Say why a checkpoint can't be written, and carry on: the disk may have room again by the next."""
        try:
            yield
        except CheckpointError as error:
            last = latest_checkpoint(self.output_dir) if self.accelerator.is_main_process else None
            kept = "there is none yet" if last is None else f"the last good one is {last}"
            warning = f"no checkpoint could be written: {error}. Training goes on; {kept}."
            self._warn(warning, self.checkpoints.step)

    def _stop(self, number: signal.Signals) -> None:
        self._leave_checkpoint()
        raise TrainingStopped(Message("{} at step {}: {}", number.name, self.history.step, self._way_on()))

    def _leave_checkpoint(self) -> None:
        """Write the checkpoint with which a run ends early."""
        self._finish_checkpoint()
        self.accelerator.wait_for_everyone()
        if not (self.output_dir / f"{CHECKPOINT}{self.history.step}").exists():
            self._reduce_window()
            self.checkpoints.write(self.history.step)
        self.progress.close()

    @contextmanager
    def _leaving_checkpoint(self) -> Iterator[None]:
        """If data can't be read, end the run with a checkpoint, on all processes."""
        try:
            yield
        except DataError as error:
            self._leave_checkpoint()
            raise DataError(Message("{} {}", error, self._way_on())) from error

    def _way_on(self) -> Message:
        checkpoint = f"{CHECKPOINT}{self.history.step}"
        return Message("{} is written, go on from it by {resume_from_checkpoint:latest}.", checkpoint)

    def _note_unreadable(self, sentences: Sequence[str]) -> None:
        """List images that were left out, in the run's folder, and the first of them on the terminal."""
        new = [sentence for sentence in sentences if sentence not in self.unreadable]
        if new:
            if len(self.unreadable) < SHOWN_UNREADABLE:
                self._warn(describe_unreadable(new))
            self.unreadable.update(new)
            with self._going_on_without(UNREADABLE), open(self.output_dir / UNREADABLE, "a") as file:
                file.writelines(f"{sentence}\n" for sentence in new)

    def _load(self, checkpoint: Path) -> None:
        """Go on from a checkpoint; random numbers are its own if it is one of as many processes, else drawn anew."""
        same_processes = read_manifest(checkpoint).run.num_processes == self.accelerator.num_processes
        failure = None
        try:
            self.state.load(checkpoint, with_random_states=same_processes)
        except Exception as error:  # whatever a forged or foreign file leads to, on any of the processes
            failure = unusable(error)
        if failures := [failure for failure in gather_object([failure]) if failure is not None]:
            raise ValueError(Message("{} {}", checkpoint, failures[0]))
        if not same_processes:
            set_seed((self.config.seed + 1_000_003 * self.history.step) % 2**31, device_specific=True)

    def _write(self, sentence: str, step: int | None = None) -> None:
        """Print what happened at a step, by default the last one."""
        if self.accelerator.is_main_process:
            self.progress.write(redacted(f"step {self.history.step if step is None else step}: {sentence}"))

    def _warn(self, sentence: str, step: int | None = None) -> None:
        self._write(f"warning: {sentence}", step)

    @contextmanager
    def _going_on_without(self, what: str) -> Iterator[None]:
        """Warn and carry on if a file can't be written: a full disk must not end a run of days for a picture."""
        try:
            yield
        except OSError as error:
            self._warn(f"{what} could not be written: {error}")


def _moments(loss: VDMLoss) -> Tensor:
    """The batch's means of the prior, reconstruction and diffusion terms and of the last one's square, `(4,)`, in its unit."""
    terms = torch.stack([loss.prior, loss.reconstruction, loss.diffusion]).detach() / loss.nats_in_unit
    return torch.cat([terms, terms[2:] ** 2]).mean(1)
