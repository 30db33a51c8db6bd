"""Configurations that can be written as JSON, whichever numbers they were made from."""

from typing import Any

import numpy as np
from diffusers import ConfigMixin


class PlainConfigMixin(ConfigMixin):
    """A configuration that holds NumPy's numbers as Python's, and its arrays as lists, in lists and dictionaries too."""

    def register_to_config(self, **kwargs: Any) -> None:
        super().register_to_config(**plain(kwargs))


def plain(value: Any) -> Any:
    """A value with all that is NumPy's in it as Python's."""
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    if type(value) is dict:
        return {key: plain(element) for key, element in value.items()}
    return type(value)(map(plain, value)) if type(value) in (list, tuple) else value
