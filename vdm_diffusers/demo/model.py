"""A pipeline as the demo uses it: what can be asked of it, and what its denoiser is told."""

import copy
from collections.abc import Sequence
from functools import cached_property

import torch
from diffusers import DiffusionPipeline

from ..class_names import captions, in_order, names_of
from ..conditioning import Condition, as_condition, check_condition, num_classes, to_device
from ..denoisers import sample_shape
from ..guards.loading import reason_of
from ..pictures import in_words
from ..pipeline_vdm import VDMPipeline
from ..pixel_space import check_pixel_space
from ..vdm import VDM


MAX_PROMPT = 500
"""Characters of a text."""


class DemoModel:
    """
    A model with what a page has to know of it.

    Args:
        pipeline ([`VDMPipeline`], or any that [`~VDMPipeline.from_pipe`] takes): It is left as it is.

    Attributes:
        pipeline ([`VDMPipeline`]): One that shares its components, and is silent.
        shape (`tuple[int, int, int]`): `(C, H, W)` of what is diffused.
        num_levels (`int`, *optional*): Of its images.

    Raises:
        `ValueError`: if samples are no images.
    """

    def __init__(self, pipeline: DiffusionPipeline):
        is_ours = isinstance(pipeline, VDMPipeline)
        self.pipeline = copy.copy(pipeline) if is_ours else VDMPipeline.from_pipe(pipeline, torch_dtype=pipeline.dtype)
        self.pipeline.set_progress_bar_config(disable=True)
        self.shape = sample_shape(self.pipeline.unet)
        self.num_levels = self.pipeline.config.num_levels
        if self.shape is None or len(self.shape) != 3:
            what = "doesn't say what it samples" if self.shape is None else f"makes samples of {in_words(self.shape)}"
            raise ValueError(f"The model {what}, but the demo shows images: give one whose samples are (C, H, W).")

    @property
    def device(self) -> torch.device:
        """Where it is computed."""
        return self.pipeline._execution_device

    @cached_property
    def vdm(self) -> VDM:
        """What has a bound; `ValueError` for models of latents, of real-valued data, and of a chain that ends in pure noise."""
        check_pixel_space(self.pipeline)
        return VDM.from_pipeline(self.pipeline).to(self.device)

    @cached_property
    def refusal(self) -> str | None:
        """Why it has no bound; `None` if it has one."""
        try:
            return None if self.vdm else None
        except ValueError as error:
            return str(reason_of(error))

    @cached_property
    def classes(self) -> list[str] | None:
        """What to call each class, the last being none of them; `None` if it is told no class."""
        number = num_classes(self.pipeline.unet)
        return None if number is None else [*captions(in_order(names_of(self.pipeline), number), number), "none"]

    @property
    def takes_text(self) -> bool:
        """Whether it is told a text."""
        return self.pipeline.prompt_encoder is not None

    @property
    def takes_condition(self) -> bool:
        """Whether it is told anything that guidance can make more of."""
        return self.takes_text or self.classes is not None

    def condition(self, number: int, told: Sequence[int | str]) -> Condition:
        """
        What the denoiser is told of so many images, all the same.

        Args:
            number (`int`): Of images.
            told: The label, if there are `classes`, and the text, if it `takes_text`.

        Raises `ValueError` for another label, and for a text that is too long.
        """
        left, condition = list(told), {}
        label = left.pop(0) if self.classes is not None else None
        if self.takes_text:
            text = left.pop(0) or ""
            if len(text) > MAX_PROMPT:
                raise ValueError(f"The prompt has {len(text):,} characters, but at most {MAX_PROMPT} are read: shorten it.")
            condition = self.pipeline.prompt_encoder([text] * number, self.pipeline.unet)
        if label is not None:
            condition = as_condition(condition, torch.full((number,), label))
        check_condition(condition, number, self.pipeline.unet)
        return to_device(condition, self.device)
