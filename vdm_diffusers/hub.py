"""The Hub repository of a trained model: its card and its upload."""

import shlex
from pathlib import Path

from diffusers.utils.hub_utils import populate_model_card
from huggingface_hub import HfApi, ModelCard

from .checkpoints import ALL_NAMES
from .data import ImageData
from .training_config import TrainingConfig


CARD = """---
license: apache-2.0
library_name: diffusers
---

# {title}

A [variational diffusion model](https://arxiv.org/abs/2107.00630) of {data}, {channels}×{height}×{width} with {levels} levels,
trained with vdm_diffusers.

| bits per dimension of {num_images} held-out images | |
| --- | --- |
| variational bound | {bits_per_dim:.4f} ± {standard_error:.4f} |
| — prior | {prior:.4f} |
| — reconstruction | {reconstruction:.4f} |
| — diffusion | {diffusion:.4f} |
| one histogram for every pixel | {histogram_bits_per_dim:.4f} |

The bound is an estimate over every held-out image, {repeats} times each, by the moving average of the weights, ± its standard
error. `train_vdm.py` measured it; its options are in `training_config.json`.

```python
from vdm_diffusers import VDMPipeline

pipe = VDMPipeline.from_pretrained("{repository}")
images = pipe(batch_size=16, num_inference_steps=250).images
```

![samples](samples.png)
![noise schedule](noise_schedule.png)
"""


def save_model_card(config: TrainingConfig, data: ImageData, metrics: dict) -> None:
    """Write `README.md` into the output folder, made from what was measured."""
    name = Path(config.output_dir).name
    channels, height, width = data.shape
    figures = {key: value for key, value in metrics.items() if isinstance(value, float)}
    content = CARD.format(
        title=name, data=data.name, channels=channels, height=height, width=width, levels=data.num_levels,
        num_images=len(data.validation), repeats=config.final_validation_repeats,
        repository=config.hub_model_id or name, **figures,
    )  # fmt: skip
    card = populate_model_card(ModelCard(content), ["variational-diffusion-model", "unconditional-image-generation"])
    card.save(Path(config.output_dir, "README.md"))


def create_repository(config: TrainingConfig) -> str:
    """Create the repository, if need be, and return its full name; fails before training if that is not permitted."""
    name = config.hub_model_id or Path(config.output_dir).name
    try:
        return HfApi(token=config.hub_token).create_repo(name, private=config.hub_private_repo, exist_ok=True).repo_id
    except Exception as error:
        raise ValueError(
            f"`--push_to_hub` can't create {name!r} on the Hub: {str(error).splitlines()[0]} Log in with `hf auth login` or"
            " give `--hub_token`."
        ) from error


def upload(config: TrainingConfig, repository: str) -> None:
    """Upload the output folder without its checkpoints; `RuntimeError` that says how to retry if that fails."""
    try:
        HfApi(token=config.hub_token).upload_folder(
            repo_id=repository,
            folder_path=config.output_dir,
            commit_message=f"Train for {config.max_train_steps} steps",
            ignore_patterns=[ALL_NAMES],
        )
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        command = shlex.join(["hf", "upload", repository, config.output_dir, ".", "--exclude", ALL_NAMES])
        raise RuntimeError(
            f"The upload to {repository!r} failed: {reason} Everything is in {config.output_dir!r}; upload it by `{command}`."
        ) from error
