"""Patches of the two photographs that scikit-learn brings, as a folder of pictures to train on.

python docs/examples/photo_patches.py photo-patches
"""

import argparse
from pathlib import Path

import numpy as np
import PIL.Image
from sklearn.datasets import load_sample_images


SIZE, STRIDE = 32, 8
HELD_OUT = 1 / 4
"""The right part of each photograph, which no training patch touches."""


def patches(photograph: np.ndarray, stride: int) -> list[PIL.Image.Image]:
    """Those of an array `(H, W, 3)` at every multiple of `stride`, in reading order."""
    height, width, _ = photograph.shape
    corners = [(y, x) for y in range(0, height - SIZE + 1, stride) for x in range(0, width - SIZE + 1, stride)]
    return [PIL.Image.fromarray(photograph[y : y + SIZE, x : x + SIZE]) for y, x in corners]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output_dir", type=Path, help="A folder to make; train/ and test/ are written there.")
    output_dir = parser.parse_args().output_dir
    photographs = load_sample_images().images
    edges = [round(photograph.shape[1] * (1 - HELD_OUT)) for photograph in photographs]
    splits = {
        "train": [patch for photo, edge in zip(photographs, edges) for patch in patches(photo[:, :edge], STRIDE)],
        "test": [patch for photo, edge in zip(photographs, edges) for patch in patches(photo[:, edge:], SIZE)],
    }
    for name, pictures in splits.items():
        (output_dir / name).mkdir(parents=True)
        for i, picture in enumerate(pictures):
            picture.save(output_dir / name / f"{i:05}.png")
        print(f"{len(pictures)} patches in {output_dir / name}")


if __name__ == "__main__":
    main()
