"""What a run leaves behind: the model, its pictures, `metrics.json`, card and report, in its folder and on the Hub."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from ..data.histogram import histogram_bits_per_dim
from ..data.images import ImageData
from ..figures import save_forward_process, save_training_curve
from ..likelihood.bound import VariationalBound
from ..likelihood.estimates import Difference
from ..units import BITS_PER_DIM, Unit
from ..vdm import VDM
from .bits_map import save_bits_map
from .config import TrainingConfig
from .hub import Uploads, save_model_card
from .output_files import BITS_MAP, FORWARD_PROCESS, METRICS, REPORT, SAMPLES, TRAINING_CURVE, samples_of
from .report import save_report
from .sample_grids import Samples, sample_prompts, save_samples
from .trainer import History


def finish(
    config: TrainingConfig,
    data: ImageData,
    vdm: VDM,
    history: History,
    samples: Samples,
    bounds: Sequence[VariationalBound],
    seconds: dict[str, float],
) -> dict:
    """
    Write the trained model, its pictures, what was measured, its card and its report; return the measurements.

    The bounds are the one of the held-out images and, of a model of text, the one without their captions.
    """
    folder = Path(config.output_dir)
    vdm.save_pretrained(folder)
    save_samples(samples, vdm, folder / SAMPLES, sample_prompts(config))
    save_forward_process(vdm.scale(data.validation[0]["images"][None]), vdm.noise_schedule, folder / FORWARD_PROCESS)
    save_training_curve(history.training, history.validation, folder / TRAINING_CURVE, vdm.unit)
    save_bits_map(vdm, data, config.seed, folder / BITS_MAP)
    bound, *without_captions = bounds
    metrics = measurements(bound.record(), config.max_train_steps, len(data.validation), config.final_validation_repeats)
    if vdm.unit is BITS_PER_DIM:
        metrics["histogram_bits_per_dim"] = histogram_bits_per_dim(data.train, data.validation, data.num_levels)
    for unconditional in without_captions:
        metrics["without_captions"] = unconditional.per_dim
        metrics["worth_of_captions"] = asdict(Difference.between(unconditional, bound))
    metrics["seconds"] = seconds
    describe_model(folder, config, data, vdm, metrics)
    save_report(folder, config, data, vdm, metrics)
    return metrics


def measurements(bound: dict, step: int, num_images: int, num_repeats: int) -> dict:
    """What [`METRICS`] says of a bound."""
    return bound | {"step": step, "num_images": num_images, "num_repeats": num_repeats}


def describe_model(folder: Path, config: TrainingConfig, data: ImageData, vdm: VDM, metrics: dict) -> None:
    """Write what was measured, and the card made from it."""
    (folder / METRICS).write_text(json.dumps(metrics, indent=2) + "\n")
    save_model_card(folder, config, data, vdm, metrics)


def upload_in_background(uploads: Uploads, config: TrainingConfig, data: ImageData, vdm: VDM, history: History) -> str | None:
    """Upload the model as it is, with its last validation; return what there is to warn of."""
    failure = uploads.failure()
    folder = uploads.stage()
    if folder is None:
        return "the last upload is still under way: this one is left out."
    record = history.validation[-1]
    num_images = min(len(data.validation), config.max_validation_images or len(data.validation))
    vdm.save_pretrained(folder)
    drawn = folder / samples_of(record["step"])
    for path in drawn.parent.glob(f"{drawn.stem}.*"):
        shutil.copy(path, (folder / SAMPLES).with_suffix(path.suffix))
    describe_model(folder, config, data, vdm, measurements(record, record["step"], num_images, config.validation_repeats))
    uploads.start(record["step"])
    return None if failure is None else f"the last upload failed: {failure} This one takes it up."


def summary(config: TrainingConfig, data: ImageData, metrics: dict, unit: Unit) -> str:
    """The result in words, for a terminal."""
    histogram = ""
    if unit is BITS_PER_DIM:
        histogram = f"\n  a histogram of every pixel gets {metrics['histogram_bits_per_dim']:.4f}"
    captions = ""
    if "worth_of_captions" in metrics:
        worth = metrics["worth_of_captions"]
        captions = f"\n  without captions {metrics['without_captions']:.4f}: they are worth {worth['per_dim']:.4f} ±"
        captions += f" {worth['standard_error']:.4f}"
    return (
        f"\n{len(data.validation)} held-out {'images' if unit is BITS_PER_DIM else 'latents'} of {data.name}:"
        f" {metrics[unit.name]:.4f} ± {metrics['standard_error']:.4f} {unit.label}"
        f"\n  = prior {metrics['prior']:.4f} + reconstruction {metrics['reconstruction']:.4f}"
        f" + diffusion {metrics['diffusion']:.4f}{histogram}{captions}"
        f"\n95 % interval of the figure: {metrics['interval_95'][0]:.4f} to {metrics['interval_95'][1]:.4f}."
        f"\nPipeline, pictures and {METRICS} are in {config.output_dir}/, which {REPORT} shows."
    )
