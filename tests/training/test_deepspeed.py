"""DeepSpeed, on two processes of the CPU: the model that one process trains, its checkpoints, and what it can't do."""

import json
import math
import re
import shutil
import signal
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator, DeepSpeedPlugin
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from processes import Ranks, partition_models
from test_checkpoints import all_of, assert_same_run, full_for_one_process_at_step_4, kill_in_a_step, run, send, state
from test_distributed import train_with_given_draws

from benchmarks.training_options import write_digits
from vdm_diffusers import VDM, LearnedMonotoneSchedule
from vdm_diffusers.training import Trainer
from vdm_diffusers.training.checkpoints.folders import find_checkpoints
from vdm_diffusers.training.config import TrainingConfig
from vdm_diffusers.training.placement.choice import check_placement
from vdm_diffusers.training.sample_grids import draw_samples, save_samples


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("deepspeed")


@pytest.fixture(scope="module")
def alone(folder) -> dict:
    """Without DeepSpeed: one process, one batch of 32."""
    pytest.importorskip("deepspeed")
    assert Ranks(train_with_given_draws, folder / "alone", 32, 1, log=folder / "log").join() == [0]
    return torch.load(folder / "alone-0.pt")


@pytest.fixture(scope="module")
def partitioned(tmp_path_factory) -> Path:
    """The folder of a run that nothing happened to."""
    pytest.importorskip("deepspeed")
    folder = tmp_path_factory.mktemp("partitioned") / "out"
    assert run(folder, partition_models, num_processes=2) == [0, 0], folder.with_suffix(".log").read_text()
    return folder


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_deepspeed_trains_the_same_model(folder, alone, stage):
    """In float32, whose rounding errors twenty steps bring up to 3e-7."""
    arguments = (folder / str(stage), 8, 2, partial(partition_models, zero_stage=stage), torch.float32)
    ranks = Ranks(train_with_given_draws, *arguments, num_processes=2, log=folder / "log")
    assert ranks.join() == [0, 0], (folder / "log").read_text()
    before = LearnedMonotoneSchedule(-8.0, 5.0).state_dict()
    for rank in range(2):
        result = torch.load(folder / f"{stage}-{rank}.pt")
        assert result["learning_rate"] == alone["learning_rate"]
        assert result["gradient_norms"] == pytest.approx(alone["gradient_norms"], rel=1e-5)
        assert min(result["gradient_norms"]) > 1, "which is what they are clipped to"
        for kind in ("parameters", "average"):
            assert result[kind].keys() == alone[kind].keys()
            for key, expected in alone[kind].items():
                torch.testing.assert_close(result[kind][key].double(), expected, rtol=1e-5, atol=1e-6, msg=f"{kind}/{key}")
        for key, value in before.items():
            assert not torch.equal(result["parameters"][f"noise_schedule.{key}"], value)


def poison_step_5() -> None:
    step = Trainer._optimizer_step

    def poisoned(self, batches):
        if self.history.step == 4:
            self.vdm.unet.conv_out.bias.data.fill_(float("nan"))
        step(self, batches)

    Trainer._optimizer_step = poisoned


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 1, 2])
def test_a_run_by_deepspeed_is_killed_and_stopped_and_goes_on_bit_by_bit(tmp_path, stage):
    pytest.importorskip("deepspeed")
    prepare, stop = partial(partition_models, zero_stage=stage), partial(send, signal.SIGTERM, 6, process_index=1)
    assert run(tmp_path / "whole", prepare, num_processes=2) == [0, 0], (tmp_path / "whole.log").read_text()
    assert run(tmp_path / "out", partial(all_of, prepare, kill_in_a_step), num_processes=2) == [-signal.SIGKILL] * 2
    assert run(tmp_path / "out", partial(all_of, prepare, stop), num_processes=2) == [0, 0]
    assert find_checkpoints(tmp_path / "out")[-1].name == "checkpoint-7"
    assert run(tmp_path / "out", prepare, num_processes=2) == [0, 0], (tmp_path / "out.log").read_text()
    assert_same_run(tmp_path / "out", tmp_path / "whole")
    parts = {name for name in state(tmp_path / "out" / "checkpoint-12") if name.startswith("optimizer")}
    assert parts == ({"optimizer_0.bin", "optimizer_1.bin"} if stage else {"optimizer_0.bin"})


@pytest.mark.slow
def test_a_run_by_deepspeed_ends_in_the_model_of_a_run_without(partitioned, tmp_path):
    assert run(tmp_path / "out", num_processes=2) == [0, 0], (tmp_path / "out.log").read_text()
    metrics, expected = (json.loads((folder / "metrics.json").read_text()) for folder in (partitioned, tmp_path / "out"))
    for name in ("bits_per_dim", "prior", "reconstruction", "diffusion", "standard_error"):
        assert metrics[name] == pytest.approx(expected[name], rel=1e-4)
    config = TrainingConfig(**json.loads((partitioned / "training_config.json").read_text()))
    vdm = VDM.from_pretrained(partitioned)
    save_samples(draw_samples(Accelerator(cpu=True), vdm, config), vdm, tmp_path / "samples.png")
    assert (tmp_path / "samples.png").read_bytes() == (partitioned / "samples.png").read_bytes()


@pytest.mark.slow
def test_deepspeed_computes_in_bfloat16_and_keeps_weights_in_float32(partitioned, tmp_path):
    for name, prepare in (("out", None), ("partitioned", partition_models)):
        assert run(tmp_path / name, prepare, num_processes=2, mixed_precision="bf16") == [0, 0]
    without, weights, in_float32 = (
        state(folder / "checkpoint-12")["model.safetensors"]
        for folder in (tmp_path / "out", tmp_path / "partitioned", partitioned)
    )
    assert {weight.dtype for weight in weights.values()} == {torch.float32}
    assert _distance(weights, without) < 0.1 * _distance(weights, in_float32)


def _distance(weights: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> float:
    """Without the bias of an attention's keys, whose gradients are rounding errors alone."""
    squares = {name: ((weight - others[name]) ** 2).sum().item() for name, weight in weights.items()}
    return math.sqrt(sum(square for name, square in squares.items() if not name.endswith("to_k.bias")))


@pytest.mark.slow
def test_a_part_that_can_not_be_written_costs_a_checkpoint_and_not_the_run(partitioned, tmp_path):
    prepare = partial(all_of, partition_models, full_for_one_process_at_step_4)
    assert run(tmp_path / "out", prepare, num_processes=2) == [0, 0], (tmp_path / "out.log").read_text()
    assert re.search("step 4: warning: no checkpoint could be written: ", (tmp_path / "out.log").read_text())
    assert_same_run(tmp_path / "out", partitioned)


@pytest.mark.slow
def test_a_gradient_that_is_not_finite_ends_a_run_by_deepspeed(tmp_path):
    pytest.importorskip("deepspeed")
    assert run(tmp_path / "out", partial(all_of, partition_models, poison_step_5), num_processes=2) == [1, 1]
    assert re.search("not finite at step 5. The last good checkpoint is .*checkpoint-4;", (tmp_path / "out.log").read_text())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("prepare", "num_processes", "message"),
    [
        (None, 2, "was trained by DeepSpeed at ZeRO stage 2, but here it is whole on every process"),
        (partial(partition_models, zero_stage=1), 2, "ZeRO stage 2, but here it is trained by DeepSpeed at ZeRO stage 1"),
        (partition_models, 4, "a run by DeepSpeed on 2 processes, .* but here are 4: launch as many."),
    ],
    ids=["whole", "stage", "processes"],
)
def test_a_run_by_deepspeed_goes_on_as_it_was_alone(partitioned, tmp_path, prepare, num_processes, message):
    shutil.copytree(partitioned, tmp_path / "out")
    options = {"num_processes": num_processes, "train_batch_size": 16 // num_processes}
    assert run(tmp_path / "out", prepare, **options) == [1] * num_processes
    assert re.search(message, (tmp_path / "out.log").read_text())


@pytest.mark.slow
def test_other_options_that_change_what_deepspeed_is_given_go_on_bit_by_bit(tmp_path):
    """A stream, activations that are computed again, another optimiser, and a schedule of which nothing is trained."""
    pytest.importorskip("deepspeed")
    write_digits(tmp_path / "digits")
    options = {"train_data_dir": tmp_path / "digits", "streaming": True, "num_levels": 17, "cache_dir": tmp_path / "cache"}
    options |= {
        "noise_schedule": "LearnedLinearSchedule",
        "weighting": "sigmoid",
        "gamma_min": -8.0,
        "max_validation_images": 20,
    }
    options |= {"gradient_checkpointing": True, "optimizer": "adamw_fused", "gradient_accumulation_steps": 2}
    for name, prepare, code in (
        ("whole", partition_models, 0),
        ("out", partial(all_of, partition_models, kill_in_a_step), -signal.SIGKILL),
        ("out", partition_models, 0),
    ):
        codes = run(tmp_path / name, prepare, num_processes=2, **options)
        assert codes == [code, code], (tmp_path / f"{name}.log").read_text()
    assert_same_run(tmp_path / "out", tmp_path / "whole")


REFUSALS = {
    "stage 3": (
        {"zero_stage": 3},
        {},
        "DeepSpeed's stage 3, which divides the weights too: choose `zero_stage: 2`",
    ),
    "offload": ({"offload_optimizer_device": "cpu"}, {}, "with `offload_optimizer`: leave it out."),
    "accumulation": ({"gradient_accumulation_steps": 4}, {}, "with `gradient_accumulation_steps 4`: leave it out."),
    "clipping": ({"gradient_clipping": 0.5}, {}, "with `gradient_clipping 0.5`: leave it out."),
    "optimizer": (
        {"hf_ds_config": {"zero_optimization": {"stage": 2}, "optimizer": {"type": "Adam"}, "bf16": {"enabled": True}}},
        {},
        "with `bf16`, `optimizer`: leave it out.",
    ),
    "precision": (
        {},
        {"mixed_precision": "fp16", "torch_compile": True},
        "with `--mixed_precision fp16`, `--torch_compile`: leave",
    ),
}


@pytest.mark.parametrize("fields, options, message", REFUSALS.values(), ids=REFUSALS)
def test_what_deepspeed_can_not_do_is_refused_before_anything_happens(train, tmp_path, monkeypatch, fields, options, message):
    monkeypatch.setattr(Accelerator, "distributed_type", DistributedType.DEEPSPEED)
    monkeypatch.setattr(AcceleratorState, "deepspeed_plugin", DeepSpeedPlugin(**fields))
    with pytest.raises(SystemExit, match=re.escape(message)):
        train(**options)
    assert not (tmp_path / "out").exists()


def test_what_deepspeed_and_the_options_both_say_is_no_contradiction():
    plugin = DeepSpeedPlugin(gradient_accumulation_steps=4, gradient_clipping=1.0, offload_param_device="none")
    state = SimpleNamespace(deepspeed_plugin=plugin)
    accelerator = SimpleNamespace(distributed_type=DistributedType.DEEPSPEED, is_fsdp2=False, state=state)
    check_placement(accelerator, TrainingConfig(gradient_accumulation_steps=4))
