r"""What a model of DDPM's objective gains by training for the bound with a learned schedule, and what it costs.

    python benchmarks/stock_ddpm.py --data_dir shared/data/mnist --output_dir ddpm-mnist
    python train_vdm.py --pretrained_model_name_or_path ddpm-mnist --noise_schedule LearnedMonotoneSchedule \
        --train_data_dir shared/data/mnist --max_train_steps 600 --train_batch_size 32 --learning_rate 3e-4 \
        --schedule_learning_rate 1e-2 --lr_scheduler cosine --lr_warmup_steps 50 --ema_decay 0.99 \
        --max_validation_images 500 --output_dir adapted-mnist
    python benchmarks/adapting.py --before ddpm-mnist --after adapted-mnist --data_dir shared/data/mnist

Both have the same images, times and noise, so their difference is known far better than the bounds. The variance is that of the
diffusion term over images, independent times and noise. Samples are compared with held-out images by the energy distance.
"""

import argparse
from dataclasses import dataclass

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from vdm_diffusers import VDM, VDMPipeline
from vdm_diffusers.data import load_images
from vdm_diffusers.few_steps.distances import Distance, energy_distance


@dataclass
class Measured:
    """Of a model: bits per dimension and the diffusion term of each image and draw, `(N, R)`, and how far its samples are."""

    bits: Tensor
    diffusion: Tensor
    samples: Distance


@torch.no_grad()
def measure(name: str, images: Tensor, options: argparse.Namespace) -> Measured:
    """The model of a folder, on integer images `(N, C, H, W)`."""
    pipeline = DiffusionPipeline.from_pretrained(name)
    vdm, source = VDM.from_pipeline(pipeline).eval(), torch.Generator().manual_seed(options.seed)
    bits, diffusion = [], []
    for batch in images.split(options.batch_size):
        draws = []
        for _ in range(options.num_repeats):
            times, noise = torch.rand(len(batch), generator=source), torch.randn(2, *batch.shape, generator=source)
            loss = vdm(batch, times=times, noise=noise)
            draws.append((loss.bits_per_dim, loss.diffusion / loss.nats_in_unit))
        bits.append(torch.stack([draw[0] for draw in draws], 1))
        diffusion.append(torch.stack([draw[1] for draw in draws], 1))
    return Measured(torch.cat(bits).double(), torch.cat(diffusion).double(), distance(pipeline, images, options))


def distance(pipeline: DiffusionPipeline, images: Tensor, options: argparse.Namespace) -> Distance:
    """That of samples from the images."""
    pipe, drawn = VDMPipeline.from_pipe(pipeline), []
    pipe.set_progress_bar_config(disable=True)
    for start in range(0, options.num_samples, options.batch_size):
        seeds = range(start, min(start + options.batch_size, options.num_samples))
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        call = {"num_inference_steps": options.num_inference_steps, "output_type": "pt"}
        drawn.append(pipe(len(seeds), generator=generators, **call).images)
    return energy_distance(torch.cat(drawn), images / 255)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--before", required=True, help="The pipeline that was adapted.")
    parser.add_argument("--after", required=True, help="What became of it.")
    parser.add_argument("--data_dir", required=True, help="Images, as the evaluation takes them.")
    parser.add_argument("--max_images", type=int, default=1000, help="Held-out images.")
    parser.add_argument("--num_repeats", type=int, default=4, help="Times and noises an image.")
    parser.add_argument("--num_samples", type=int, default=500)
    parser.add_argument("--num_inference_steps", type=int, default=50)
    parser.add_argument("--batch_size", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    held_out = load_images(train_data_dir=options.data_dir).validation
    images = torch.stack([held_out[i]["images"] for i in range(min(options.max_images, len(held_out)))])
    measured = {name: measure(name, images, options) for name in (options.before, options.after)}
    print("| model | bits/dim | variance of the diffusion term | energy distance |\n| --- | --- | --- | --- |")
    for name, model in measured.items():
        bound, error = mean_of_images(model.bits)
        far = f"{model.samples.value:.4f} ± {model.samples.standard_error:.4f}"
        print(f"| {name} | {bound:.4f} ± {error:.4f} | {model.diffusion.var():.3f} | {far} |")
    before, after = measured.values()
    difference, error = mean_of_images(after.bits - before.bits)
    print(
        f"\nDifference of the bounds: {difference:.4f} ± {error:.4f} bits/dim, {abs(difference) / error:.1f} standard errors."
    )


def mean_of_images(values: Tensor) -> tuple[float, float]:
    """The mean of `(N, R)` and its standard error over images."""
    of_images = values.mean(1)
    return of_images.mean().item(), of_images.std().item() / len(of_images) ** 0.5


if __name__ == "__main__":
    main()
