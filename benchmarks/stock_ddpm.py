"""Trains a small `DDPMPipeline` of diffusers, as its own training script does, for benchmarks to sample.

python benchmarks/stock_ddpm.py --data_dir shared/data/mnist --output_dir ddpm-mnist
"""

import argparse

import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from diffusers.optimization import get_cosine_schedule_with_warmup
from diffusers.training_utils import EMAModel
from torch.nn.functional import mse_loss
from torch.utils.data import DataLoader, RandomSampler
from tqdm import tqdm

from vdm_diffusers.data import load_images


UNET = {
    "layers_per_block": 1,
    "block_out_channels": (16, 32, 64),
    "norm_num_groups": 8,
    "attention_head_dim": 32,
    "down_block_types": ("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
}


def train(options: argparse.Namespace) -> DDPMPipeline:
    """The pipeline with the moving average of the weights."""
    torch.manual_seed(options.seed)
    data = load_images(train_data_dir=options.data_dir)
    channels, size, _ = data.shape
    unet = UNet2DModel(sample_size=size, in_channels=channels, out_channels=channels, **UNET)
    scheduler = DDPMScheduler(prediction_type="v_prediction")  # the one that samplers without clipping bear after few steps
    average = EMAModel(unet.parameters(), decay=0.999, use_ema_warmup=True, power=0.75)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-3)
    rates = get_cosine_schedule_with_warmup(optimizer, 100, options.max_train_steps)
    order = RandomSampler(data.train, replacement=True, num_samples=options.max_train_steps * options.batch_size)
    for batch in tqdm(DataLoader(data.train, options.batch_size, sampler=order)):
        x = batch["images"].float() / 127.5 - 1
        noise, timesteps = torch.randn_like(x), torch.randint(len(scheduler), (len(x),))
        output = unet(scheduler.add_noise(x, noise, timesteps), timesteps).sample
        loss = mse_loss(output, scheduler.get_velocity(x, noise, timesteps))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        rates.step()
        optimizer.zero_grad()
        average.step(unet.parameters())
    average.copy_to(unet.parameters())
    return DDPMPipeline(unet, scheduler)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--data_dir", required=True, help="Images, as the evaluation takes them.")
    parser.add_argument("--output_dir", required=True, help="Where the pipeline goes.")
    parser.add_argument("--max_train_steps", type=int, default=3000)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    train(options).save_pretrained(options.output_dir)


if __name__ == "__main__":
    main()
