"""Where things are."""

from fnmatch import fnmatch
from pathlib import Path


ROOT = Path(__file__).parents[2]
SCRIPT = str(ROOT / "train_vdm.py")


def tracked_files() -> set[str]:
    """Those of the checkout: all that `.gitignore` doesn't name."""
    ignored = [".git", *(ROOT / ".gitignore").read_text().split()]
    names = {path.relative_to(ROOT) for path in ROOT.rglob("*") if path.is_file()}
    return {str(name) for name in names if not any(_is_ignored(name, pattern) for pattern in ignored)}


def _is_ignored(name: Path, pattern: str) -> bool:
    """By a pattern of `.gitignore`: one of a single name is of files and folders anywhere."""
    if "/" in pattern.rstrip("/"):
        return name.is_relative_to(pattern)
    return any(fnmatch(part, pattern.rstrip("/")) for part in (name.parts[:-1] if pattern.endswith("/") else name.parts))
