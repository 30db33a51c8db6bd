"""What a training run does: builds a model, trains it, and looks at it from time to time."""

import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import torch
from accelerate import Accelerator, skip_first_batches
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch import Tensor
from torch.utils.data import DataLoader, Subset
from tqdm.auto import tqdm

from .data import ImageData
from .figures import save_image_grid, save_noise_schedule
from .likelihood import variational_bound
from .training_config import TrainingConfig
from .vdm import LOG_2, VDM, VDMLoss, stratified_times


MIN_GAMMA_RANGE = 1.0
"""What gamma must at least rise by: below it even the noisiest latent shows the data."""


class History:
    """What has been logged so far, part of every checkpoint.

    Attributes:
        step (`int`): Optimiser steps done.
        training, validation (`list[dict]`): Records with `step` and `bits_per_dim`, those of the validation with
            `standard_error`.
        schedules (`list[dict]`): Records with `step` and `gammas`, of the noise schedule at 101 equidistant times.
    """

    def __init__(self):
        self.step, self.training, self.validation, self.schedules = 0, [], [], []

    def state_dict(self) -> dict:
        return vars(self).copy()

    def load_state_dict(self, state: dict) -> None:
        vars(self).update(state)


class Trainer:
    """
    Trains a VDM with Accelerate; the options are those of [`TrainingConfig`].

    Raises `ValueError` if there are fewer images than a batch takes, or no checkpoint where one is to be resumed.

    Attributes:
        vdm ([`VDM`]): What is trained.
        history ([`History`]): What has been logged.
    """

    def __init__(self, accelerator: Accelerator, config: TrainingConfig, vdm: VDM, data: ImageData):
        self.accelerator, self.config, self.vdm, self.data = accelerator, config, vdm, data
        self._check_batch_size()
        optimizer = torch.optim.AdamW(
            [
                {"params": vdm.unet.parameters(), "lr": config.learning_rate, "weight_decay": config.adam_weight_decay},
                {
                    "params": vdm.noise_schedule.parameters(),
                    "lr": config.schedule_learning_rate,
                    "weight_decay": 0.0,
                },
            ],
            betas=(config.adam_beta1, config.adam_beta2),
            eps=config.adam_epsilon,
        )
        self.lr_scheduler = get_scheduler(
            config.lr_scheduler,
            optimizer,
            num_warmup_steps=config.lr_warmup_steps,
            num_training_steps=config.max_train_steps,
        )
        loader = DataLoader(
            data.train,
            config.train_batch_size,
            shuffle=True,
            drop_last=True,
            num_workers=config.dataloader_num_workers,
            generator=torch.Generator(),  # an iterator draws a seed, which must not come from the global generator
        )
        self.model, self.optimizer, self.loader = accelerator.prepare(vdm, optimizer, loader)
        self.ema = EMAModel(vdm.parameters(), decay=config.ema_decay, use_ema_warmup=True, power=0.75, foreach=True)
        self.ema.to(accelerator.device)
        self.history = History()
        self.window: list[Tensor] = []
        accelerator.register_for_checkpointing(self.lr_scheduler, self.ema, self.history)
        if config.resume_from_checkpoint is not None:
            accelerator.load_state(str(find_checkpoint(config)))

    def train(self) -> VDM:
        """
        Run to `max_train_steps` and return the model with the moving average of its weights.

        Raises `FloatingPointError` when a loss or a gradient is not finite, naming the step and the last good checkpoint.
        """
        batches = self._batches()
        self.progress = tqdm(
            total=self.config.max_train_steps,
            initial=self.history.step,
            desc="Training",
            disable=not self.accelerator.is_main_process,
        )
        if self.history.step == 0:
            self._validate()
        self.model.train()
        while self.history.step < self.config.max_train_steps:
            self._optimizer_step(batches)
            if self._due(self.config.logging_steps) or self._due(self.config.checkpointing_steps):
                self._log()
            if self._due(self.config.validation_steps):
                self._validate()
                self._sample()
            if self._due(self.config.checkpointing_steps):
                self._save_checkpoint()
        self.progress.close()
        self.ema.copy_to(self.vdm.parameters())
        return self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)

    def _due(self, interval: int) -> bool:
        return self.history.step % interval == 0 or self.history.step == self.config.max_train_steps

    def _check_batch_size(self) -> None:
        needed = self.config.train_batch_size * self.accelerator.num_processes
        if len(self.data.train) < needed:
            raise ValueError(
                f"`--train_batch_size` {self.config.train_batch_size} on {self.accelerator.num_processes} processes takes"
                f" {needed} images at once, but {self.data.name!r} has {len(self.data.train)}: lower it."
            )

    def _batches(self) -> Iterator[dict[str, Tensor]]:
        """Batches from where the run stands, epoch after epoch, each in its own order."""
        done = self.history.step * self.config.gradient_accumulation_steps
        first_epoch, to_skip = divmod(done, len(self.loader))
        for epoch in count(first_epoch):
            self.loader.set_epoch(epoch)
            yield from skip_first_batches(self.loader, to_skip) if to_skip else self.loader
            to_skip = 0

    def _optimizer_step(self, batches: Iterator[dict[str, Tensor]]) -> None:
        moments = []
        for micro_step in range(self.config.gradient_accumulation_steps):
            batch = next(batches)
            with self.accelerator.accumulate(self.model):
                loss = self.model(batch["images"], self._labels(batch), self._times(micro_step))
                self.accelerator.backward(loss.objective.mean())
                moments.append(_moments(loss))
                if self.accelerator.sync_gradients:
                    norm = self.accelerator.clip_grad_norm_(self.vdm.unet.parameters(), self.config.max_grad_norm)
                self.optimizer.step()
                self.optimizer.zero_grad()
        self.lr_scheduler.step()
        self.ema.step(self.vdm.parameters())
        self.window.append(torch.cat([torch.stack(moments).mean(0), norm.detach().reshape(1)]))
        self.history.step += 1
        self.progress.update()

    def _labels(self, batch: dict[str, Tensor]) -> Tensor | None:
        """The labels, a share of them replaced by the null class."""
        labels = batch.get("class_labels")
        if labels is None:
            return None
        dropped = torch.rand(labels.shape, device=labels.device) < self.config.class_dropout
        return torch.where(dropped, self.data.num_classes, labels)

    def _times(self, micro_step: int) -> Tensor:
        """This process's share of the times of the step, which are stratified over all its processes and batches."""
        parts = self.accelerator.num_processes * self.config.gradient_accumulation_steps
        part = self.accelerator.process_index + self.accelerator.num_processes * micro_step
        generator = torch.Generator().manual_seed((self.config.seed << 32) + self.history.step)
        times = stratified_times(torch.rand((), generator=generator), parts * self.config.train_batch_size)
        return times[part::parts].to(self.accelerator.device)

    def _log(self) -> None:
        """Average what was seen since the last time, and tell it to the history, the progress bar and the trackers."""
        window = self.accelerator.reduce(torch.stack(self.window), reduction="mean").cpu()
        self.window.clear()
        self._check_finite(window)
        prior, reconstruction, diffusion, square, gradient_norm = window.mean(0).tolist()
        gamma_0, gamma_1 = self.vdm.noise_schedule.chain(1).tolist()
        record = {
            "bits_per_dim": prior + reconstruction + diffusion,
            "prior": prior,
            "reconstruction": reconstruction,
            "diffusion": diffusion,
            "diffusion_variance": square - diffusion**2,
            "gradient_norm": gradient_norm,
            "learning_rate": self.lr_scheduler.get_last_lr()[0],
            "gamma_0": gamma_0,
            "gamma_1": gamma_1,
        }
        self._check_schedule(record)
        self.history.training.append({"step": self.history.step} | record)
        self.progress.set_postfix_str(f"{record['bits_per_dim']:.3f} bits/dim")
        self.accelerator.log({f"train/{name}": value for name, value in record.items()}, self.history.step)

    def _check_finite(self, window: Tensor) -> None:
        """`window` holds, for each step since the last check, the moments of the terms and the norm of the gradient."""
        checked = window[:, :-1] if self.accelerator.scaler is not None else window
        bad = (~checked.isfinite().all(1)).nonzero()
        if len(bad):
            step = self.history.step - len(window) + 1 + bad[0].item()
            checkpoint = latest_checkpoint(self.config)
            resume = "There is no checkpoint yet" if checkpoint is None else f"The last good checkpoint is {checkpoint}"
            raise FloatingPointError(
                f"The loss or its gradient is not finite at step {step}. {resume}; go on with a lower `--learning_rate`."
            )

    def _check_schedule(self, record: dict[str, float]) -> None:
        """Stop if the schedule has collapsed; warn if its end points have drifted to where another term dominates."""
        gamma_0, gamma_1 = record["gamma_0"], record["gamma_1"]
        with torch.no_grad():
            times = torch.linspace(0, 1, 101, device=self.accelerator.device)
            slope = self.vdm.noise_schedule.with_derivative(times)[1]
        if gamma_1 - gamma_0 < MIN_GAMMA_RANGE or not (slope.isfinite() & (slope > 0)).all():
            raise FloatingPointError(
                f"The noise schedule has collapsed by step {self.history.step}: gamma runs from {gamma_0:.4g} to"
                f" {gamma_1:.4g}, its derivative from {slope.min():.4g} to {slope.max():.4g}, but it must rise everywhere and"
                f" by {MIN_GAMMA_RANGE} at least; begin with a lower `--schedule_learning_rate` or with end points further"
                " apart."
            )
        for term, end in (("prior", "gamma_1"), ("reconstruction", "gamma_0")):
            if record[term] > record["bits_per_dim"] / 2 and self.accelerator.is_main_process:
                self.progress.write(
                    f"warning: at step {self.history.step} the {term} term is {record[term]:.4f} of"
                    f" {record['bits_per_dim']:.4f} bits/dim: {end} has drifted to {record[end]:.4g}."
                )

    def _validate(self) -> None:
        """Evaluate the moving average of the weights and plot its schedule, on the main process."""
        if self.accelerator.is_main_process:
            images = self.data.validation
            if self.config.max_validation_images is not None:
                images = Subset(images, range(min(len(images), self.config.max_validation_images)))
            with self._averaged_weights():
                bound = variational_bound(
                    self.vdm,
                    images,
                    self.config.validation_repeats,
                    self.config.train_batch_size,
                    self.config.seed,
                    self.accelerator.device,
                )
                gammas = self.vdm.noise_schedule.chain(100).tolist()
            self.history.schedules.append({"step": self.history.step, "gammas": gammas})
            save_noise_schedule(self.history.schedules, Path(self.config.output_dir, "noise_schedule.png"))
            record = {"bits_per_dim": bound.bits_per_dim, "standard_error": bound.standard_error}
            self.history.validation.append({"step": self.history.step} | record)
            self.accelerator.log({f"validation/{name}": value for name, value in record.items()}, self.history.step)
            self.progress.write(
                f"step {self.history.step}: {bound.bits_per_dim:.4f} ± {bound.standard_error:.4f} bits/dim on"
                f" {len(images)} held-out images"
            )
        self.accelerator.wait_for_everyone()

    def _sample(self) -> None:
        """Write a grid of samples of the moving average of the weights, on the main process."""
        if self.accelerator.is_main_process:
            folder = Path(self.config.output_dir, "samples")
            folder.mkdir(parents=True, exist_ok=True)
            with self._averaged_weights():
                save_samples(self.vdm, self.config, folder / f"step-{self.history.step}.png")
        self.accelerator.wait_for_everyone()

    @contextmanager
    def _averaged_weights(self) -> Iterator[None]:
        self.ema.store(self.vdm.parameters())
        self.ema.copy_to(self.vdm.parameters())
        yield
        self.ema.restore(self.vdm.parameters())

    def _save_checkpoint(self) -> None:
        self.accelerator.save_state(os.path.join(self.config.output_dir, f"checkpoint-{self.history.step}"))
        if self.accelerator.is_main_process and self.config.checkpoints_total_limit is not None:
            for checkpoint in checkpoints(self.config)[: -self.config.checkpoints_total_limit]:
                shutil.rmtree(checkpoint)


def _moments(loss: VDMLoss) -> Tensor:
    """The batch's means of the prior, reconstruction and diffusion terms and of the last one's square, `(4,)`, in bits/dim."""
    terms = torch.stack([loss.prior, loss.reconstruction, loss.diffusion]).detach() / (loss.num_dims * LOG_2)
    return torch.cat([terms, terms[2:] ** 2]).mean(1)


def save_samples(vdm: VDM, config: TrainingConfig, path: Path) -> None:
    """Write a grid of `num_samples` images, of every class in turn if there are classes."""
    pipeline = vdm.to_pipeline()
    pipeline.set_progress_bar_config(disable=True)
    num_classes = vdm.unet.config.get("num_class_embeds")
    labels = None if num_classes is None else [i % (num_classes - 1) for i in range(config.num_samples)]
    images = pipeline(
        config.num_samples,
        class_labels=labels,
        num_inference_steps=config.num_inference_steps,
        generator=torch.Generator().manual_seed(config.seed),
    ).images
    save_image_grid(images, path, columns=math.ceil(math.sqrt(config.num_samples)))


def checkpoints(config: TrainingConfig) -> list[Path]:
    """The checkpoints of the output folder, oldest first."""
    folders = Path(config.output_dir).glob("checkpoint-*")
    return sorted(folders, key=lambda folder: int(folder.name.removeprefix("checkpoint-")))


def latest_checkpoint(config: TrainingConfig) -> Path | None:
    """The newest checkpoint of the output folder."""
    return next(reversed(checkpoints(config)), None)


def find_checkpoint(config: TrainingConfig) -> Path:
    """The checkpoint that `resume_from_checkpoint` means; `ValueError` if there is none."""
    name = config.resume_from_checkpoint
    checkpoint = latest_checkpoint(config) if name == "latest" else Path(name)
    if checkpoint is None or not checkpoint.is_dir():
        raise ValueError(
            f"`--resume_from_checkpoint` is {config.resume_from_checkpoint!r}, but there is no such checkpoint; `--output_dir`"
            f" {config.output_dir!r} holds {[folder.name for folder in checkpoints(config)]}. Leave it out to start anew."
        )
    return checkpoint
