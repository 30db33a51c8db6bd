"""Whole steps of training over those of peers with the same denoiser: loss, gradient, clipping, optimiser, moving average.

    python benchmarks/peers.py

The peers are diffusers' `train_unconditional.py`, the paper's loss in plain PyTorch, and `ContinuousTimeGaussianDiffusion` of
lucidrains if it is installed: `pip install --no-deps denoising-diffusion-pytorch einops`.
"""

import argparse
import copy
import importlib.util
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import torch
from accelerate import Accelerator
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from overhead import Model, model_options
from ratios import ratio
from torch import Tensor, nn

from vdm_diffusers.data import load_digits
from vdm_diffusers.training import Trainer
from vdm_diffusers.training.config import TrainingConfig


Step = Callable[[], object]
LUCIDRAINS = "denoising_diffusion_pytorch"


def ours(options: argparse.Namespace, folder: str) -> Step:
    """The step of `train_vdm.py`, its log entry every twenty steps included."""
    model = Model(options)
    config = TrainingConfig(output_dir=folder, train_batch_size=options.batch_size, report_to="none")
    trainer = Trainer(Accelerator(cpu=True), config, model.vdm, load_digits())
    trainer.progress.close()
    trainer.model.train()

    def step() -> None:
        trainer._optimizer_step([{"images": model.images}])
        if trainer.history.step % config.logging_steps == 0:
            trainer._log()

    return step


def diffusers_step(options: argparse.Namespace) -> Step:
    """The step of `train_unconditional.py` as its options are by default, with `--use_ema`."""
    model, accelerator = Model(options), Accelerator(cpu=True)
    optimizer = torch.optim.AdamW(model.unet.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6, eps=1e-8)
    lr_scheduler = get_scheduler("cosine", optimizer, num_warmup_steps=500, num_training_steps=10_000)
    unet, optimizer, lr_scheduler = accelerator.prepare(model.unet, optimizer, lr_scheduler)
    ema = EMAModel(unet.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75)

    def step() -> float:
        loss = model.diffusers_loss()
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        lr_scheduler.step()
        optimizer.zero_grad()
        ema.step(unet.parameters())
        return loss.detach().item()

    return step


def loop(trained: nn.Module, loss: Callable[[], Tensor]) -> Step:
    """The step of a loop in plain PyTorch."""
    optimizer = torch.optim.AdamW(trained.parameters(), lr=2e-4, betas=(0.9, 0.99))
    average = copy.deepcopy(trained)

    def step() -> float:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            for averaged, parameter in zip(average.parameters(), trained.parameters()):
                averaged.lerp_(parameter, 1e-4)
        return value.item()

    return step


def plain_step(options: argparse.Namespace) -> Step:
    """A loop in plain PyTorch with the paper's loss."""
    model = Model(options)
    return loop(model.vdm, model.plain_loss)


def lucidrains_step(options: argparse.Namespace) -> Step:
    """Such a loop with the loss of lucidrains, by its learned schedule."""
    model = Model(options)
    diffusion = lucidrains().ContinuousTimeGaussianDiffusion(
        ByLogSNR(model), image_size=model.images.shape[-1], noise_schedule="learned"
    )
    return loop(diffusion, lambda: diffusion(model.images.float() / 255))


class ByLogSNR(nn.Module):
    """The denoiser as lucidrains calls one."""

    random_or_learned_sinusoidal_cond, self_condition = True, False

    def __init__(self, model: Model):
        super().__init__()
        self.unet, self.timestep_map = model.unet, model.vdm.timestep_map

    def forward(self, z_t: Tensor, log_snr: Tensor) -> Tensor:
        return self.unet(z_t, self.timestep_map(-log_snr)).sample


def lucidrains() -> ModuleType:
    """The module with the loss, without the package around it, which needs torchvision."""
    (folder,) = importlib.util.find_spec(LUCIDRAINS).submodule_search_locations
    path = Path(folder, "continuous_time_gaussian_diffusion.py")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main() -> None:
    options = model_options(__doc__.splitlines()[0]).parse_args()

    peers = {"diffusers": diffusers_step, "plain PyTorch": plain_step}
    if importlib.util.find_spec(LUCIDRAINS):
        peers["lucidrains"] = lucidrains_step
    print("| ratio | median (quartiles) | ms of the first |\n| --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        step = ours(options, folder)
        for name, peer in peers.items():
            measured = ratio(step, peer(options), options.repeats)
            print(f"| whole training step / {name} | {measured} | {1000 * measured.seconds:.4g} |", flush=True)


if __name__ == "__main__":
    main()
