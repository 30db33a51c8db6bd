"""The timesteps kept for few steps, as a block of Modular Diffusers.

diffusers writes the name of this file into the configuration of a saved block, as that of the file with the block's code.
"""

import os
from typing import Any

from diffusers import ModularPipeline, ModularPipelineBlocks, SchedulerMixin
from diffusers.modular_pipelines import ComponentSpec, PipelineState

from ..remote_code import write_code
from ..scheduling.any_timesteps import with_timesteps


class KeptTimestepsStep(ModularPipelineBlocks):
    """
    Has the scheduler of a modular pipeline visit the timesteps that its configuration keeps for a number of steps.

    It goes anywhere before the block that sets the timesteps, whose inputs stay what they are: numbers of steps that nothing is
    kept for are spaced as before, and a caller's `timesteps` or `sigmas` win. The scheduler becomes what [`with_timesteps`]
    makes of it, and so takes timesteps also if its class, such as DDIM's, does not.

    `save_pretrained` writes a `block.py` beside the configuration, by which
    `ModularPipelineBlocks.from_pretrained(name, trust_remote_code=True)` loads the block from a folder or from the Hub.
    """

    @property
    def description(self) -> str:
        return "Step that has the scheduler visit the timesteps that its configuration keeps for `num_inference_steps`, if any"

    @property
    def expected_components(self) -> list[ComponentSpec]:
        return [ComponentSpec("scheduler", SchedulerMixin)]

    def __call__(self, components: ModularPipeline, state: PipelineState) -> tuple[ModularPipeline, PipelineState]:
        components.scheduler = with_timesteps(components.scheduler)
        return components, state

    def save_config(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs: Any) -> None:
        """As in diffusers, whose `save_pretrained` calls it for the whole block; a `block.py` that is there is left alone."""
        if type(self) is KeptTimestepsStep:
            write_code(save_directory, "block.py", KeptTimestepsStep.__name__, library=__package__)
        super().save_config(save_directory, push_to_hub=push_to_hub, **kwargs)
