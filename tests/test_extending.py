"""docs/extending.md is true: what its code adds from outside the package is trained, saved, sampled and evaluated."""

import json
import os
import re
import subprocess
import sys

from conftest import TINY
from paths import ROOT


COMMANDS = """
import json, sys
from vdm_diffusers import evaluate, train

training, evaluation = map(json.loads, sys.argv[1:])
sys.argv = ["train_vdm.py", *training]
train.main(StripesConfig)
evaluate.main(evaluation)
"""

EXTENSIONS = {
    "dataset_name": "stripes",
    "max_width": 3,
    "noise_schedule": "LearnedPowerSchedule",
    "prediction_type": "negative_epsilon",
    "weighting": "noisy",
    "augmentation": "upside_down",
}


def flags(options: dict) -> str:
    return json.dumps([part for name, value in options.items() for part in (f"--{name}", *str(value).split())])


def test_what_the_page_adds_works_from_the_commands(tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "extending.md").read_text(), re.DOTALL)
    (tmp_path / "script.py").write_text("\n".join([*blocks, COMMANDS]))
    training = TINY | EXTENSIONS | {"output_dir": "model", "max_train_steps": 3}
    evaluation = {
        "pretrained_model_name_or_path": "model",
        "dataset_name": "stripes",
        "estimators": "vlb ode coarse_vlb",
        "num_timesteps": 10,
        "num_indices": 10,
        "dequantization": "antithetic",
        "tolerance": 1e-2,
        "max_images": 4,
        "num_repeats": 1,
        "output_path": "result.json",
    }
    done = subprocess.run(
        [sys.executable, "script.py", flags(training), flags(evaluation)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    config = json.loads((tmp_path / "model" / "training_config.json").read_text())
    assert {name: config[name] for name in EXTENSIONS} == EXTENSIONS
    saved = json.loads((tmp_path / "model" / "noise_schedule" / "config.json").read_text())
    assert saved["_class_name"] == "LearnedPowerSchedule"
    vlb, _, coarse = json.loads((tmp_path / "result.json").read_text())["results"]
    assert coarse["name"] == "coarse VLB, T = 10" and coarse["bits_per_dim"] == vlb["bits_per_dim"]
