"""Where things are."""

from pathlib import Path


ROOT = Path(__file__).parents[2]
SCRIPT = str(ROOT / "train_vdm.py")
