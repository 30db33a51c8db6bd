"""Messages that name arguments: spelled for Python and for commands, nested, and sent to other processes."""

import pickle

import pytest

from vdm_diffusers.command_line import exit_with_message
from vdm_diffusers.guards.messages import Argument, Message, as_flag, from_json, spelled, to_json


CROP = Message("{center_crop} needs {resize}, which says how large the square is.")
MANY = Message(
    "{} has {:,} levels of {!r}, {{so}}: {convert:RGB}, {data_dir}, {}, {seed:{}}", "{x}", 65536, "a", Argument("b"), 3
)


@pytest.mark.parametrize(
    ("message", "in_python", "in_a_command"),
    [
        (CROP, "`center_crop` needs `resize`,", "`--center_crop` needs `--resize`,"),
        (
            MANY,
            "{x} has 65,536 levels of 'a', {so}: `convert='RGB'`, `data_dir`, `b`, `seed=3`",
            "{x} has 65,536 levels of 'a', {so}: `--convert RGB`, `--folder`, `--b`, `--seed 3`",
        ),
        (Message("It is {}: {}", "{x}", ValueError(CROP)), "It is {x}: `center_crop`", "It is {x}: `--center_crop`"),
        ("`resize` stays {as} it is", "`resize` stays {as} it is", "`resize` stays {as} it is"),
    ],
)
def test_names_are_spelled_for_who_reads(message, in_python, in_a_command):
    for error in (ValueError(message), pickle.loads(pickle.dumps(FloatingPointError(message)))):
        assert str(error).startswith(in_python)
        assert spelled(error, as_flag({"data_dir": "`--folder`"})).startswith(in_a_command)


def test_a_command_spells_them_as_its_own():
    with pytest.raises(SystemExit, match="^command: `--center_crop` needs the model's side, "):
        with exit_with_message("command", ValueError, own_names={"resize": "the model's side"}):
            raise ValueError(CROP)


@pytest.mark.parametrize("message", [CROP, Message("{}: {!r}", ValueError(CROP), "{x}"), "plain {x}"])
def test_what_is_kept_as_a_string_can_still_be_spelled(message):
    kept = to_json(ValueError(message))
    again = ValueError(from_json(kept))
    assert isinstance(kept, str) and str(again) == str(message)
    assert spelled(again, as_flag()) == spelled(ValueError(message), as_flag())
