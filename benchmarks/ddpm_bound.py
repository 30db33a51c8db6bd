"""Bits per dimension of a stock `DDPMPipeline` in both conventions, before and after a few hundred steps of training on MNIST.

    python benchmarks/ddpm_bound.py --data_dir mnist --output_dir ddpm-mnist

Training is diffusers' own: the squared error of the noise at random indices of the chain.
"""

import argparse
from pathlib import Path

import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from torch.nn.functional import mse_loss
from torch.utils.data import DataLoader
from tqdm import tqdm

from vdm_diffusers import evaluate
from vdm_diffusers.data import load_images


def train(pipeline: DDPMPipeline, data_dir: str, num_steps: int, batch_size: int) -> None:
    images = load_images(train_data_dir=data_dir).train
    batches = DataLoader(images, batch_size, shuffle=True, generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.AdamW(pipeline.unet.parameters(), lr=1e-3)
    for _, batch in zip(tqdm(range(num_steps)), batches):
        x = batch["images"] / 127.5 - 1
        noise = torch.randn_like(x)
        timesteps = torch.randint(0, pipeline.scheduler.config.num_train_timesteps, (len(x),))
        predicted = pipeline.unet(pipeline.scheduler.add_noise(x, noise, timesteps), timesteps).sample
        mse_loss(predicted, noise).backward()
        optimizer.step()
        optimizer.zero_grad()


def measure(folder: Path, options: argparse.Namespace) -> None:
    """Evaluate the pipeline in the folder, print the table, and leave `bits_per_dim.json` there."""
    flags = {
        "pretrained_model_name_or_path": folder,
        "data_dir": options.data_dir,
        "estimators": "vlb ddpm",
        "num_timesteps": "999 continuous",
        "variance_type": "fixed_small fixed_large",
        "max_images": options.max_images,
        "num_indices": options.num_indices,
        "num_repeats": options.num_repeats,
        "output_path": folder / "bits_per_dim.json",
    }
    print(f"\n{folder.name}: ", end="")
    evaluate.main([part for name, value in flags.items() for part in (f"--{name}", *str(value).split())])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--data_dir", required=True, help="The folder of MNIST, `train.parquet` and `test.parquet`.")
    parser.add_argument("--num_steps", type=int, default=300, help="Training steps.")
    parser.add_argument("--batch_size", type=int, default=32, help="Images a step.")
    parser.add_argument("--channels", type=int, default=32, help="Channels of the denoiser's finest blocks.")
    parser.add_argument("--max_images", type=int, default=64, help="Test images to evaluate.")
    parser.add_argument("--num_indices", type=int, default=50, help="Terms of the chain to draw for an image.")
    parser.add_argument("--num_repeats", type=int, default=2, help="Repeats of the evaluation.")
    parser.add_argument("--output_dir", type=Path, default=Path("ddpm-mnist"), help="For the two pipelines and their figures.")
    options = parser.parse_args()

    torch.manual_seed(0)
    unet = UNet2DModel(
        28,
        in_channels=1,
        out_channels=1,
        block_out_channels=(options.channels, 2 * options.channels),
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        layers_per_block=1,
    )
    pipeline = DDPMPipeline(unet, DDPMScheduler())
    for name in ("untrained", "trained"):
        if name == "trained":
            train(pipeline, options.data_dir, options.num_steps, options.batch_size)
        pipeline.save_pretrained(options.output_dir / name)
        measure(options.output_dir / name, options)


if __name__ == "__main__":
    main()
