"""Checkpoints of the official code, both ways."""

from .official import (
    OfficialConfig,
    build_official_vdm,
    convert_official_checkpoint,
    export_official_checkpoint,
    load_official_checkpoint,
    official_views,
    read_config,
)


__all__ = [
    "OfficialConfig",
    "build_official_vdm",
    "convert_official_checkpoint",
    "export_official_checkpoint",
    "load_official_checkpoint",
    "official_views",
    "read_config",
]
