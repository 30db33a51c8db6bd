"""What a run says of itself, in its card and in its report."""

from ..command_line import options_of
from ..data.images import ImageData
from ..units import Unit
from .config import TrainingConfig
from .resuming import FREE_OPTIONS


def figures(metrics: dict, unit: Unit) -> list[tuple[str, str]]:
    """What was measured, in `unit`: names and figures, those that are part of the one before after a dash."""
    low, high = metrics["interval_95"]
    rows = [
        ("variational bound", f"{metrics[unit.name]:.4f} ± {metrics['standard_error']:.4f}"),
        ("— 95 % interval", f"{low:.4f} to {high:.4f}"),
    ]
    rows += [(f"— {term}", f"{metrics[term]:.4f}") for term in ("prior", "reconstruction", "diffusion")]
    if "worth_of_captions" in metrics:
        worth = metrics["worth_of_captions"]
        rows.append(("without captions", f"{metrics['without_captions']:.4f}"))
        rows.append(("what the captions are worth", f"{worth['per_dim']:.4f} ± {worth['standard_error']:.4f}"))
    if "histogram_bits_per_dim" in metrics:
        rows.append(("one histogram for every pixel", f"{metrics['histogram_bits_per_dim']:.4f}"))
    return rows


def evaluation_command(model: str, config: TrainingConfig, data: ImageData, metrics: dict) -> list[str]:
    """What prints these figures. Of a stream's held-out images `data` has the first alone."""
    all_used = not config.streaming and metrics["num_images"] == len(data.validation)
    options = {
        "pretrained_model_name_or_path": model,
        "dataset_name": config.dataset_name,
        "dataset_config_name": config.dataset_config_name,
        "data_dir": config.train_data_dir,
        "image_column": config.image_column,
        "label_column": config.label_column,
        "caption_column": config.caption_column,
        "num_spatial_dims": config.num_spatial_dims,
        "split": config.validation_split,
        "max_images": None if all_used else metrics["num_images"],
        "num_timesteps": config.num_timesteps,
        "num_repeats": metrics["num_repeats"],
        "seed": config.seed,
    }
    flags = [part for name, value in options.items() if value is not None for part in (f"--{name}", str(value))]
    flags += [*config.preparation.flags(), *["--skip_unreadable_images"] * config.skip_unreadable_images]
    return ["python", "-m", "vdm_diffusers.evaluate", *flags]


def options_of_weights(config: TrainingConfig) -> dict:
    """The options that the weights depend on, where they are not defaults."""
    defaults = {option.name: option.default for option in options_of(type(config))}
    return {name: value for name, value in config.public().items() if name not in FREE_OPTIONS and value != defaults[name]}
