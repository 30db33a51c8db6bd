"""A token is in nothing that a run writes, says or sends, however the run ends and wherever the token comes from."""

import base64
import logging
import sys
import warnings
from dataclasses import dataclass, fields
from pathlib import Path

import pytest
from accelerate.tracking import get_available_trackers
from loopback_hub import TOKEN
from paths import ROOT

from vdm_diffusers import train as train_command
from vdm_diffusers.command_line import option
from vdm_diffusers.guards import secrecy
from vdm_diffusers.guards.secrecy import files_with_secrets, guarded_output, redacted
from vdm_diffusers.training import Trainer
from vdm_diffusers.training.config import TrainingConfig


@pytest.fixture(autouse=True)
def nothing_told(monkeypatch):
    monkeypatch.setattr(secrecy, "_told", set())


def places_with(secret: str, folder: Path, hub, *messages: str) -> list[str]:
    """Where a secret has gone: files below a folder, requests that the Hub received, and messages."""
    forms = [secret.encode(), base64.b64encode(secret.encode()).rstrip(b"=")[:-1]]
    contents = {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    contents |= {str(path): str(path).encode() for path in folder.rglob("*")}
    contents |= {f"request {i}": request for i, request in enumerate(hub.received)}
    contents |= {f"message {i}": message.encode() for i, message in enumerate(messages)}
    return [place for place, content in contents.items() if any(form in content for form in forms)]


def test_a_run_with_every_tracker_leaves_no_token(hub, train, tmp_path, capfd):
    options = {"report_to": "all", "hub_strategy": "every_validation"}
    train("--push_to_hub", hub_model_id="user/digits", hub_token=TOKEN, max_train_steps=2, validation_steps=1, **options)
    trackers = get_available_trackers()
    assert "tensorboard" in map(str, trackers) and list((tmp_path / "out" / "logs").rglob("hparams.yml"))
    files = hub.repositories["user/digits"].commits[hub.repositories["user/digits"].head]
    assert any(path.endswith("hparams.yml") for path in files) and hub.received
    assert places_with(TOKEN, tmp_path / "out", hub, *capfd.readouterr()) == []


def test_a_token_of_a_file_of_options_leaves_no_trace(hub, train, tmp_path, monkeypatch, capfd):
    (tmp_path / "options.yaml").write_text(f"hub_token: {TOKEN}\nhub_model_id: user/digits\n")
    parse = train_command.parse_options
    monkeypatch.setattr(
        train_command, "parse_options", lambda words, *others: parse([str(tmp_path / "options.yaml"), *words], *others)
    )
    train("--push_to_hub", report_to="tensorboard", max_train_steps=1)
    assert hub.repositories["user/digits"].commits
    assert places_with(TOKEN, tmp_path / "out", hub, *capfd.readouterr()) == []


@pytest.mark.parametrize("source", ["option", "environment", "login"])
def test_an_upload_that_fails_says_no_token(hub, train, tmp_path, monkeypatch, capfd, source):
    """Even if the client's error quotes it, as that of an illegal header does."""
    options = {"hub_token": TOKEN} if source == "option" else {}
    if source == "environment":
        monkeypatch.setenv("HF_TOKEN", TOKEN)
    if source == "login":
        (tmp_path / "home").mkdir()
        (tmp_path / "home" / "token").write_text(TOKEN)

    def fail(*args, **kwargs):
        raise RuntimeError(f"Illegal header value b'Bearer {TOKEN}'")

    monkeypatch.setattr("vdm_diffusers.training.hub.HfApi.upload_folder", fail)
    with pytest.raises(SystemExit, match=r"'user/digits' failed: Illegal header value b'Bearer \[secret\]'") as error:
        train("--push_to_hub", hub_model_id="user/digits", max_train_steps=1, **options)
    assert places_with(TOKEN, tmp_path / "out", hub, *capfd.readouterr(), str(error.value)) == []


@pytest.mark.parametrize("rest", ["\nsecond", " second", "\tsecond", "\x00", "é", "\r\n", ""], ids=repr)
def test_a_malformed_token_is_refused_without_being_said(tmp_path, hub, monkeypatch, capfd, rest):
    token = f"hf_verysecret{rest}" if rest else ""
    arguments = ["--output_dir", str(tmp_path / "out"), "--push_to_hub", "--hub_token", token]
    monkeypatch.setattr(sys, "argv", ["train_vdm.py", *arguments])
    with pytest.raises(SystemExit, match=r"^train_vdm.py: `--hub_token` (is no token|has a wrong value): it must") as error:
        train_command.main()
    assert places_with("verysecret", tmp_path, hub, *capfd.readouterr(), str(error.value)) == []
    assert not hub.received and not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", ["output_dir", "hub_model_id", "train_data_dir"])
def test_a_token_in_another_option_is_refused(tmp_path, train, option, capfd):
    with pytest.raises(SystemExit, match=f"`--{option}` contains `--hub_token`, but is written and shown") as error:
        train(hub_token="hf_verysecret", **{option: tmp_path / "of-hf_verysecret"})
    assert "verysecret" not in "".join([*capfd.readouterr(), str(error.value)])
    assert not any("verysecret" in path.name for path in tmp_path.rglob("*"))


def test_an_unforeseen_error_says_no_token(hub, train, tmp_path, monkeypatch, capfd):
    def fail(*args, **kwargs):
        logging.getLogger("client").error("sent %s", TOKEN)
        warnings.warn(f"sent {TOKEN}", stacklevel=1)
        raise KeyError(TOKEN)

    monkeypatch.setattr(Trainer, "train", fail)
    with pytest.warns(UserWarning), pytest.raises(SystemExit):
        train("--push_to_hub", hub_model_id="user/digits", hub_token=TOKEN)
    out, err = capfd.readouterr()
    assert "KeyError: '[secret]'" in err and places_with(TOKEN, tmp_path / "out", hub, out, err) == []


def test_files_that_hold_a_token_stay_here(hub, train, tmp_path, monkeypatch):
    """Whoever has written it there."""
    finish = train_command.finish

    def finish_with_a_note(*args):
        (tmp_path / "out" / "[notes].txt").write_text(f"my token is {TOKEN}")
        return finish(*args)

    monkeypatch.setattr(train_command, "finish", finish_with_a_note)
    with pytest.warns(UserWarning, match=r"\['\[notes\].txt'\] of .* hold an access token: they are not uploaded"):
        train("--push_to_hub", hub_model_id="user/digits", hub_token=TOKEN, max_train_steps=1)
    uploaded = hub.repositories["user/digits"].commits[hub.repositories["user/digits"].head]
    assert "model_index.json" in uploaded and "[notes].txt" not in uploaded
    assert not any(TOKEN.encode() in request for request in hub.received)
    assert files_with_secrets(tmp_path / "out") == [tmp_path / "out" / "[notes].txt"]


def test_trackers_that_store_the_command_line_get_no_token(train, monkeypatch):
    seen = []
    monkeypatch.setattr(Trainer, "train", lambda self: seen.append(list(sys.argv)) or sys.exit())
    with pytest.raises(SystemExit):
        train(hub_token="hf_verysecret")
    assert "--hub_token" in seen[0] and not any("verysecret" in argument for argument in seen[0])


def test_warnings_and_log_records_are_redacted(caplog):
    secrecy.keep_secret("hf_very/secret")
    with guarded_output():
        logging.getLogger("client").warning("sent %s", "hf_very/secret")
        assert "sent [secret]" in warnings.formatwarning("sent hf_very%2Fsecret", UserWarning, "file", 1)
    assert caplog.records[0].getMessage() == "sent [secret]"


def test_secrets_are_marked_where_they_are_declared():
    assert [field.name for field in fields(TrainingConfig) if field.metadata.get("secret")] == ["hub_token"]
    config = TrainingConfig(hub_token="hf_verysecret")
    assert "hub_token" not in config.public() and "verysecret" not in repr(config)
    assert config.public() == {field.name: getattr(config, field.name) for field in fields(config) if field.name != "hub_token"}
    assert redacted("a hf_verysecret b") == "a [secret] b" and redacted(f"hf_{'x' * 34}") == "[secret]"


@dataclass(kw_only=True)
class OwnConfig(TrainingConfig):
    own_token: str | None = option(None, "Of another service.", secret=True)


def test_secrets_of_one_s_own_are_kept():
    config = OwnConfig(own_token="another-secret")
    assert "own_token" not in config.public() and "another-secret" not in repr(config)
    assert redacted("a another-secret b") == "a [secret] b"


def test_there_is_one_way_to_write_a_configuration():
    """`asdict` of a configuration would have the secrets in it."""
    for path in (*ROOT.glob("*.py"), *(ROOT / "vdm_diffusers").rglob("*.py")):
        text = path.read_text()
        assert "asdict(config)" not in text or path.name == "official.py", path
        assert "vars(config)" not in text, path
