"""How well a classifier of real digits reads a model's: its confidence, and how often each digit comes, by number of steps.

python benchmarks/legibility.py --model vdm-digits --dataset_name digits
python benchmarks/legibility.py --model vdm-mnist --train_data_dir mnist --label_column label
"""

import argparse

import numpy as np
import torch
from sklearn.calibration import CalibratedClassifierCV
from sklearn.svm import SVC

from vdm_diffusers import VDMPipeline
from vdm_diffusers.conditioning import num_classes
from vdm_diffusers.data import load_images


Digits = tuple[np.ndarray, np.ndarray]
"""Images in [0, 1], flattened, and their labels."""


def digits_of(dataset, last_level: int, number: int) -> Digits:
    """So many of a data set with labels, evenly among all, since they may be sorted by label; or all."""
    rows = [dataset[i] for i in range(0, len(dataset), max(1, len(dataset) // number))]
    images = torch.stack([row["images"] for row in rows]).flatten(1).float() / last_level
    return images.numpy(), np.array([int(row["class_labels"]) for row in rows])


def samples_of(pipe: VDMPipeline, number: int, num_inference_steps: int, guidance_scale: float) -> tuple[np.ndarray, list]:
    """Images in [0, 1], flattened, and the labels that were asked for, of a model without classes none."""
    classes, generator, images = num_classes(pipe.unet), torch.Generator().manual_seed(0), []
    asked = [i % classes for i in range(number)] if classes else []
    for start in range(0, number, 100):
        part = slice(start, min(start + 100, number))
        call = {"num_inference_steps": num_inference_steps, "generator": generator, "output_type": "pt"}
        call |= {"class_labels": asked[part], "guidance_scale": guidance_scale} if classes else {}
        images.append(pipe(part.stop - part.start, **call).images.flatten(1))
    return torch.cat(images).cpu().numpy(), asked


def row(name: str, probabilities: np.ndarray, labels: np.ndarray | list) -> str:
    """Mean confidence, the share that is read with 90 % or more, the share of the rarest and of the commonest digit, and how
    many are read as what they are, or were asked to be.
    """
    confidence, read = probabilities.max(1), probabilities.argmax(1)
    shares = np.bincount(read, minlength=probabilities.shape[1]) / len(read)
    right = f"{np.mean(read == labels):.1%}" if len(labels) else "—"
    sure = np.mean(confidence >= 0.9)
    return f"| {name} | {confidence.mean():.3f} | {sure:.1%} | {shares.min():.1%} to {shares.max():.1%} | {right} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--model", required=True, help="A pipeline of digits.")
    parser.add_argument("--dataset_name", help="Real ones, as training takes them.")
    parser.add_argument("--train_data_dir", help="Or a folder of them.")
    parser.add_argument("--label_column", default="label")
    parser.add_argument("--num_inference_steps", type=int, nargs="+", default=[5, 10, 50, 250])
    parser.add_argument("--num_samples", type=int, default=500)
    parser.add_argument("--num_real", type=int, default=5000, help="Most to train the classifier on.")
    parser.add_argument("--guidance_scale", type=float, default=1.0)
    options = parser.parse_args()

    data = load_images(options.dataset_name, options.train_data_dir, label_column=options.label_column)
    classifier = CalibratedClassifierCV(SVC(), ensemble=False)
    classifier.fit(*digits_of(data.train, data.num_levels - 1, options.num_real))
    held_out, labels = digits_of(data.validation, data.num_levels - 1, 2000)

    print("| digits | confidence | ≥ 90 % | each digit | read as they are |\n| --- | --- | --- | --- | --- |")
    print(row("held out", classifier.predict_proba(held_out), labels), flush=True)
    pipe = VDMPipeline.from_pretrained(options.model)
    pipe.set_progress_bar_config(disable=True)
    for steps in options.num_inference_steps:
        images, asked = samples_of(pipe, options.num_samples, steps, options.guidance_scale)
        print(row(f"{steps} steps", classifier.predict_proba(images), asked), flush=True)


if __name__ == "__main__":
    main()
