"""The Hub repository of a model in training: its card, made from what was measured, and its uploads."""

import json
import re
import shlex
import shutil
import warnings
from concurrent.futures import Future
from glob import escape
from pathlib import Path

from diffusers.utils.hub_utils import populate_model_card
from huggingface_hub import EvalResult, HfApi, ModelCard, ModelCardData

from ..class_names import labels_by_name
from ..conditioning import num_classes
from ..data.images import SOURCES, ImageData
from ..guards.loading import reason_of
from ..guards.messages import Message
from ..guards.secrecy import files_with_secrets
from ..pictures import in_words
from ..pipeline_vdm import VDMPipeline
from ..units import BITS_PER_DIM, Unit
from ..vdm import VDM
from .config import TrainingConfig
from .facts import evaluation_command, figures, options_of_weights
from .output_files import ARRAY_OF_SAMPLES, CARD, CONFIG, NOISE_SCHEDULE, NOT_UPLOADED, SAMPLES, STAGING


TASK, TASK_OF_TEXT = "unconditional-image-generation", "text-to-image"
MAX_NAMES = 100
"""Of classes, that a card lists."""

TEMPLATE = """---
{metadata}
---

# {title}

A [variational diffusion model](https://arxiv.org/abs/2107.00630) of {data}, {shape} {kind},
trained with vdm_diffusers{progress}.{preparation}{attribution}

| {unit} of {num_images} held-out images | |
| --- | --- |
{figures}

The bound is an estimate by the moving average of the weights, ± its standard error, over every one of these images
{num_repeats} times. {source}

{samples}

{num_samples} samples in {num_inference_steps} steps{guidance}, from the seed {seed}.

## Use

```python
{imports}

pipe = {pipeline}
images = pipe({asked}, num_inference_steps={num_inference_steps}{output_type}).images
```

`pip install vdm-diffusers` installs the package, and importing it is what makes diffusers know its classes. {without}
{classes}
Other samplers of diffusers take its place:

```python
from diffusers import DPMSolverMultistepScheduler

pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
images = pipe({asked}, num_inference_steps=20{output_type}).images
```

`VDM.from_pretrained({repository})` of vdm_diffusers is the model with its noise schedule, to train on.

## The noise schedule

{schedule}, γ = −log SNR from {gamma_0:.4f} to {gamma_1:.4f}:

![noise schedule]({schedule_file})

## Training

{step} steps by `accelerate launch -m vdm_diffusers.train {config_file}`; of the options that matter to the weights,
these are not defaults:

```json
{options}
```
"""

WITHOUT_IMPORT = """So
`DiffusionPipeline.from_pretrained({repository})` loads the model too, after `import vdm_diffusers`; without that it ends in
`module diffusers has no attribute VDMPipeline`. A program in which nothing can be imported may have the code of this repository
do it: `DiffusionPipeline.from_pretrained({repository}, custom_pipeline="pipeline", trust_remote_code=True)`."""
WITHOUT_IMPORT_OF_OTHERS = """Without that,
`DiffusionPipeline.from_pretrained` may say that `vdm_diffusers` has not been imported, or that there is no
`scheduler/vdm_diffusers.py`."""


def save_model_card(folder: Path, config: TrainingConfig, data: ImageData, vdm: VDM, metrics: dict) -> None:
    """Write the card of a model from what was measured.

    Args:
        metrics (`dict`): The fields of a [`VariationalBound`], `step`, `num_images` and `num_repeats`; at the end of training
            `histogram_bits_per_dim` too.
    """
    name = config.hub_model_id or Path(config.output_dir).name
    gamma_0, gamma_1 = vdm.noise_schedule.chain(1).tolist()
    content = TEMPLATE.format(
        metadata=_metadata(name, config, data, metrics, vdm.unit),
        title=_plain(Path(name).name),
        data=_plain(data.name),
        shape=in_words(data.shape),
        kind=f"with {data.num_levels} levels" if vdm.unit is BITS_PER_DIM else "latents of an autoencoder",
        preparation=f" Its images were {data.preparation}: the figures are of images so prepared." if data.preparation else "",
        attribution="" if data.attribution is None else f" {data.attribution}",
        unit="bits per dimension" if vdm.unit is BITS_PER_DIM else "nats per dimension of the latents",
        progress="" if metrics["step"] == config.max_train_steps else f", after {metrics['step']} of its steps",
        figures="\n".join(f"| {name} | {figure} |" for name, figure in figures(metrics, vdm.unit)),
        source=_source(name, config, data, metrics, vdm.unit),
        repository=_literal(name),
        **_loading(vdm, _literal(name)),
        asked=_asked(vdm, config),
        guidance="" if config.guidance_scale == 1 else f" with guidance {config.guidance_scale:g}",
        output_type="" if vdm.to_pipeline().has_pictures else ', output_type="np"',
        classes=_classes(vdm),
        schedule=type(vdm.noise_schedule).__name__,
        schedule_file=NOISE_SCHEDULE,
        config_file=CONFIG,
        gamma_0=gamma_0,
        gamma_1=gamma_1,
        options=json.dumps(options_of_weights(config), indent=2),
        **{key: metrics[key] for key in ("num_images", "num_repeats", "step")},
        samples=f"![samples]({SAMPLES})" if len(data.shape) == 3 else f"`{ARRAY_OF_SAMPLES}` has, as an array in [0, 1],",
        **{key: getattr(config, key) for key in ("num_samples", "num_inference_steps", "seed")},
    )
    populate_model_card(ModelCard(content), ["variational-diffusion-model", _task(config)]).save(folder / CARD)


def _loading(vdm: VDM, repository: str) -> dict[str, str]:
    """How the pipeline is loaded: by itself, or from one of the class that the model came from."""
    if isinstance(vdm.to_original_pipeline(), VDMPipeline):
        return {
            "imports": "from vdm_diffusers import VDMPipeline",
            "pipeline": f"VDMPipeline.from_pretrained({repository})",
            "without": WITHOUT_IMPORT.format(repository=repository),
        }
    return {
        "imports": "from diffusers import DiffusionPipeline\n\nfrom vdm_diffusers import VDMPipeline",
        "pipeline": f"VDMPipeline.from_pipe(DiffusionPipeline.from_pretrained({repository}))",
        "without": WITHOUT_IMPORT_OF_OTHERS,
    }


def _task(config: TrainingConfig) -> str:
    return TASK if config.caption_column is None else TASK_OF_TEXT


def _asked(vdm: VDM, config: TrainingConfig) -> str:
    """What a call asks for: so many images, one of each of the first classes, by name where it has one of its own, or of the
    first prompts."""
    if config.validation_prompts is not None:
        return f"prompt={_literal(config.validation_prompts[:4])}"
    number = num_classes(vdm.unet)
    if number is None:
        return "batch_size=16"
    named = {label: name for name, label in labels_by_name(_id2label(vdm)).items() if name == vdm.class_names[label]}
    return f"class_labels={_literal([named.get(label, label) for label in range(min(number, 4))])}"


def _classes(vdm: VDM) -> str:
    """Which classes there are."""
    number = num_classes(vdm.unet)
    if number is None:
        return ""
    if vdm.class_names is None:
        return f"\n`class_labels` are integers from 0 to {number - 1}, one an image or one for all.\n"
    lines = ["", "`class_labels` are names or integers, one an image or one for all. The classes are", ""]
    listed = dict(list(_id2label(vdm).items())[:MAX_NAMES])
    lines += ["```json", _literal(listed, indent=2), "```", ""]
    return "\n".join(lines + ([f"and {number - MAX_NAMES} more, which `pipe.labels` has.", ""] if number > MAX_NAMES else []))


def _id2label(vdm: VDM) -> dict[int, str] | None:
    return None if vdm.class_names is None else dict(enumerate(vdm.class_names))


def _literal(value: object, indent: int | None = None) -> str:
    """A value as JSON and Python both write it, whatever is in its strings, and for a block of Markdown."""
    text = json.dumps(value, ensure_ascii=False, indent=indent)
    return text.replace("`", r"\u0060").encode("utf-8", "backslashreplace").decode()


def _plain(name: str) -> str:
    """A name in one line of Markdown, nothing in which is markup."""
    return re.sub(r"([\\`*<>|\[\]])", r"\\\1", " ".join(name.split()))


def _source(name: str, config: TrainingConfig, data: ImageData, metrics: dict, unit: Unit) -> str:
    if unit is not BITS_PER_DIM:
        return "It is one of a density, which depends on the scaling of the latents, and was measured by `train_vdm.py`."
    return f"It is printed by\n\n```shell\n{shlex.join(evaluation_command(name, config, data, metrics))}\n```"


def _metadata(name: str, config: TrainingConfig, data: ImageData, metrics: dict, unit: Unit) -> str:
    result = EvalResult(
        task_type=_task(config),
        dataset_type=config.dataset_name or data.name,
        dataset_name=data.name,
        metric_type=unit.name,
        metric_name=f"variational bound, {unit.name.replace('_per_dim', '')} per dimension",
        metric_value=metrics[unit.name],
    )
    card_data = ModelCardData(
        license=config.hub_license,
        library_name="diffusers",
        datasets=None if config.dataset_name in (None, *SOURCES) else [config.dataset_name],
        model_name=Path(name).name,
        eval_results=[result],
    )
    return card_data.to_yaml()


def check_token(config: TrainingConfig) -> str:
    """The name of the user who would upload; `ValueError` without one."""
    try:
        return HfApi(token=config.hub_token).whoami()["name"]
    except Exception as error:
        raise ValueError(Message("{push_to_hub} finds no one to upload for: {} {}", reason_of(error), LOG_IN)) from error


def create_repository(config: TrainingConfig) -> str:
    """Create the repository, if need be, and return its full name; fails before training if that is not permitted."""
    name = config.hub_model_id or Path(config.output_dir).name
    try:
        return HfApi(token=config.hub_token).create_repo(name, private=config.hub_private_repo, exist_ok=True).repo_id
    except Exception as error:
        message = "{push_to_hub} can't create {!r} on the Hub: {} {}"
        raise ValueError(Message(message, name, reason_of(error), LOG_IN)) from error


LOG_IN = Message("Log in with `hf auth login` or give {hub_token}.")


class Uploads:
    """
    The uploads of a run to its repository: in the background while it trains, and of the output folder at the end.

    What the Hub has of large files it doesn't take again, so that one that broke off is taken up by the next.
    """

    def __init__(self, config: TrainingConfig):
        self.config, self.repository = config, config.hub_model_id
        self.api = HfApi(token=config.hub_token)
        self.folder = Path(config.output_dir)
        self.staging = self.folder / STAGING
        self.under_way: Future | None = None

    def stage(self) -> Path | None:
        """A copy of the output folder without checkpoints, to complete and [`start`] with; `None` while one is under way."""
        if self.under_way is not None and not self.under_way.done():
            return None
        shutil.rmtree(self.staging, ignore_errors=True)
        return shutil.copytree(self.folder, self.staging, ignore=shutil.ignore_patterns(*NOT_UPLOADED))

    def start(self, step: int) -> None:
        """Upload what has been staged, in the background."""
        self.under_way = self._upload(self.staging, f"After {step} steps", run_as_future=True)

    def failure(self) -> str | None:
        """Why the last upload failed, if it did."""
        if self.under_way is None or not self.under_way.done() or self.under_way.exception() is None:
            return None
        return reason_of(self.under_way.exception())

    def finish(self) -> None:
        """Upload the output folder; `RuntimeError` that says how to retry it if that fails."""
        if self.under_way is not None:
            self.under_way.exception()  # waits for it
        shutil.rmtree(self.staging, ignore_errors=True)
        try:
            self._upload(self.folder, f"Train for {self.config.max_train_steps} steps")
        except Exception as error:
            exclude = [part for pattern in _kept_back(self.folder) for part in ("--exclude", pattern)]
            command = shlex.join(["hf", "upload", self.repository, self.config.output_dir, ".", *exclude])
            raise RuntimeError(
                f"The upload to {self.repository!r} failed: {reason_of(error)} Everything is in {self.config.output_dir!r};"
                f" upload it by `{command}`."
            ) from error

    def _upload(self, folder: Path, message: str, **kwargs):
        return self.api.upload_folder(
            repo_id=self.repository, folder_path=folder, commit_message=message, ignore_patterns=_kept_back(folder), **kwargs
        )


def _kept_back(folder: Path) -> list[str]:
    """Patterns of the files that are not uploaded, those among them that somebody has written a secret to."""
    secret = [path.relative_to(folder).as_posix() for path in files_with_secrets(folder)]
    if secret:
        warnings.warn(f"{secret} of {str(folder)!r} hold an access token: they are not uploaded.", stacklevel=2)
    return [f"{folder}/**" for folder in NOT_UPLOADED] + [escape(path) for path in secret]
