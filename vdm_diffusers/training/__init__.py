"""A training run: its options, its loop, its checkpoints, where its model is, and its place on the Hub."""

from .trainer import History, Trainer


__all__ = ["History", "Trainer"]
