"""Bits per dimension of a model on a data set.

python -m vdm_diffusers.evaluate --pretrained_model_name_or_path vdm-digits
python -m vdm_diffusers.evaluate --pretrained_model_name_or_path vdm-cifar10 --dataset_name cifar10 --split test
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import torch

from .data import load_images
from .likelihood import variational_bound
from .vdm import VDM


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m vdm_diffusers.evaluate",
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--pretrained_model_name_or_path", required=True, help="A saved VDM, folder or Hub name.")
    parser.add_argument("--dataset_name", help="A data set on the Hub.")
    parser.add_argument("--data_dir", help="A folder of images or parquet files. Without either: the embedded digits.")
    parser.add_argument("--image_column", help="The column of images. Default: the only one, or image.")
    parser.add_argument("--label_column", help="The column of class labels, for a class-conditional model.")
    parser.add_argument("--split", help="The split to evaluate. Default: validation or test.")
    parser.add_argument("--num_timesteps", type=int, help="T of the discrete-time bound. Default: continuous time.")
    parser.add_argument("--num_repeats", type=int, default=1, help="Times and noises an image.")
    parser.add_argument("--batch_size", type=int, default=128, help="Images a batch; the result does not depend on it.")
    parser.add_argument("--seed", type=int, default=0, help="Of the draws.")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="Where to compute.")
    parser.add_argument("--output_path", type=Path, help="A JSON file for the result.")
    options = parser.parse_args(arguments)
    try:
        result = evaluate(options)
    except ValueError as error:
        raise SystemExit(f"evaluate.py: {error}") from error
    print("| | bits/dim |\n| --- | --- |")
    print(f"| variational bound | {result['bits_per_dim']:.4f} ± {result['standard_error']:.4f} |")
    for term in ("prior", "reconstruction", "diffusion"):
        print(f"| — {term} | {result[term]:.4f} |")
    if options.output_path is not None:
        options.output_path.write_text(json.dumps(result, indent=2) + "\n")


def evaluate(options: argparse.Namespace) -> dict[str, float]:
    """The bound and its terms; `ValueError` if the images are not what the model is one of."""
    for name in ("num_repeats", "batch_size"):
        if getattr(options, name) < 1:
            raise ValueError(f"`--{name}` is {getattr(options, name)}, but must be at least 1.")
    vdm = VDM.from_pretrained(options.pretrained_model_name_or_path, options.num_timesteps)
    data = load_images(
        dataset_name=options.dataset_name,
        train_data_dir=options.data_dir,
        image_column=options.image_column,
        label_column=options.label_column,
        validation_split=options.split,
        num_levels=vdm.num_levels,
    )
    if data.shape[0] != vdm.unet.config.in_channels:
        raise ValueError(f"{data.name!r} has {data.shape[0]} channels, but the model has {vdm.unet.config.in_channels}.")
    bound = variational_bound(
        vdm.to(options.device),
        data.validation,
        num_repeats=options.num_repeats,
        batch_size=options.batch_size,
        seed=options.seed,
        device=options.device,
    )
    return asdict(bound)


if __name__ == "__main__":
    main()
