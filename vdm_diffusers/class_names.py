"""Names of classes: what a label is called, which label a name means, and whether two lists name the same classes."""

from collections import Counter
from collections.abc import Mapping, Sequence
from difflib import get_close_matches

from diffusers import DiffusionPipeline
from torch import Tensor

from .guards.messages import Argument, Message


Labels = int | str | Sequence[int | str] | Tensor
"""Labels of images, as users give them: one an image or one for all, integers or names."""


def check_class_names(id2label: Mapping[int | str, str] | None, number: int | None) -> dict[int, str] | None:
    """Names by their labels, `int` again where JSON has made them strings; `None` if there are none.

    Raises `ValueError` unless they are strings for labels of a model with that number of classes.
    """
    if not id2label:
        return None
    if number is None:
        raise ValueError("There are names of classes, but the denoiser is unconditional: leave them out.")
    if not isinstance(id2label, Mapping) or not all(isinstance(name, str) for name in id2label.values()):
        raise ValueError("`id2label` must map the label of each class to its name, such as {0: 'dog', 1: 'flower'}.")
    unknown = [label for label in id2label if not (str(label).isdecimal() and int(label) < number)]
    if unknown:
        raise ValueError(f"`id2label` names the class {unknown[0]!r}, but the labels of this model run from 0 to {number - 1}.")
    return {int(label): name for label, name in sorted(id2label.items(), key=lambda item: int(item[0]))}


def labels_by_name(id2label: Mapping[int, str] | None) -> dict[str, int]:
    """The label of every name, and of the synonyms that commas separate in it; of those of several classes, none."""
    if id2label is None:
        return {}
    full = Counter(id2label.values())
    names = {name: label for label, name in id2label.items() if full[name] == 1}
    synonyms = [(part, label) for label, name in id2label.items() for part in {part.strip() for part in name.split(",")}]
    count = Counter(part for part, _ in synonyms)
    labels = names | {part: label for part, label in synonyms if part and count[part] == 1 and part not in full}
    return dict(sorted(labels.items()))


def names_of(pipeline: DiffusionPipeline) -> dict[int, str] | None:
    """Names by their labels, as a pipeline was given them; of a [`DiTPipeline`], which keeps but parts of names, these."""
    given = pipeline.config.get("id2label")
    if given:
        return {int(label): name for label, name in given.items()}
    parts: dict[int, list[str]] = {}
    for part, label in getattr(pipeline, "labels", {}).items():
        parts.setdefault(label, []).append(part)
    return {label: ", ".join(names) for label, names in parts.items()} or None


def in_order(id2label: Mapping[int, str] | None, number: int | None) -> list[str] | None:
    """The names of all classes in the order of their labels, empty where a class has none; `None` if none has one."""
    return None if not id2label or number is None else [id2label.get(label, "") for label in range(number)]


def suggestion(unknown: str, labels: Mapping[str, int]) -> str:
    """The names most like an unknown one, or else those that there are, as the end of a sentence."""
    folded = {name.casefold(): name for name in labels}
    close = [folded[name] for name in get_close_matches(unknown.casefold(), folded, n=3)]
    if close:
        return f"did you mean {' or '.join(map(repr, close))}"
    names = list(labels)
    known = ", ".join(map(repr, names[:10])) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
    return f"the names are {known}"


def check_same_classes(
    theirs: Sequence[str] | None, names: Sequence[str] | None, data: str, model: str | Argument | Message
) -> None:
    """Raise `ValueError` if the data's names and a model's are both known, and differ: its labels would mean other classes.

    Args:
        theirs, names (`Sequence[str]`, *optional*): Those of the data and those of the model, in the order of their labels.
        data, model (`str`): What to call them.
    """
    for label, (their, own) in enumerate(zip(theirs or (), names or ())):
        if their and own and their != own:
            message = (
                "The class {} is {!r} in {}, but {!r} in {}: labels would be mixed up. Name the classes alike, in the same"
                " order."
            )
            raise ValueError(Message(message, label, their, data, own, model))


def captions(names: Sequence[str] | None, number: int) -> list[str]:
    """What to write over the pictures of each class: its label, and its name if it has one that says more, in one line."""
    lines = [" ".join(name.split()) for name in names or [""] * number]
    return [str(label) if line in ("", str(label)) else f"{label} {line}" for label, line in enumerate(lines)]
