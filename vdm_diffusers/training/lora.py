"""Low-rank adapters by peft (LoRA, Hu et al. 2022): a pretrained denoiser is trained by its attention's adapters alone."""

from torch import nn

from ..guards.messages import Message, refuse_if


PROJECTIONS = ("to_q", "to_k", "to_v", "to_out", "to_out.0")
"""The linear maps of attention, as denoisers of diffusers call them, and ours."""


def add_adapters(unet: nn.Module, rank: int) -> None:
    """Freeze a denoiser and put adapters into its attention, which at first change nothing.

    Raises `ValueError` without peft, and for a denoiser without attention.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ValueError(Message("{lora_rank} needs peft: `pip install 'vdm-diffusers[lora]'` installs it.")) from error
    places = [name for name, part in unet.named_modules() if isinstance(part, nn.Linear) and name.endswith(PROJECTIONS)]
    message = "{lora_rank} adapts attention, of which {} has none: leave it out, and all weights are trained."
    refuse_if(not places, message, type(unet).__name__)
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=places), unet)


def merge_adapters(unet: nn.Module) -> None:
    """Make adapters, if a denoiser has any, a part of the weights that they adapt, as its class has them."""
    for name, layer in list(unet.named_modules()):
        if hasattr(layer, "get_base_layer"):
            layer.merge()
            unet.set_submodule(name, layer.get_base_layer())
