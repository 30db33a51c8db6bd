"""What the options of training lead to on the digits: a run of a few hundred steps each, its bound and its samples.

    python benchmarks/training_options.py

Prints a table: the bound on the held-out digits, and the Fréchet distance of samples to them, pixels being the features.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import datasets
import torch
from diffusers import AutoencoderKL
from PIL.Image import Image
from torch.nn.functional import mse_loss
from torchmetrics.image.fid import FrechetInceptionDistance

from vdm_diffusers import VDMPipeline
from vdm_diffusers.autoencoders import encode, scale_to_unit
from vdm_diffusers.data import load_digits
from vdm_diffusers.figures import save_image_grid


SCRIPT = Path(__file__).parents[1] / "train_vdm.py"
SMALL = {
    "block_channels": 32, "layers_per_side": 1, "norm_num_groups": 8, "gamma_min": -8.0, "train_batch_size": 64,
    "learning_rate": 4e-3, "schedule_learning_rate": 1e-2, "lr_scheduler": "cosine", "lr_warmup_steps": 30,
    "ema_decay": 0.99, "validation_repeats": 1, "final_validation_repeats": 8, "num_samples": 16, "num_inference_steps": 100,
    "report_to": "none", "fourier_powers": "2 3",
}  # fmt: skip
STREAM = {"train_data_dir": "digits", "num_levels": 17, "streaming": True, "max_validation_images": 297}
LATENT = {"vae_model_name_or_path": "vae", "fourier_powers": ""}
RUNS: dict[str, dict] = {
    "ELBO": {},
    "epsilon": {"weighting": "epsilon"},
    "min-SNR": {"weighting": "min_snr"},
    "sigmoid": {"weighting": "sigmoid"},
    "EDM": {"weighting": "edm"},
    "class-conditional": {"label_column": "label"},
    "flip": {"augmentation": "flip"},
    "paper's augmentation, 2,000 steps": {"augmentation": "paper", "max_train_steps": 2000},
    "stream": STREAM,
    "latents": LATENT,
    "latents, cached": LATENT | {"cache_latents": "kept"},
}


def write_digits(folder: Path) -> None:
    """The digits as parquet files, four of training and one held-out."""
    data = load_digits("label")
    features = datasets.Features({"image": datasets.Array2D((8, 8), "uint8"), "label": datasets.ClassLabel(num_classes=10)})
    folder.mkdir()
    for name, split, rows in [
        *((f"train-{i}", data.train, range(375 * i, 375 * (i + 1))) for i in range(4)),
        ("test", data.validation, range(len(data.validation))),
    ]:
        columns = {"image": [split[i]["images"][0].numpy() for i in rows], "label": [split[i]["class_labels"] for i in rows]}
        datasets.Dataset.from_dict(columns, features=features).to_parquet(folder / f"{name}.parquet")


def train_autoencoder(folder: Path, steps: int = 600) -> None:
    """A small autoencoder of the digits, 4×4 latents with 4 channels, scaled to unit variance."""
    torch.manual_seed(0)
    vae = AutoencoderKL(
        in_channels=1, out_channels=1, block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=8, latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, sample_size=8,
        mid_block_add_attention=False, scaling_factor=1.0,
    )  # fmt: skip
    data = load_digits().train
    images = scale_to_unit(torch.stack([data[i]["images"] for i in range(len(data))]), 17)
    optimizer = torch.optim.Adam(vae.parameters(), lr=2e-3)
    for _ in range(steps):
        x = images[torch.randint(len(images), (64,))]
        posterior = vae.encode(x).latent_dist
        loss = mse_loss(vae.decode(posterior.sample()).sample, x) + 1e-4 * posterior.kl().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    vae.register_to_config(scaling_factor=1 / encode(vae, images).std().item())
    vae.save_pretrained(folder)


def prepare(folder: Path) -> None:
    """What the runs read."""
    write_digits(folder / "digits")
    train_autoencoder(folder / "vae")


def run(folder: Path, name: str, steps: int, threads: int = 1) -> dict:
    """The metrics of one run, with its output folder as `output_dir`."""
    out = folder / name.replace(", ", "-").replace(" ", "-")
    options = SMALL | {"max_train_steps": steps, "validation_steps": steps, "checkpointing_steps": steps} | RUNS[name]
    flags = []
    for option, value in (options | {"output_dir": out}).items():
        if value is True:
            flags.append(f"--{option}")
        elif value != "":
            flags += [f"--{option}", *str(value).split()]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "HF_DATASETS_CACHE": str(folder / "cache")}
    environment["PYTHONPATH"] = os.pathsep.join([str(SCRIPT.parent), os.environ.get("PYTHONPATH", "")])
    subprocess.run([sys.executable, str(SCRIPT), *flags], check=True, capture_output=True, env=environment, cwd=folder)
    return json.loads((out / "metrics.json").read_text()) | {"output_dir": out}


def sample(out: Path, count: int, **kwargs) -> torch.Tensor:
    """Samples in [0, 1]."""
    pipe = VDMPipeline.from_pretrained(out)
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    return pipe(count, num_inference_steps=100, generator=generator, output_type="pt", **kwargs).images


def distance(images: torch.Tensor) -> float:
    """The Fréchet distance to the held-out digits."""
    held_out = load_digits().validation
    truth = torch.stack([held_out[i]["images"] for i in range(len(held_out))]) / 16
    metric = FrechetInceptionDistance(torch.nn.Flatten(), input_img_size=truth.shape[1:])
    metric.update(truth, real=True)
    metric.update(images, real=False)
    return metric.compute().item()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=list(RUNS), help="Which to train.")
    parser.add_argument("--steps", type=int, default=400, help="Training steps of every run that says no other.")
    parser.add_argument("--num_samples", type=int, default=500, help="Samples of every run.")
    parser.add_argument("--threads", type=int, default=1, help="Of every run.")
    parser.add_argument("--figure", type=Path, help="A picture of samples, one row a run.")
    options = parser.parse_args()
    pictures: list[Image] = []
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder))
        print("| run | bound | Fréchet distance |\n| --- | --- | --- |")
        for name in options.runs:
            metrics = run(Path(folder), name, options.steps, options.threads)
            unit = "bits/dim" if "bits_per_dim" in metrics else "nats/dim"
            bound = metrics[unit.replace("/", "_per_")]
            variants = {name: {}}
            if "label_column" in RUNS[name]:
                labels = [i % 10 for i in range(options.num_samples)]
                variants = {f"{name}, guidance {scale}": {"class_labels": labels, "guidance_scale": scale} for scale in (1, 2)}
            for variant, kwargs in variants.items():
                images = sample(metrics["output_dir"], options.num_samples, **kwargs)
                cells = f"{bound:.4f} ± {metrics['standard_error']:.4f} {unit} | {distance(images):.2f}"
                print(f"| {variant} | {cells} |", flush=True)
                pictures += VDMPipeline.numpy_to_pil(images[:20].permute(0, 2, 3, 1).numpy())
    if options.figure is not None:
        save_image_grid(pictures, options.figure, columns=20, min_size=24)


if __name__ == "__main__":
    main()
