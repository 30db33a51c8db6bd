"""What everything around the denoiser costs: ratios to the bare denoiser and to diffusers, measured in turns in one run.

python benchmarks/overhead.py
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from pathlib import Path

import diffusers
import PIL.Image
import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from ratios import Ratio, ratio
from torch.nn.functional import mse_loss, softplus
from torch.utils.data import DataLoader

from vdm_diffusers import VDM, LearnedMonotoneSchedule, VDMScheduler, VDMUNet2DModel
from vdm_diffusers.data import ImageDataset, load_digits, load_images
from vdm_diffusers.likelihood import variational_bound
from vdm_diffusers.likelihood.ddpm_bound import DDPM, ddpm_bound
from vdm_diffusers.training import Trainer
from vdm_diffusers.training.config import TrainingConfig
from vdm_diffusers.training.moving_average import MovingAverage
from vdm_diffusers.training.optimizers import build_optimizer


RESOLUTION = 32
BATCHES = (1, 16, 64)
STEPS = 100
CHAIN = {"beta_schedule": "linear", "clip_sample": False}
PEERS = {
    "DDPM": (diffusers.DDPMScheduler, {}),
    "DDIM": (diffusers.DDIMScheduler, {"eta": 0.0}),
    "Euler": (diffusers.EulerDiscreteScheduler, {"eta": 0.0}),
    "DPM-Solver++": (diffusers.DPMSolverMultistepScheduler, {"eta": 0.0}),
}
"""Schedulers to compare with, and how VDMScheduler is told to make steps that are deterministic where theirs are."""


class Model:
    """A VDM, and its denoiser with inputs of the same shapes."""

    def __init__(self, options: argparse.Namespace):
        self.unet = VDMUNet2DModel(
            RESOLUTION, 3, block_channels=options.block_channels, layers_per_side=options.layers_per_side, dropout=0.0
        )
        self.vdm = VDM(self.unet, LearnedMonotoneSchedule())
        shape = (options.batch_size, 3, RESOLUTION, RESOLUTION)
        self.images = torch.randint(0, 256, shape, dtype=torch.uint8)
        self.z_t, self.noise = torch.randn(shape), torch.randn(shape)
        self.timesteps = 1000 * torch.rand(len(self.images))
        self.ddpm = diffusers.DDPMScheduler()

    def training_step(self) -> None:
        self.vdm.zero_grad()
        self.vdm(self.images).bits_per_dim.mean().backward()

    def diffusers_loss(self) -> torch.Tensor:
        """As diffusers' own example of unconditional training has it: noise, `add_noise`, mean squared error."""
        x = self.images.float() / 127.5 - 1
        noise = torch.randn(x.shape)
        timesteps = torch.randint(0, 1000, (len(x),))
        z_t = self.ddpm.add_noise(x, noise, timesteps)
        return mse_loss(self.unet(z_t, timesteps).sample, noise)

    def diffusers_training_step(self) -> None:
        self.vdm.zero_grad()
        self.diffusers_loss().backward()

    def plain_loss(self) -> torch.Tensor:
        """The loss of the paper in plain PyTorch: the schedule differentiated by autograd, a softmax over all levels."""
        x = (2 * self.images.float() + 1) / 256 - 1
        times = ((torch.rand(()) + torch.arange(len(x)) / len(x)) % 1).requires_grad_()
        gamma = self.vdm.noise_schedule(times)
        (slope,) = torch.autograd.grad(gamma.sum(), times, create_graph=True)
        gamma_0, gamma_1 = self.vdm.noise_schedule(torch.tensor([0.0, 1.0]))
        prior = 0.5 * (torch.sigmoid(-gamma_1) * (x**2 - 1) + softplus(-gamma_1))
        noisy = x + torch.exp(gamma_0 / 2) * torch.randn_like(x)
        levels = (2 * torch.arange(256) + 1) / 256 - 1
        log_p = (-0.5 * torch.exp(-gamma_0) * (noisy[..., None] - levels) ** 2).log_softmax(-1)
        reconstruction = -log_p.gather(-1, self.images[..., None].long()).squeeze(-1)
        eps, wide = torch.randn_like(x), gamma.reshape(-1, 1, 1, 1)
        z_t = torch.sigmoid(-wide).sqrt() * x + torch.sigmoid(wide).sqrt() * eps
        error = (eps - self.unet(z_t, self.vdm.timestep_map(gamma)).sample) ** 2
        loss = prior + reconstruction + 0.5 * slope.reshape(-1, 1, 1, 1) * error
        return loss.flatten(1).sum(1).mean() / (x[0].numel() * 0.6931471805599453)

    def plain_training_step(self) -> None:
        self.vdm.zero_grad()
        self.plain_loss().backward()

    def denoiser_step(self) -> None:
        self.vdm.zero_grad()
        self.unet(self.z_t, self.timesteps).sample.square().mean().backward()


def training(options: argparse.Namespace) -> Iterator[tuple[str, Ratio]]:
    """Training steps over the denoiser's forward and backward pass."""
    model = Model(options)
    steps = {
        "training step": model.training_step,
        "training step, plain PyTorch": model.plain_training_step,
        "training step, diffusers": model.diffusers_training_step,
    }
    for name, step in steps.items():
        yield f"{name} / denoiser forward + backward", ratio(step, model.denoiser_step, options.repeats)


def sampling(options: argparse.Namespace) -> Iterator[tuple[str, Ratio]]:
    """The sampling loop of the pipeline over as many calls of its denoiser."""
    model = Model(options)
    pipe = model.vdm.eval().to_pipeline()
    pipe.set_progress_bar_config(disable=True)

    def loop() -> None:
        pipe(options.batch_size, num_inference_steps=5, output_type="pt")

    @torch.no_grad()
    def calls() -> None:
        for _ in range(5):
            model.unet(model.z_t, model.timesteps)

    yield "sampling loop / denoiser calls", ratio(loop, calls, options.repeats)


def evaluation(options: argparse.Namespace) -> Iterator[tuple[str, Ratio]]:
    """Evaluations, from a data set of images to a figure with its errors, over the same calls of the denoiser."""
    unet = Model(options).unet.eval()
    pipeline = diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler())
    shape = (options.batch_size, RESOLUTION, RESOLUTION, 3)
    data = ImageDataset([{"image": image.numpy()} for image in torch.randint(0, 256, shape, dtype=torch.uint8)])
    vdm, ddpm = VDM.from_pipeline(pipeline), DDPM.from_pipeline(pipeline)
    evaluations = {
        "variational bound": lambda: variational_bound(vdm, data, num_repeats=4),
        "DDPM's bound": lambda: ddpm_bound(ddpm, data, num_indices=3),
    }
    for name, evaluate in evaluations.items():
        calls = recorded_calls(unet, evaluate)
        yield f"{name} / denoiser calls", ratio(evaluate, partial(repeat_calls, unet, calls), options.repeats)


def recorded_calls(unet: VDMUNet2DModel, function: Callable[[], object]) -> list[tuple]:
    """The arguments of the denoiser's calls in a run of the function."""
    calls = []
    hook = unet.register_forward_pre_hook(lambda _, args, kwargs: calls.append((args, kwargs)), with_kwargs=True)
    function()
    hook.remove()
    return calls


@torch.no_grad()
def repeat_calls(unet: VDMUNet2DModel, calls: list[tuple]) -> None:
    for args, kwargs in calls:
        unet(*args, **kwargs)


def stepping(options: argparse.Namespace) -> Iterator[tuple[str, Ratio]]:
    """`VDMScheduler.step` over that of diffusers' schedulers."""
    for name, (peer, kwargs) in PEERS.items():
        for batch_size in BATCHES:
            ours = steps_of(VDMScheduler(**CHAIN), batch_size, kwargs)
            theirs = steps_of(peer(beta_schedule="linear"), batch_size, kwargs if name == "DDIM" else {})
            how = "η = 0" if kwargs else "ancestral"
            yield f"VDMScheduler.step, {how} / {name}, batch {batch_size}", ratio(ours, theirs, options.repeats)


def steps_of(scheduler: diffusers.SchedulerMixin, batch_size: int, kwargs: dict) -> Callable[[], None]:
    sample, output = torch.randn(2, batch_size, 3, RESOLUTION, RESOLUTION)

    @torch.no_grad()
    def steps() -> None:
        scheduler.set_timesteps(STEPS)
        scheduler.is_scale_input_called = True
        for t in scheduler.timesteps:
            scheduler.step(output, t, sample, return_dict=False, **kwargs)

    return steps


def reading(options: argparse.Namespace) -> Iterator[tuple[str, Ratio]]:
    """Decoding a batch of PNG files over a training step on it, without worker processes."""
    model = Model(options)
    with tempfile.TemporaryDirectory() as folder:
        for split in ("train", "test"):
            for index in range(options.batch_size):
                pixels = torch.randint(0, 256, (RESOLUTION, RESOLUTION, 3), dtype=torch.uint8).numpy()
                path = Path(folder, split, f"{index}.png")
                path.parent.mkdir(exist_ok=True)
                PIL.Image.fromarray(pixels).save(path)
        data = load_images(train_data_dir=folder)
        loader = DataLoader(data.train, options.batch_size)
        yield (
            f"reading {options.batch_size} images / training step",
            ratio(lambda: next(iter(loader)), model.training_step, options.repeats),
        )


def updating(options: argparse.Namespace) -> Iterator[tuple[str, Ratio]]:
    """Optimiser and moving average, each in one kernel, over the same in more of them."""
    vdm = Model(options).vdm
    parameters = list(vdm.parameters())
    for parameter in parameters:
        parameter.grad = 1e-3 * torch.randn_like(parameter)
    fused, plain = (build_optimizer(TrainingConfig(optimizer=name), vdm).step for name in ("adamw_fused", "adamw"))
    yield "AdamW, fused / not", ratio(fused, plain, options.repeats)
    ours, theirs = (partial(kind(parameters, foreach=True).step, parameters) for kind in (MovingAverage, EMAModel))
    yield "moving average / diffusers' EMAModel, foreach", ratio(ours, theirs, options.repeats)


def checkpointing(options: argparse.Namespace) -> Iterator[tuple[str, Ratio]]:
    """What a training step waits for of a checkpoint, and all of it with writing, hashing and flushing, over such a step."""
    model, accelerator = Model(options), Accelerator(cpu=True)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(accelerator, TrainingConfig(output_dir=folder), model.vdm, load_digits())
        trainer.progress.close()
        model.training_step()
        trainer.optimizer.step()
        steps = count()
        parts = {
            "copying the state for a checkpoint": lambda: trainer.state.snapshot(Path(folder)),
            "copying and writing a checkpoint": lambda: trainer.checkpoints.write(next(steps)),
        }
        for name, part in parts.items():
            yield f"{name} / training step", ratio(part, model.training_step, options.repeats)


def fresh_process(code: str, *arguments: object) -> float:
    """The number that the code prints."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    output = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).parent).stdout
    return float(output.split()[-1])


IMPORT = """
import time, diffusers
start = time.perf_counter()
import vdm_diffusers
print(time.perf_counter() - start)
"""

PEAK_MEMORY = r"""
import json, re, sys
from argparse import Namespace
from pathlib import Path
from overhead import Model

def kilobytes(name):
    return int(re.search(name + r":\s+(\d+) kB", Path("/proc/self/status").read_text())[1])

model = Model(Namespace(**json.loads(sys.argv[1])))
before = kilobytes("VmRSS")
for _ in range(3):
    getattr(model, sys.argv[2])()
print(kilobytes("VmHWM") - before)
"""


def memory(options: argparse.Namespace) -> Iterator[tuple[str, Ratio]]:
    """The most that training steps add to the memory of their process, over the same for the bare denoiser (on Linux)."""
    model = json.dumps({name: getattr(options, name) for name in ("batch_size", "block_channels", "layers_per_side")})
    ratios = [
        fresh_process(PEAK_MEMORY, model, "training_step") / fresh_process(PEAK_MEMORY, model, "denoiser_step")
        for _ in range(3)
    ]
    low, median, high = sorted(ratios)
    yield "peak memory, training step / denoiser forward + backward", Ratio(median, low, high)


PARTS = {part.__name__: part for part in (training, sampling, evaluation, stepping, reading, updating, checkpointing, memory)}


def model_options(description: str) -> argparse.ArgumentParser:
    """A parser for the options of [`Model`], and of how often a ratio is measured."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--batch_size", type=int, default=16, help="Images a step.")
    parser.add_argument("--block_channels", type=int, default=64, help="Channels of the denoiser.")
    parser.add_argument("--layers_per_side", type=int, default=2, help="Blocks on each side of its middle.")
    parser.add_argument("--repeats", type=int, default=21, help="Measurements of each ratio.")
    return parser


def main() -> None:
    parser = model_options(__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS), help="Parts to measure.")
    parser.add_argument("--output_path", type=Path, default=Path("benchmarks/results/overhead.json"))
    options = parser.parse_args()

    print(f"{RESOLUTION}×{RESOLUTION}×3, {torch.get_num_threads()} threads, {platform.processor() or platform.machine()}\n")
    print("| ratio | median (quartiles) | ms of the first |\n| --- | --- | --- |")
    results = {}
    for name in options.only:
        for row, value in PARTS[name](options):
            milliseconds = "—" if value.seconds is None else f"{1000 * value.seconds:.4g}"
            print(f"| {row} | {value} | {milliseconds} |", flush=True)
            results[row] = value._asdict()
    imports = [fresh_process(IMPORT) for _ in range(3)]
    print(f"\n`import vdm_diffusers` after `import diffusers`: {statistics.median(imports):.3f} s")
    options.output_path.parent.mkdir(parents=True, exist_ok=True)
    results = {"options": vars(options) | {"output_path": None}, "ratios": results, "import_seconds": imports}
    options.output_path.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
