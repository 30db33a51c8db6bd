"""The lossless codec: its rates beside the bound of the same steps and other codecs, and its time outside the denoiser.

python benchmarks/compression.py --model vdm-digits --few_steps_dir few-steps --num_inference_steps 5 10 20 40
python benchmarks/compression.py --model vdm-mnist --few_steps_dir few-steps-mnist --data_dir shared/data/mnist --max_images 500
python benchmarks/compression.py --model vdm-digits --few_steps_dir few-steps --bin_precisions 0 1 2 3 --num_inference_steps 20
python benchmarks/compression.py --model vdm-emoji --dataset_name emoji --train --max_images 500 --num_inference_steps 5
python benchmarks/compression.py --time --block_channels 64 --num_images 4
"""

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from diffusers import DiffusionPipeline
from torch import Tensor
from torch.utils.data import Subset

from vdm_diffusers import VDM, LinearSchedule, VDMScheduler, VDMUNet2DModel
from vdm_diffusers.compress import Untold
from vdm_diffusers.compression import Compressor, Item, Rates, coding_model, decompress
from vdm_diffusers.compression.blocks import condition_of
from vdm_diffusers.compression.other_codecs import rates_of_others
from vdm_diffusers.conditioning import mapped
from vdm_diffusers.data import load_images
from vdm_diffusers.likelihood.net_rate import net_rate


class BytesFile(list):
    """A file in memory."""

    write = list.append

    def flush(self) -> None:
        pass

    def content(self) -> bytes:
        return b"".join(self)


@torch.no_grad()
def chain_bound(vdm: VDM, images: Tensor, num_repeats: int) -> tuple[float, float]:
    """Mean over images of the bound in all steps of the chain, and its error by the noise, in bits/dim."""
    generator, repeats = torch.Generator().manual_seed(0), []
    vdm = vdm.eval()
    condition = mapped(lambda _, row: row.expand(len(images), *row.shape[1:]), condition_of(vdm, vdm.prompt_encoder))
    for _ in range(num_repeats):
        total = 0.0
        for step in range(1, vdm.num_timesteps + 1):
            loss = vdm(images, condition, times=torch.full((len(images),), step / vdm.num_timesteps), generator=generator)
            total += ((loss.prior + loss.reconstruction + loss.diffusion) / loss.nats_in_unit).mean().item() / vdm.num_timesteps
        repeats.append(total)
    return float(np.mean(repeats)), float(np.std(repeats, ddof=1) / num_repeats**0.5)


def compressed(vdm: VDM, images: Tensor, bin_precision: int) -> tuple[bytes, Rates]:
    file = BytesFile()
    with Compressor(file, vdm, bin_precision) as compressor:
        for image in images:
            compressor.append(Item(image))
    return file.content(), compressor.rates


def rates(options: argparse.Namespace) -> None:
    pipeline = DiffusionPipeline.from_pretrained(options.model)
    if options.few_steps_dir is not None:
        pipeline.scheduler = VDMScheduler.from_pretrained(options.few_steps_dir, subfolder="scheduler")
    data = load_images(
        options.dataset_name, options.data_dir, num_levels=pipeline.config.get("num_levels", 256), check_train=False
    )
    split = data.train if options.train else data.validation
    number = min(len(split), options.max_images or len(split))
    images = torch.stack([split[index]["images"] for index in range(number)])
    columns = (
        "steps",
        "bins",
        "bound of the chain",
        "net",
        "net, the file's",
        "gross",
        "initial bits, images",
        "comes back",
        "s",
    )
    print(f"| {' | '.join(columns)} |\n|{' --- |' * len(columns)}")
    for num_steps in options.num_inference_steps:
        vdm = coding_model(pipeline, num_steps)
        bound, error = chain_bound(vdm, images, options.num_repeats)
        for bin_precision in options.bin_precisions:
            start = time.perf_counter()
            content, found = compressed(vdm, images, bin_precision)
            seconds = (time.perf_counter() - start) / number
            exact = torch.equal(decompress(pipeline, content).int(), images.int())
            net = net_rate(vdm, Untold(Subset(split, range(number)), vdm), options.num_repeats, bin_precision=bin_precision)
            print(
                f"| {num_steps} | 1/{2**bin_precision} | {bound:.4f} ± {error:.4f}"
                f" | {net.per_dim:.4f} ± {net.standard_error_draws:.4f} | {found.net:.4f} | {found.gross:.4f}"
                f" | {found.initial_bits:.0f}, {found.num_plain} | {'all' if exact else 'NOT ALL'} | {seconds:.4f} |",
                flush=True,
            )
    others = rates_of_others(images, vdm.num_levels)
    print(", ".join(f"{name} {rate:.4f}" for name, rate in others.items()) + f" bits/dim; {number} images of {data.name}")


@contextmanager
def timed(vdm: VDM) -> Iterator[Callable[[], float]]:
    """How long the denoiser has been computing, in seconds, summed over threads."""
    spent, denoise = [], vdm.denoise

    def measured(*arguments) -> Tensor:
        start = time.perf_counter()
        output = denoise(*arguments)
        spent.append(time.perf_counter() - start)
        return output

    vdm.denoise = measured
    yield lambda: sum(spent)
    del vdm.denoise


def times(options: argparse.Namespace) -> None:
    """Of an untrained model of 32×32 colour images: what the codec takes beside the denoiser."""
    torch.manual_seed(0)
    unet = VDMUNet2DModel(sample_size=32, in_channels=3, block_channels=options.block_channels, layers_per_side=32)
    pipeline = VDM(unet, LinearSchedule()).to_pipeline()
    images = torch.randint(0, 256, (options.num_images, 3, 32, 32), dtype=torch.uint8)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # one block at a time, so that the times of threads are those of the clock
    print(f"{sum(p.numel() for p in unet.parameters()) / 1e6:.1f} M weights, {options.num_images} images 3×32×32, one thread")
    print("| steps | images/s | numbers/s | outside the denoiser |")
    print("| --- | --- | --- | --- |")
    for num_steps in options.num_inference_steps:
        vdm = coding_model(pipeline, num_steps)
        with timed(vdm) as in_denoiser:
            start = time.perf_counter()
            _, found = compressed(vdm, images, options.bin_precisions[0])
            seconds = time.perf_counter() - start
        coded = found.num_images - found.num_plain
        print(
            f"| {num_steps} | {coded / seconds:.3f} | {coded * found.num_dims / seconds:,.0f}"
            f" | {1 - in_denoiser() / seconds:.1%} |",
            flush=True,
        )
    torch.set_num_threads(threads)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="vdm-digits")
    parser.add_argument("--few_steps_dir")
    parser.add_argument("--dataset_name")
    parser.add_argument("--data_dir")
    parser.add_argument("--train", action="store_true", help="training images, where there are too few held out")
    parser.add_argument("--max_images", type=int)
    parser.add_argument("--num_inference_steps", type=int, nargs="+", default=[5, 10, 20])
    parser.add_argument("--bin_precisions", type=int, nargs="+", default=[1])
    parser.add_argument("--num_repeats", type=int, default=4)
    parser.add_argument("--time", action="store_true")
    parser.add_argument("--block_channels", type=int, default=64)
    parser.add_argument("--num_images", type=int, default=4)
    options = parser.parse_args()
    times(options) if options.time else rates(options)


if __name__ == "__main__":
    main()
