"""A few of the mutated files of `make fuzz`, and that it notices what it looks for."""

import time
from pathlib import Path

import fuzz
import pytest


@pytest.mark.parametrize("entry", ["options, YAML", "flags", "convert", "train on", "evaluate a stock pipeline", "decompress"])
def test_mutated_files_are_refused_in_one_sentence_or_accepted(entry):
    """A few of those of `make fuzz`."""
    outcomes = fuzz.fuzz(6, [entry], num_processes=1)
    assert not fuzz.failures(outcomes), fuzz.messages(fuzz.failures(outcomes))


def misbehave(how: str) -> None:
    if how == "memory":
        bytearray(4 * fuzz.BYTES)
    if how == "hang":
        time.sleep(60)
    if how == "several lines":
        raise SystemExit("one\ntwo")
    raise KeyError(how)


@pytest.mark.parametrize(
    ("how", "kind"), [("memory", "memory"), ("hang", "hang"), ("several lines", "traceback"), ("error", "traceback")]
)
def test_what_goes_wrong_is_noticed(how, kind, tmp_path, monkeypatch):
    entry = fuzz.Entry(1, lambda folder: None, ("file",), lambda: misbehave(how))
    monkeypatch.setitem(fuzz.ENTRIES, "bad", entry)
    monkeypatch.setattr(fuzz, "SECONDS", 1 if how == "hang" else 60)
    monkeypatch.setattr(fuzz, "BYTES", 1 << 28)
    Path(tmp_path, "file").write_text("{}")
    assert fuzz.run_case("bad", 1, tmp_path).kind == kind
