"""A training run: its options, its loop, its checkpoints, where its model is, and its place on the Hub."""

from typing import Any


__all__ = ["History", "Trainer"]


def __getattr__(name: str) -> Any:
    """`Trainer` when it is asked for: it brings the options, whose choices would then miss an augmentation added later."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import trainer

    return getattr(trainer, name)
