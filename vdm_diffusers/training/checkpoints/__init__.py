"""Checkpoints: folders that are whole or not there, and what is in them."""
