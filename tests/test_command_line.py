"""Options of commands: what files and flags mean, and one sentence for what they can't; no secret in it."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from vdm_diffusers.command_line import MISSING, exit_with_message, option, parse_options, without_traceback


@dataclass
class Options:
    data_dir: str = option(MISSING, "A folder.", aliases=("train_data_dir",))
    token: str | None = option(None, "A secret.", secret=True)
    steps: int = option(3, "How many.")
    steps_between: list[int | Literal["all"]] | None = option(None, "Of what.")
    rate: float = option(0.1, "How fast.")
    kind: Literal["no", "yes"] = option("no", "Which.")
    clip: bool = option(True, "Whether.")
    path: Path | None = option(None, "Where.")


def parse(*arguments: str) -> dict:
    return parse_options(Options, arguments, "command", "Says.")


def test_flags_are_typed_as_they_are_declared():
    flags = "--train_data_dir a --steps_between 1 all --rate -1e-3 --kind no --no-clip --path=b=c --steps 1 --steps=2"
    assert parse(*flags.split()) == {
        "data_dir": "a",
        "steps_between": [1, "all"],
        "rate": -1e-3,
        "kind": "no",
        "clip": False,
        "path": Path("b=c"),
        "steps": 2,
    }
    assert parse("--data-dir", "a", "--clip")["clip"] and not parse("--data", "a", "--clip", "false")["clip"]


def test_a_file_comes_first_and_flags_override_it(tmp_path):
    path = tmp_path / "options.yaml"
    path.write_text("train_data_dir: a\nkind: no\nclip: no\ntoken: null\nsteps_between: []\nrate: 1e-3\n")
    expected = {"data_dir": "b", "kind": "no", "clip": False, "steps_between": [], "rate": 1e-3}
    assert parse(str(path), "--data_dir", "b") == expected
    path.write_text(json.dumps({"data_dir": "b", "kind": "no", "clip": False, "steps_between": [], "rate": 1e-3}, indent=2))
    assert parse(str(path)) == expected
    path.write_text(json.dumps({"data_dir": "straße 🙂"}))
    assert parse(str(path)) == {"data_dir": "straße 🙂"}


def test_a_home_directory_is_found_where_no_shell_has_done_so(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "options.yaml").write_text("data_dir: ~/a b\npath: ~/c\n")
    assert parse(str(tmp_path / "options.yaml")) == {"data_dir": f"{tmp_path}/a b", "path": tmp_path / "c"}
    assert parse("--data_dir=~/a", "--path=x~/y") == {"data_dir": f"{tmp_path}/a", "path": Path("x~/y")}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("", "`--data_dir` is missing: A folder."),
        ("--dat_dir a", "`--dat_dir` is no option: did you mean `--data_dir` or `--train_data_dir`?"),
        ("--st 1", "`--st` is short for several options: did you mean `--steps` or `--steps_between`?"),
        ("--data_dir a --train_data_dir b", "`--data_dir` and `--train_data_dir` are one option: give it once."),
        ("--steps x", "`--steps` has a wrong value, 'x': it must be a whole number of at most 64 bits."),
        ("--steps 1e3", "`--steps` has a wrong value, '1e3'"),
        ("--steps 9223372036854775808", "`--steps` has a wrong value"),
        ("--steps", "`--steps` has no value: it must be a whole number"),
        ("--steps 1 2", "`--steps` has 2 values, '1 2', but takes one."),
        ("--kind maybe", "`--kind` has a wrong value, 'maybe': it must be one of no, yes."),
        ("--clip maybe", "`--clip` has a wrong value, 'maybe': it must be true or false."),
        ("--steps_between 1 none", "'none': it must be a whole number of at most 64 bits or one of all."),
        ("--path a\0b", "it must be a path without control characters."),
        ("nowhere.yaml", "There is no file 'nowhere.yaml'."),
        ("-data_dir a", "An option is a flag"),
        ("--" + "x" * 10_000, "is no option; `--help` lists them."),
    ],
)
def test_wrong_flags_are_named_in_one_sentence(flags, message):
    with pytest.raises(ValueError) as error:
        parse(*flags.split(" ")) if flags else parse()
    assert message in str(error.value) and len(str(error.value)) < 300


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"[1, 2]", "is a list"),
        (b"steps", "is a text"),
        (b"\xff\xfe\x00", "is no text in UTF-8"),
        (b"\0\0", "has characters that are no text"),
        (b"steps: 1\nsteps: 2", "'steps' is there twice in line 2"),
        (b"data_dir: a\ntrain_data_dir: b", "are one option"),
        (b"a: &a [1]\nb: *a", "an alias, which options have no use for in line 2"),
        (b"a: &a [&b [&c [1]], *b]", "an alias"),
        (b"steps: {a: 1}", "nests something in `steps`"),
        (b"steps: [1]", "nests something in `steps`"),
        (b"steps_between: [[1]]", "nests something in `steps_between`"),
        (b"? [1]\n: 2", "a name that is no word"),
        (b"[" * 100_000, "is nested too deep"),
        (b'{"a":' * 40_000, "is nested too deep"),
        (b"steps: .nan", "`--steps` has a wrong value, '.nan'"),
        (b"steps: " + b"9" * 10_000, "`--steps` has a wrong value"),
        (b"steps:", "has no value for `steps`"),
        (b"stepz: 1", "has 'stepz', which is no option: did you mean `--steps`"),
        (b"!!python/object/apply:os.system [touch here]", "is a list"),
        (b"x: 1\n" * 100_000, "has more than 262,144 bytes"),
        (b"steps: 1\n---\nsteps: 2", "but found another document"),
    ],
)
def test_wrong_files_are_named_in_one_sentence(content, message, tmp_path):
    path = tmp_path / "options.yaml"
    path.write_bytes(content)
    with pytest.raises(ValueError) as error:
        parse(str(path))
    assert message in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 400


def test_what_is_no_file_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", "/dev/zero"):
        with pytest.raises(ValueError, match="There is no file"):
            parse(str(path))


@pytest.mark.parametrize(
    "flags",
    ["--tokn SECRET", "--tokn=SECRET", "--to-ken SECRET", "--token SECRET\n", "--token SECRET SECRET", "--t=SECRET SECRET"],
)
def test_no_message_has_a_secret(flags, tmp_path):
    with pytest.raises(ValueError) as error:
        parse("--data_dir", "a", *flags.split(" "))
    assert "SECRET" not in str(error.value)
    for content in ("tokn: SECRET", "token: [SECRET]", "token: SECRET: x", 'token: "SECRET', "token: SECRET\ntoken: SECRET"):
        (tmp_path / "options.yaml").write_text(content)
        with pytest.raises(ValueError) as error:
            parse(str(tmp_path / "options.yaml"))
        assert "SECRET" not in str(error.value)


def test_a_message_is_one_printable_line():
    with pytest.raises(SystemExit, match=r"^command: two lines, \\x1b\[31m and \\ud800$"):
        with exit_with_message("command", ValueError):
            raise ValueError("two\nlines, \x1b[31m and \ud800")


def test_an_interrupt_is_no_traceback(capsys):
    with pytest.raises(SystemExit) as error, without_traceback("command"):
        raise KeyboardInterrupt
    assert error.value.code == 130 and capsys.readouterr().err == "command: interrupted.\n"


def test_a_reader_that_leaves_is_no_traceback():
    code = "from vdm_diffusers.command_line import *\nwith without_traceback('x'): print('line\\n' * 100_000)"
    command = f'{sys.executable} -c "$CODE" | head -n 1'
    result = subprocess.run(command, shell=True, capture_output=True, text=True, env=os.environ | {"CODE": code})
    assert (result.stdout, result.stderr) == ("line\n", "")
