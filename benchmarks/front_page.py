"""The three minutes of the front page, as written, in an empty environment with the wheel alone: what they print and take.

python benchmarks/front_page.py
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path


ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "index.md"
SECTION = "Three minutes to a result"


def blocks() -> list[tuple[str, str]]:
    """Languages and texts of the code blocks of the section."""
    text = re.search(rf"^## {SECTION}\n(.*?)^## ", PAGE.read_text(), re.MULTILINE | re.DOTALL)[1]
    return re.findall(r"```(\w+)\n(.*?)```", text, re.DOTALL)


def commands(folder: Path, wheel: Path) -> list[str]:
    """Those of the section, one after the other, with the wheel in the place of its name on PyPI."""
    found = []
    for language, text in blocks():
        if language == "python":
            (folder / "page.py").write_text(text)
            found.append("python page.py")
        else:
            found += text.replace("\\\n", " ").strip().splitlines()
    return [re.sub(r"vdm-diffusers(?=\[)", str(wheel), command) for command in found]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--constraint", type=Path, default=ROOT / "constraints.txt", help="Versions for pip.")
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", name, str(ROOT)]
        subprocess.run(build, check=True)
        (wheel,) = folder.glob("*.whl")
        venv.create(folder / "venv", with_pip=True)
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        environment |= {"PATH": f"{folder / 'venv' / 'bin'}:{os.environ['PATH']}", "PIP_CONSTRAINT": str(options.constraint)}
        for command in commands(folder, wheel):
            start = time.perf_counter()
            done = subprocess.run(command, shell=True, cwd=folder, env=environment, capture_output=True, text=True)
            seconds = time.perf_counter() - start
            print(f"{seconds:6.1f} s  {' '.join(command.replace(str(folder), '').split())}", flush=True)
            if done.returncode:
                sys.exit(done.stderr)
            if "evaluate" in command:
                print(done.stdout.strip())


if __name__ == "__main__":
    main()
