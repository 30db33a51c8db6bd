"""VDMPipeline: samples images from a denoiser and a scheduler, down to the decoder `p(v|z_0)`, and tells their likelihood."""

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Annotated

import numpy as np
import PIL.Image
import torch
from diffusers import SchedulerMixin
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.pipelines.pipeline_utils import DiffusionPipeline, ImagePipelineOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor, nn

from . import gaussian
from .autoencoders import autoencoder_of, decode, encode, scale_to_unit
from .batching import InBatches, decoder_batch_size, denoiser_batch_size
from .class_names import Labels, check_class_names, labels_by_name, names_of
from .conditioning import (
    Condition,
    as_condition,
    batch_sizes,
    check_condition,
    concatenate,
    find_label,
    labels_of,
    merged,
    null_condition,
    num_classes,
    to_device,
)
from .denoisers import denoiser_of, predict, sample_shape
from .guards.arguments import Within, check_argument, checked
from .guards.finiteness import Trace, check_images
from .guards.plain_config import PlainConfigMixin
from .image_arguments import Images, levels_of, to_pictures
from .known_images import KnownImages, Masks, as_mask, last_timesteps
from .pixel_space import check_pixel_space
from .probability_flow.likelihood import log_likelihood
from .probability_flow.ode import integrate
from .prompts import Prompts
from .remote_code import save_code
from .scheduling import identity as scheduler_checks
from .scheduling.any_timesteps import kept_timesteps, with_timesteps
from .scheduling.identity import check_description, check_scheduler
from .scheduling.reverse_steps import is_learned
from .scheduling_vdm import VDMScheduler
from .text_encoders import PromptEncoder, prompt_encoder_of
from .vdm import VDM, evaluating


Generators = torch.Generator | list[torch.Generator] | None
OUTPUT_TYPES = ("pil", "np", "pt")
NUMBERS = {
    "batch_size": Annotated[int, Within(1, 2**20)] | None,
    "guidance_scale": Annotated[float, Within(-1e6, 1e6)],
    "num_inference_steps": Annotated[int, Within(1, 10**6)],
    "eta": Annotated[float, Within(0, 1)] | None,
    "num_images_per_prompt": Annotated[int, Within(1, 2**20)],
    "strength": Annotated[float, Within(0, 1)] | None,
    "max_batch_size": Annotated[int, Within(1, 2**20)] | None,
}
"""The numbers among the arguments of a call, and what they may be."""


class VDMPipeline(PlainConfigMixin, DiffusionPipeline):
    r"""
    Pipeline for image generation with a variational diffusion model.

    This model inherits from [`~diffusers.DiffusionPipeline`]. Check the superclass documentation for the generic methods
    implemented for all pipelines (downloading, saving, running on a particular device, etc.).

    Parameters:
        unet ([`VDMUNet2DModel`], [`~diffusers.UNet2DModel`] or [`~diffusers.DiTTransformer2DModel`]): The denoiser.
        scheduler ([`VDMScheduler`] or any [`~diffusers.SchedulerMixin`]): Steps from noise to `z_0`.
        vae ([`~diffusers.AutoencoderKL`], [`~diffusers.VQModel`] or any other autoencoder of diffusers, *optional*):
            Makes images of the latents that are sampled.
        num_levels (`int`, *optional*, defaults to 256): Images are integers in `[0, num_levels)`; `None` for real-valued data.
        trained_for (`dict`, *optional*):
            What the denoiser estimates at which noise levels. Defaults to what the scheduler says. It is saved with the
            pipeline, and schedulers that were not made for the model are refused by it.
        id2label (`dict[int, str]`, *optional*): Names of the classes of a class-conditional denoiser by their labels.
        text_encoder, tokenizer (`PreTrainedModel`, `PreTrainedTokenizerBase`, *optional*):
            Of transformers, for a denoiser that is conditioned on text, see [`PromptEncoder`].
        max_sequence_length (`int`, *optional*): Tokens of a prompt, to which all are padded or cut.
        lowercase (`bool`, *optional*, defaults to `False`): Whether prompts are read in lower case.
        text_encoder_2, tokenizer_2 (`PreTrainedModel`, `PreTrainedTokenizerBase`, *optional*):
            For a denoiser that is conditioned on two encodings of a text, see [`PromptEncoderPair`].
        force_zeros_for_empty_prompt (`bool`, *optional*, defaults to `False`): Whether the empty prompt is zeros to it.

    Attributes:
        labels (`dict[str, int]`): The label of every name of a class. A name such as `"tench, Tinca tinca"` also counts by the
            parts that commas separate. Names that several classes have are left out.

    Raises:
        `TypeError` and `ValueError`: for components of another kind.
    """

    __module__ = __package__  # the name of the library in a `model_index.json`

    model_cpu_offload_seq = "text_encoder->text_encoder_2->unet->vae"
    _optional_components = ["vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"]
    _callback_tensor_inputs = ["latents"]

    @checked
    def __init__(
        self,
        unet: nn.Module,
        scheduler: SchedulerMixin,
        vae: nn.Module | None = None,
        num_levels: Annotated[int, Within(2, 2**24)] | None = 256,
        id2label: dict | None = None,
        trained_for: dict | None = None,
        text_encoder: nn.Module | None = None,
        tokenizer: Callable | None = None,
        max_sequence_length: int | None = None,
        lowercase: bool = False,
        text_encoder_2: nn.Module | None = None,
        tokenizer_2: Callable | None = None,
        force_zeros_for_empty_prompt: bool = False,
    ):
        super().__init__()
        check_description(trained_for)
        id2label = check_class_names(id2label, num_classes(unet))
        self.register_modules(unet=unet, scheduler=scheduler, vae=vae, text_encoder=text_encoder, tokenizer=tokenizer)
        self.register_modules(text_encoder_2=text_encoder_2, tokenizer_2=tokenizer_2)
        self.register_to_config(
            num_levels=num_levels,
            id2label=id2label,
            trained_for=trained_for or scheduler_checks.trained_for(scheduler),
            max_sequence_length=max_sequence_length,
            lowercase=lowercase,
            force_zeros_for_empty_prompt=force_zeros_for_empty_prompt,
        )
        self.labels = labels_by_name(id2label)

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **kwargs) -> "VDMPipeline":
        """As in diffusers, with whatever denoiser and autoencoder the other pipeline has, and the text encoders that fit it."""
        given = {"unet": denoiser_of(pipeline), "scheduler": pipeline.scheduler, "vae": autoencoder_of(pipeline)}
        given |= {"id2label": names_of(pipeline)}
        if (encoder := prompt_encoder_of(pipeline)) is not None:
            given |= encoder.pipeline_arguments
        return super().from_pipe(pipeline, **({name: value for name, value in given.items() if value is not None} | kwargs))

    def save_config(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs) -> None:
        """As in diffusers, whose `save_pretrained` calls it last; with the code that loads the pipeline where it is trusted."""
        if type(self) is VDMPipeline:
            components = {name: self.config[name] for name in self.components}
            save_code(save_directory, VDMPipeline.__name__, components)
        super().save_config(save_directory, push_to_hub=push_to_hub, **kwargs)

    @property
    def prompt_encoder(self) -> PromptEncoder | None:
        """The tokenizers and the text encoders as one, if the pipeline has any and they fit its denoiser."""
        return prompt_encoder_of(self)

    def get_label_ids(self, label: str | list[str]) -> list[int]:
        """The labels of classes by their names, as in `DiTPipeline`; `ValueError` for names that are none's or several's."""
        return [find_label(name, self.labels) for name in ([label] if isinstance(label, str) else label)]

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int | str | list[str] | None = None,
        class_labels: Labels | None = None,
        guidance_scale: float = 1.0,
        num_inference_steps: int = 250,
        timesteps: Sequence[float] | Tensor | None = None,
        eta: float | None = None,
        generator: Generators = None,
        latents: Tensor | None = None,
        output_type: str | None = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[["VDMPipeline", int, Tensor, dict], dict] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        condition: Condition | None = None,
        prompt: str | list[str] | None = None,
        negative_prompt: str | list[str] | None = None,
        num_images_per_prompt: int = 1,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        prompt_attention_mask: Tensor | None = None,
        negative_prompt_attention_mask: Tensor | None = None,
        image: Images | None = None,
        strength: float | None = None,
        mask_image: Masks | None = None,
        max_batch_size: int | None = None,
    ) -> ImagePipelineOutput | tuple:
        r"""
        The call function to the pipeline for generation.

        Args:
            batch_size (`int`, *optional*):
                The number of images to generate. Defaults to that of `prompt`, `class_labels`, `condition`, `image` or
                `latents`, or to 1. A string or a list of them in this place is the `prompt`.
            class_labels (`list[int | str]`, `torch.Tensor`, `int` or `str`, *optional*):
                One label an image, or one for all of them, if the denoiser is class-conditional: an integer, or the name of
                a class. A string is always a name, `"3"` that of the class called so.
            guidance_scale (`float`, *optional*, defaults to 1.0):
                Scale of classifier-free guidance, enabled when it differs from 1: the denoiser's output for the null condition
                (the null class, and zeros for other numbers), plus this multiple of the difference that the condition makes.
            num_inference_steps (`int`, *optional*, defaults to 250):
                The number of denoising steps. Where the scheduler's configuration keeps `few_step_timesteps` for that number,
                they are taken.
            timesteps (`list[float]` or `torch.Tensor`, *optional*):
                The timesteps themselves, decreasing, in the place of a number: those of a [`VDMScheduler`], or for others the
                nearest indices of their chain. Schedulers that step otherwise than from one to the next refuse them.
            eta (`float`, *optional*):
                Share of fresh noise, 0 being deterministic, for schedulers with such an argument. Defaults to theirs.
            generator (`torch.Generator` or `list[torch.Generator]`, *optional*):
                One or several [`torch.Generator`](https://pytorch.org/docs/stable/generated/torch.Generator.html) to make
                generation deterministic; a list has one for each image.
            latents (`torch.Tensor` of shape `(B, C, *size)`, *optional*):
                `z_1`, standard normal. Drawn from `generator` by default. Kept in float32 whatever the denoiser's dtype.
            output_type (`str`, *optional*, defaults to `"pil"`):
                `"pil"` (`PIL.Image`, of images alone), `"np"` (`np.ndarray` `(B, *size, C)`) or `"pt"` (`torch.Tensor`
                `(B, C, *size)`), the last two in [0, 1] with level `v` at `v / (num_levels - 1)`; or `"latent"`, `z_0` before
                the decoder.
            return_dict (`bool`, *optional*, defaults to `True`):
                Whether or not to return an [`~diffusers.ImagePipelineOutput`] instead of a plain tuple.
            callback_on_step_end (`Callable`, *optional*):
                Called after each step as `callback(pipeline, step, timestep, callback_kwargs)`; may return new `latents` in a
                dictionary, or set `pipeline._interrupt` to leave out the steps that remain.
            callback_on_step_end_tensor_inputs (`list[str]`, *optional*): Tensors in `callback_kwargs`; `[]` for none.
            condition (`dict[str, torch.Tensor]`, *optional*):
                What the denoiser is told besides, by its keywords, with a row for each image.
            prompt (`str` or `list[str]`, *optional*):
                The text of each image, or one for all of them, if the denoiser is conditioned on text. Without one it is the
                empty text.
            negative_prompt (`str` or `list[str]`, *optional*):
                The text that guidance compares with. Defaults to the empty one, which training replaces captions by.
            num_images_per_prompt (`int`, *optional*, defaults to 1): The number of images of each text.
            prompt_embeds, negative_prompt_embeds (`torch.Tensor` of shape `(P, L, width)`, *optional*):
                Texts that are encoded already. Without negative ones guidance compares with the empty text, or with zeros
                where the pipeline has no text encoder.
            prompt_attention_mask, negative_prompt_attention_mask (`torch.Tensor` of shape `(P, L)`, *optional*): Theirs.
            image (*optional*):
                Images to begin at, as [`~VDMPipeline.log_likelihood`] takes them, each as it is diffused to where the last
                `strength` of the steps begin.
            strength (`float`, *optional*): That share. Defaults to 0.8, or with a mask to 1; 1 begins at noise.
            mask_image (*optional*):
                Where `image` is drawn anew, white or 1; elsewhere it is kept. One for all images, or one for each.
            max_batch_size (`int`, *optional*):
                The number of images that the denoiser, or the autoencoder's decoder, is given at once; guidance's two halves
                count as two images. Defaults to what the memory of the device allows. The images don't depend on it.

        Returns:
            [`~diffusers.ImagePipelineOutput`] or `tuple`: whose first element is the images.

        Raises:
            `TypeError` and `ValueError`: for arguments that there are not, and a scheduler that was not made for the model.
            `FloatingPointError`: instead of images that are not finite, saying from which step on.
        """
        if isinstance(batch_size, (str, list)) and prompt is None:
            batch_size, prompt = None, batch_size
        given = {
            "batch_size": batch_size,
            "guidance_scale": guidance_scale,
            "num_inference_steps": num_inference_steps,
            "eta": eta,
            "num_images_per_prompt": num_images_per_prompt,
            "strength": strength,
            "max_batch_size": max_batch_size,
        }
        for name, value in given.items():
            given[name] = value.item() if isinstance(value, Tensor) and value.ndim == 0 else value
            check_argument(name, given[name], NUMBERS[name])
        batch_size, guidance_scale, num_inference_steps, eta, num_images_per_prompt, strength, max_batch_size = given.values()
        _check_output_type(output_type, (*OUTPUT_TYPES, "latent"))
        self._check_pictures(output_type)
        if isinstance(callback_on_step_end, (PipelineCallback, MultiPipelineCallbacks)):
            callback_on_step_end_tensor_inputs = callback_on_step_end.tensor_inputs
        if callback_on_step_end is not None and not callable(callback_on_step_end):
            raise TypeError(f"`callback_on_step_end` is a {type(callback_on_step_end).__name__}, but must be a function.")
        callback_on_step_end_tensor_inputs = callback_on_step_end_tensor_inputs or ()
        unknown = set(callback_on_step_end_tensor_inputs) - set(self._callback_tensor_inputs)
        if unknown:
            raise ValueError(
                f"`callback_on_step_end_tensor_inputs` has {sorted(unknown)}, but offers {self._callback_tensor_inputs}."
            )
        check_scheduler(self.scheduler, self.config.get("trained_for"))
        for name, value in (("strength", strength), ("mask_image", mask_image)):
            if value is not None and image is None:
                raise ValueError(f"`{name}` was given without an `image`.")
        if latents is not None:
            self._check_shape("latents", latents)
        device = self._execution_device
        x = None if image is None else self._known(image, generator)
        prompts = Prompts(
            prompt,
            negative_prompt,
            num_images_per_prompt,
            *(prompt_embeds, negative_prompt_embeds, prompt_attention_mask, negative_prompt_attention_mask),
        )
        number = batch_size or next((len(given) for given in (latents, x) if given is not None), None)
        guided = guidance_scale != 1 or callback_on_step_end is not None  # which may change the scale
        condition, null_text = self._conditions(condition, class_labels, prompts, number, guided)
        if guidance_scale != 1 and not condition:
            raise ValueError(
                f"`guidance_scale` is {guidance_scale}, which needs `class_labels`, a `prompt` or another `condition`."
            )
        batch_size = self._resolve_batch_size(batch_size, condition, latents, x)
        condition = self._checked(condition, batch_size)
        null = self._checked(merged(null_condition(condition, self.unet), null_text), batch_size)
        # before the latents: some schedulers scale them by the first noise level
        self._set_timesteps(num_inference_steps, timesteps, device)
        latents = self._prepare_latents(batch_size, generator, latents, device)
        timesteps, known = self.scheduler.timesteps, None
        if x is not None:
            strength = strength if strength is not None else 0.8 if mask_image is None else 1.0
            noise = latents / self.scheduler.init_noise_sigma
            mask = None if mask_image is None else as_mask(mask_image, batch_size, tuple(x.shape[2:])).to(device)
            known = KnownImages(x.to(device, noise.dtype).expand(noise.shape), noise, mask)
            timesteps = last_timesteps(self.scheduler, len(timesteps) // self.scheduler.order, strength)
            latents = latents if strength == 1 else known.at(self.scheduler, timesteps[0])

        denoise = self._in_batches(partial(predict, self.unet), batch_size, condition, max_batch_size)
        accepted = inspect.signature(self.scheduler.step).parameters
        given = {"eta": eta, "generator": generator}
        step_kwargs = {name: value for name, value in given.items() if value is not None and name in accepted}
        self._num_timesteps = len(timesteps)
        self._guidance_scale = guidance_scale
        self._interrupt = False
        trace = Trace()
        with evaluating(self.unet):
            for i, t in enumerate(self.progress_bar(timesteps)):
                model_output = self._guided_output(denoise, latents, t, condition, null)
                latents = self.scheduler.step(model_output, t, latents, return_dict=False, **step_kwargs)[0]
                if known is not None:
                    latents = known.kept(latents, self.scheduler, timesteps[i + 1] if i + 1 < len(timesteps) else None)
                trace.record(t, model_output, latents)
                if callback_on_step_end is not None:
                    tensors = {"latents": latents} if callback_on_step_end_tensor_inputs else {}
                    latents = self._returned(callback_on_step_end(self, i, t, tensors), latents)
                if self.interrupt:
                    break
        trace.check(latents, self.unet)

        images = self._decode(latents, output_type, max_batch_size)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def log_likelihood(
        self,
        images: Images,
        class_labels: Labels | None = None,
        dequantization: str = "decoder",
        num_importance_samples: int = 1,
        trace: str = "rademacher",
        tolerance: float = 1e-5,
        generator: Generators = None,
        condition: Condition | None = None,
        prompt: str | list[str] | None = None,
    ) -> Tensor:
        r"""
        The log-likelihood of images in nats, by the probability-flow ODE; see [`~probability_flow.likelihood.log_likelihood`].

        It is a random lower bound of `log P(image)` in expectation, one draw of dequantisation noise and one of the trace's
        probe. Bits per dimension are `-nats / (D log 2)`, D being the number of elements of a sample, such as `C H W`. The
        variational bound is `VDM.from_pipeline(pipe)(images)`.

        Args:
            images (`list[PIL.Image.Image]`, `np.ndarray` or `torch.Tensor`):
                PIL images, shown levels as `__call__` returns them: `v` at `255 v / (num_levels - 1)`. Or integers in
                `[0, num_levels)`: an array `(B, *size, C)` or a tensor `(B, C, *size)`.
            class_labels (*optional*): As `__call__` takes them, if the denoiser is class-conditional.
            dequantization (`str`, *optional*, defaults to `"decoder"`): Or `"truncated_normal"`, `"uniform"`.
            num_importance_samples (`int`, *optional*, defaults to 1): More of them tighten the bound.
            trace (`str`, *optional*, defaults to `"rademacher"`): Or `"gaussian"` or, for small images, `"exact"`.
            tolerance (`float`, *optional*, defaults to 1e-5): Of the adaptive solver.
            generator (`torch.Generator` or a list of them, one an image, *optional*): Of the draws, on the CPU.
            condition, prompt (*optional*): As `__call__` takes them.

        Returns:
            `torch.Tensor` of shape `(B,)`: nats, in float64.

        Raises:
            `TypeError` and `ValueError`: for images that are not integers, do not fit `num_levels` or have another shape.
        """
        vdm, levels = self._vdm(), self._levels(images)
        condition = self._told(condition, class_labels, prompt, len(levels))
        _check_generators(generator, len(levels))
        options = (dequantization, num_importance_samples, trace, tolerance, generator)
        nats = log_likelihood(vdm, levels, condition, *options).nats
        self.maybe_free_model_hooks()
        return nats

    def encode(
        self,
        images: Images,
        class_labels: Labels | None = None,
        tolerance: float = 1e-5,
        condition: Condition | None = None,
        prompt: str | list[str] | None = None,
    ) -> Tensor:
        """Images, as [`~VDMPipeline.log_likelihood`] takes them, to latents `z_1` `(B, C, *size)` in float32, by the ODE.

        `decode` is its inverse. So is sampling from `latents` with `eta=0`, in the limit of many steps.
        """
        vdm = self._vdm()
        x = vdm.scale(self._levels(images))
        gamma_0, gamma_1 = vdm.noise_schedule.end_points()
        condition = self._told(condition, class_labels, prompt, len(x))
        return self._flow(vdm, gaussian.alpha(gamma_0) * x, gamma_0, gamma_1, condition, tolerance).float()

    def decode(
        self,
        latents: Tensor,
        class_labels: Labels | None = None,
        tolerance: float = 1e-5,
        output_type: str = "pil",
        condition: Condition | None = None,
        prompt: str | list[str] | None = None,
    ) -> list[PIL.Image.Image] | np.ndarray | Tensor:
        """Latents `z_1` `(B, C, *size)` to images by the ODE; `output_type` is `"pil"`, `"np"` or `"pt"` as in `__call__`."""
        _check_output_type(output_type, OUTPUT_TYPES)
        self._check_pictures(output_type)
        self._check_shape("latents", latents)
        vdm = self._vdm()
        gamma_0, gamma_1 = vdm.noise_schedule.end_points()
        latents = latents.to(self._execution_device)
        condition = self._told(condition, class_labels, prompt, len(latents))
        z_0 = self._flow(vdm, latents, gamma_1, gamma_0, condition, tolerance)
        return self._show((z_0 / gaussian.alpha(gamma_0)).float(), output_type)

    def _flow(
        self, vdm: VDM, z: Tensor, gamma_start: Tensor, gamma_end: Tensor, condition: Condition, tolerance: float
    ) -> Tensor:
        """Where the flow leads latents, each of which takes steps of its own, whatever the others in the batch."""

        def flow(z: Tensor, condition: Condition) -> Tensor:
            return integrate(vdm, z, gamma_start, gamma_end, condition, tolerance=tolerance).z

        end = self._in_batches(flow, len(z), condition)(z, condition)
        self.maybe_free_model_hooks()
        return end

    def _returned(self, outputs: dict | None, latents: Tensor) -> Tensor:
        """The latents that a callback returned, or the present ones if it returned none."""
        if not outputs:
            return latents
        if not isinstance(outputs, Mapping):
            raise TypeError(
                f"`callback_on_step_end` returned a {type(outputs).__name__}, but must return a dictionary or None."
            )
        returned = outputs.get("latents", latents)
        if returned is not latents:
            self._check_shape("latents", returned)
        return returned.to(latents)

    def _vdm(self) -> VDM:
        """The model, with all but the denoiser, which may be offloaded, on the device of execution."""
        check_pixel_space(self)
        vdm = VDM.from_pipeline(self)
        for module in (vdm.noise_schedule, vdm.timestep_map):
            module.to(self._execution_device)
        return vdm

    def _conditions(
        self, condition: Condition | None, class_labels: Labels | None, prompts: Prompts, number: int | None, guided: bool
    ) -> tuple[Condition, Condition]:
        """What the denoiser is told in a call, and the texts that guidance compares with; one for all is one for so many."""
        labels = None if class_labels is None else labels_of(class_labels, number or 1, self.labels, self.unet)
        prompts, rest = prompts.within(as_condition(condition, labels))
        text, null_text = prompts.conditions(self.prompt_encoder, self.unet, number, guided)
        return merged(text, rest), null_text

    def _told(
        self, condition: Condition | None, class_labels: Labels | None, prompt: str | list[str] | None, number: int
    ) -> Condition:
        """What the denoiser is told of so many images, on the device."""
        return self._checked(self._conditions(condition, class_labels, Prompts(prompt), number, guided=False)[0], number)

    def _checked(self, condition: Condition, number: int) -> Condition:
        """A condition that the denoiser takes for so many images, on the device."""
        check_condition(condition, number, self.unet)
        return to_device(condition, self._execution_device)

    def _levels(self, images: Images) -> Tensor:
        """Images as integers `(B, C, *size)`, of the model's shape."""
        levels = levels_of(images, len(self._sample_shape()) - 1, self.config.num_levels)
        self._check_shape("images", levels)
        return levels.to(self._execution_device)

    def _known(self, images: Images, generator: Generators) -> Tensor:
        """Images as the data that are diffused, `(B, C, *size)`."""
        if self.vae is None:
            return VDM.from_pipeline(self).scale(self._levels(images))
        levels = levels_of(images, len(self._sample_shape()) - 1, self.config.num_levels).to(self._execution_device)
        latents = encode(self.vae, scale_to_unit(levels, self.config.num_levels), generator)
        if tuple(latents.shape[1:]) != self._sample_shape():
            raise ValueError(
                f"`image` has the shape {tuple(levels.shape[1:])} and latents of {tuple(latents.shape[1:])}, but this model's"
                f" are {self._sample_shape()}: resize it."
            )
        return latents

    def _check_pictures(self, output_type: str) -> None:
        if output_type == "pil" and not self.has_pictures:
            channels, *size = self._shape_shown()
            what = f"{channels} channels" if len(size) == 2 else f"{len(size)} dimensions"
            raise ValueError(f'PIL has no pictures of {what}: take arrays by `output_type="np"`, or tensors by `"pt"`.')

    @property
    def has_pictures(self) -> bool:
        """Whether `output_type="pil"` has a mode for the samples: grey, with alpha, in colours, or colours with alpha."""
        channels, *size = self._shape_shown()
        return channels in (1, 2, 3, 4) and len(size) == 2

    def _shape_shown(self) -> tuple[int, ...]:
        """`(C, *size)` of the samples; with an autoencoder, the channels of its images and the size of their latents."""
        channels, *size = self._sample_shape()
        return channels if self.vae is None else self.vae.config.get("out_channels", 3), *size

    def _check_shape(self, name: str, tensor: Tensor) -> None:
        """Raise an error unless it is a tensor `(B, *shape)`, of the model's shape."""
        if not isinstance(tensor, Tensor):
            raise TypeError(f"`{name}` are a {type(tensor).__name__}, but must be a tensor (B, C, *size).")
        if name == "latents" and not tensor.is_floating_point():
            raise TypeError(f"`latents` are {tensor.dtype}, but must be floating-point numbers.")
        shape = self._sample_shape()
        if tensor.ndim != 1 + len(shape) or len(tensor) == 0:
            raise ValueError(f"`{name}` have the shape {tuple(tensor.shape)}, but must be (B, *{shape}), with at least one.")
        if tuple(tensor.shape[1:]) != shape:
            raise ValueError(f"`{name}` have the shape {tuple(tensor.shape[1:])}, but this model's are {shape}.")

    def _sample_shape(self) -> tuple[int, ...]:
        """`(C, *size)` of the latents."""
        shape = sample_shape(self.unet)
        if shape is None:
            raise ValueError(
                f"The configuration of {type(self.unet).__name__} doesn't say what it samples: set its `sample_size`."
            )
        return shape

    @property
    def num_timesteps(self) -> int:
        """Number of steps of the latest call."""
        return self._num_timesteps

    @property
    def guidance_scale(self) -> float:
        """That of the latest call; a callback may change it by `pipeline._guidance_scale`, as elsewhere in diffusers."""
        return self._guidance_scale

    @property
    def interrupt(self) -> bool:
        """Whether the latest call is to end with the present step; a callback sets it by `pipeline._interrupt = True`."""
        return self._interrupt

    def _resolve_batch_size(
        self, batch_size: int | None, condition: Condition, latents: Tensor | None, images: Tensor | None
    ) -> int:
        sizes = {"batch_size": batch_size, **batch_sizes(condition)}
        sizes["latents"] = None if latents is None else len(latents)
        sizes["image"] = None if images is None or len(images) == 1 else len(images)
        sizes = {name: size for name, size in sizes.items() if size is not None}
        if len(set(sizes.values())) > 1:
            raise ValueError(f"The number of images is contradictory: {sizes}.")
        return next(iter(sizes.values()), 1)

    def _set_timesteps(
        self, num_inference_steps: int, timesteps: Sequence[float] | Tensor | None, device: torch.device
    ) -> None:
        if timesteps is None and not isinstance(self.scheduler, VDMScheduler):
            timesteps = kept_timesteps(self.scheduler, num_inference_steps)
        if timesteps is None:
            self.scheduler.set_timesteps(num_inference_steps, device=device)
            return
        try:
            timesteps = torch.as_tensor(timesteps)
        except (TypeError, ValueError, RuntimeError):
            raise TypeError(f"`timesteps` are a {type(timesteps).__name__}, but must be numbers that decrease.") from None
        if not isinstance(self.scheduler, VDMScheduler):  # the nearest indices of its chain, each once
            last = self.scheduler.config.num_train_timesteps - 1
            timesteps = timesteps.round().long().clamp(0, last).unique_consecutive()
            if "timesteps" not in inspect.signature(self.scheduler.set_timesteps).parameters:
                self.scheduler = with_timesteps(self.scheduler)
        self.scheduler.set_timesteps(timesteps=timesteps.tolist(), device=device)

    def _prepare_latents(self, batch_size: int, generator: Generators, latents: Tensor | None, device: torch.device) -> Tensor:
        _check_generators(generator, batch_size)
        shape = (batch_size, *self._sample_shape())
        if latents is None:
            latents = randn_tensor(shape, generator=generator, device=device, dtype=torch.float32)
        dtype = torch.promote_types(latents.dtype, torch.float32)
        return latents.to(device, dtype) * self.scheduler.init_noise_sigma

    def _in_batches(
        self, function: Callable[..., Tensor], number: int, condition: Condition, max_batch_size: int | None = None
    ) -> InBatches:
        """A function that calls the denoiser for so many images; one image and its guidance are not many."""
        if max_batch_size is None and number == 1:
            max_batch_size = 2
        return InBatches(function, max_batch_size or denoiser_batch_size(self.unet, condition, self._execution_device))

    def _guided_output(self, denoise: InBatches, latents: Tensor, t: Tensor, condition: Condition, null: Condition) -> Tensor:
        """The denoiser's output, shaped as `latents` and in their dtype, with classifier-free guidance where asked for."""
        sample = self.scheduler.scale_model_input(latents, t)
        if self.guidance_scale == 1 or not condition:
            return self._output(denoise, sample, t, condition)
        both = concatenate(condition, null)
        conditional, unconditional = self._output(denoise, torch.cat([sample, sample]), t, both).chunk(2)
        return unconditional + self.guidance_scale * (conditional - unconditional)

    def _output(self, denoise: InBatches, sample: Tensor, t: Tensor, condition: Condition) -> Tensor:
        output = denoise(sample, t.to(sample.device).expand(len(sample)), condition)
        return output if is_learned(self.scheduler.config.get("variance_type")) else output[:, : sample.shape[1]]

    def _decode(self, latents: Tensor, output_type: str, max_batch_size: int | None = None):
        """The images of `z_0`. A stock scheduler ends in `x`, where `alpha_0 = 1`."""
        if output_type == "latent":
            return latents
        if isinstance(self.scheduler, VDMScheduler):
            latents = latents / gaussian.alpha(self.scheduler.gamma_0)
        return self._show(latents, output_type, max_batch_size)

    def _show(self, x: Tensor, output_type: str, max_batch_size: int | None = None):
        """`argmax_v p(v|z_0)`: the level nearest to `x = z_0 / alpha_0`.

        Real-valued data have no levels and are shown as they are, clipped to [-1, 1]; latents are decoded.
        """
        if self.vae is not None:
            in_batches = InBatches(partial(decode, self.vae), max_batch_size or decoder_batch_size(self.vae, x))
            images = (in_batches(x) + 1) / 2
        elif self.config.num_levels is None:
            images = ((x + 1) / 2).clamp(0, 1)
        else:
            last = self.config.num_levels - 1
            images = ((x + 1) * ((last + 1) / 2) - 0.5).round().clamp(0, last) / last
        check_images(images, self.vae)
        if output_type == "pt":
            return images
        images = images.cpu().movedim(1, -1).float().numpy()
        return to_pictures(images) if output_type == "pil" else images


def _check_output_type(output_type: str, known: tuple[str, ...]) -> None:
    if output_type not in known:
        raise ValueError(f"`output_type` is {output_type!r}, but must be one of {', '.join(map(repr, known))}.")


def _check_generators(generator: Generators, batch_size: int) -> None:
    sources = generator if isinstance(generator, list) else [generator]
    if not all(isinstance(source, torch.Generator) for source in sources if generator is not None):
        raise TypeError(
            f"`generator` is {generator!r}, but must be a `torch.Generator` or a list of them, one an image:"
            " `torch.Generator().manual_seed(0)`."
        )
    if isinstance(generator, list) and len(generator) != batch_size:
        raise ValueError(f"There are {len(generator)} generators for {batch_size} images; give one, or one an image.")
