"""Text encoders of transformers: prompts -> what a denoiser is told of them."""

from .loading import load_prompt_encoder
from .of_pipelines import prompt_encoder_of
from .pairs import PromptEncoderPair
from .prompt_encoder import PromptEncoder


__all__ = ["PromptEncoder", "PromptEncoderPair", "load_prompt_encoder", "prompt_encoder_of"]
