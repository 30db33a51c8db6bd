"""The report of a run: one HTML file with all that was measured and drawn, which needs nothing beside it."""

import json
import shlex
from base64 import b64encode
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ..command_line import options_of
from ..data.images import ImageData
from ..pictures import in_words
from ..units import BITS_PER_DIM
from ..vdm import VDM
from .config import TrainingConfig
from .facts import evaluation_command, figures
from .output_files import ARRAY_OF_SAMPLES, BITS_MAP, CONFIG, FORWARD_PROCESS, NOISE_SCHEDULE, REPORT, SAMPLES, TRAINING_CURVE


TEMPLATE = "report.html.jinja"
PICTURES = (BITS_MAP, SAMPLES, TRAINING_CURVE, NOISE_SCHEDULE, FORWARD_PROCESS)


def save_report(folder: Path, config: TrainingConfig, data: ImageData, vdm: VDM, metrics: dict) -> None:
    """Write the report of a run whose pictures are in the folder; what has no picture is left out.

    Args:
        metrics (`dict`): As [`METRICS`] has them at the end of a run.
    """
    name = config.hub_model_id or Path(config.output_dir).name
    gamma_0, gamma_1 = vdm.noise_schedule.chain(1).tolist()
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    text = environment.get_template(TEMPLATE).render(
        name=name,
        config=config,
        data=data,
        shape=in_words(data.shape),
        of_pixels=vdm.unit is BITS_PER_DIM,
        unit=vdm.unit,
        metrics=metrics,
        figures=figures(metrics, vdm.unit),
        command=shlex.join(evaluation_command(name, config, data, metrics)),
        num_parameters=sum(parameter.numel() for parameter in vdm.parameters()),
        schedule=type(vdm.noise_schedule).__name__,
        gamma_0=gamma_0,
        gamma_1=gamma_1,
        pictures={file: _data_uri(folder / file) for file in PICTURES if (folder / file).exists()},
        files={"options": CONFIG, "samples": ARRAY_OF_SAMPLES},
        options=_options(config),
    )
    (folder / REPORT).write_text(text.encode("utf-8", "backslashreplace").decode(), encoding="utf-8")


def _options(config: TrainingConfig) -> list[tuple[str, str, str, bool]]:
    """Name, value, meaning of every option, and whether the value is another than the default."""
    values = config.public()
    return [
        (option.name, json.dumps(values[option.name], ensure_ascii=False), option.help, values[option.name] != option.default)
        for option in options_of(type(config))
        if option.name in values
    ]


def _data_uri(picture: Path) -> str:
    return "data:image/png;base64," + b64encode(picture.read_bytes()).decode()
