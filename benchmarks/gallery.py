"""Images of a model in few and in many steps, and the row of the gallery's table: what it has, took and reaches.

python benchmarks/gallery.py --model vdm-digits --figure docs/images/gallery_digits.png
"""

import argparse
import json
from pathlib import Path

import torch

from vdm_diffusers import VDMPipeline
from vdm_diffusers.conditioning import num_classes
from vdm_diffusers.figures import save_labelled_grid


def conditions(pipe: VDMPipeline, number: int, prompts: list[str] | None) -> dict[str, list]:
    """Arguments of a call for so many images: prompts or every class in turn, where the model takes them."""
    choices = {"prompt": prompts, "class_labels": range(num_classes(pipe.unet) or 0)}
    return {name: [values[i % len(values)] for i in range(number)] for name, values in choices.items() if values}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--model", required=True, type=Path, help="Folder of a training run.")
    parser.add_argument("--figure", required=True, type=Path, help="The picture to draw.")
    parser.add_argument("--num_inference_steps", type=int, nargs="+", default=[5, 10, 50, 250])
    parser.add_argument("--num_images", type=int, default=16, help="Of each number of steps; all begin at the same noise.")
    parser.add_argument("--prompts", nargs="+", help="For a model of text.")
    parser.add_argument("--guidance_scale", type=float, default=1.0)
    options = parser.parse_args()

    pipe = VDMPipeline.from_pretrained(options.model)
    pipe.set_progress_bar_config(disable=True)
    call = conditions(pipe, options.num_images, options.prompts)
    rows = {}
    for steps in options.num_inference_steps:
        generators = [torch.Generator().manual_seed(i) for i in range(options.num_images)]
        rows[f"{steps} steps"] = pipe(
            options.num_images,
            guidance_scale=options.guidance_scale,
            num_inference_steps=steps,
            generator=generators,
            **call,
        ).images
    save_labelled_grid(rows, options.figure)

    metrics = json.loads((options.model / "metrics.json").read_text())
    millions = sum(parameter.numel() for parameter in pipe.unet.parameters()) / 1e6
    bound = f"{metrics['bits_per_dim']:.4f} ± {metrics['standard_error']:.4f}"
    minutes = metrics["seconds"]["training"] / 60
    print("| model | parameters | steps | training | held-out bits/dim |\n| --- | --- | --- | --- | --- |")
    print(f"| {options.model.name} | {millions:.2f} million | {metrics['step']:,} | {minutes:.1f} min | {bound} |")


if __name__ == "__main__":
    main()
