"""What a constructor or a dataclass takes, said once, by its annotations, and held to before anything is built."""

import inspect
import math
import reprlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import cache, wraps
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from .messages import Argument, Message


@dataclass(frozen=True)
class Limit:
    """For annotations such as `Annotated[int, at_least(1)]`: what a number must be, in words and as a function."""

    words: str
    holds: Callable[[float], bool]

    def __str__(self) -> str:
        return self.words


def at_least(low: float) -> Limit:
    """That number or more, and finite."""
    return Limit(f"at least {low:,}", lambda value: low <= value < math.inf)


def at_most(high: float) -> Limit:
    """That number or less."""
    return Limit(f"at most {high:,}", lambda value: value <= high)


def Within(low: float, high: float) -> Limit:
    """From the least to the greatest, both allowed."""
    return Limit(f"from {low:,} to {high:,}", lambda value: low <= value <= high)


Count = Annotated[int, at_least(1)]
Draws = Annotated[int, at_least(1), at_most(10**6)]
Seed = Annotated[int, at_least(0), Limit("below 2^32", lambda value: value < 2**32)]


def checked(function: Callable) -> Callable:
    """
    A function that refuses arguments other than its annotations say, one sentence each.

    An `int` is no `bool`, a `float` may be an `int`, a `tuple` a `list`, as JSON has it; numbers may be NumPy's. Parameters
    without an annotation take anything.

    Raises `TypeError` for another type, `ValueError` for a number beyond its limits.
    """
    signature = inspect.signature(function)

    @cache
    def hints() -> dict[str, Any]:
        return get_type_hints(function, include_extras=True)

    @wraps(function)
    def with_checked_arguments(*args, **kwargs):
        for name, value in signature.bind(*args, **kwargs).arguments.items():
            if name in hints():
                check_argument(name, value, hints()[name])
        return function(*args, **kwargs)

    return with_checked_arguments


def check_fields(instance: Any) -> None:
    """Raise `TypeError` or `ValueError`, as [`checked`] does, for a field of a dataclass with a value that it can't have."""
    hints = get_type_hints(type(instance), include_extras=True)
    for field in fields(instance):
        check_argument(Argument(field.name), getattr(instance, field.name), hints[field.name])


def check_argument(name: str | Argument, value: object, annotation: Any) -> None:
    """Raise `TypeError` or `ValueError`, as [`checked`] does, unless a value is what an annotation says.

    Messages spell an `Argument` as their reader does, and a name as it stands, as configurations have it.
    """
    called = name if isinstance(name, Argument) else f"`{name}`"
    fitting = [member for member in members(annotation) if _is_a(value, member)]
    if not fitting:
        raise TypeError(Message("{} is {}, but must be {}.", called, _shown(value), _described(annotation)))
    kind, *limits = _parts(fitting[0])
    for limit in limits:
        if not limit.holds(value):
            raise ValueError(Message("{} is {}, but must be {}.", called, value, limit))
    if isinstance(value, (tuple, list)) and get_args(kind):
        for i, (element, element_kind) in enumerate(zip(value, _element_kinds(kind, len(value)))):
            check_argument(name if called is name else f"{name}[{i}]", element, element_kind)


def is_allowed(value: object, annotation: Any) -> bool:
    """Whether a value is what an annotation says."""
    try:
        check_argument("", value, annotation)
    except (TypeError, ValueError):
        return False
    return True


def members(annotation: Any) -> Sequence[Any]:
    """The types that a union allows, or the one that the annotation is."""
    return get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)


def _parts(member: Any) -> Sequence[Any]:
    """The type of a member of a union, and its limits."""
    return get_args(member) if get_origin(member) is Annotated else (member,)


def _element_kinds(kind: Any, length: int) -> Sequence[Any]:
    kinds = get_args(kind)
    return kinds if get_origin(kind) is tuple and kinds[-1] is not ... else (kinds[0],) * length


def _is_a(value: object, member: Any) -> bool:
    kind = _parts(member)[0]
    container = get_origin(kind)
    if container is Literal:
        return value in get_args(kind)
    if kind in (int, float):
        return isinstance(value, Integral if kind is int else Real) and not isinstance(value, bool)
    if container is tuple:
        return isinstance(value, (tuple, list)) and len(_element_kinds(kind, len(value))) == len(value)
    return isinstance(value, container or kind)


def _shown(value: object) -> str:
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if value is None or isinstance(value, (str, bool, Real)):
        return reprlib.repr(value)
    return f"a {type(value).__name__}"


def _described(annotation: Any) -> str:
    descriptions = []
    for member in members(annotation):
        kind, *limits = _parts(member)
        if kind is NoneType:
            descriptions.append("None")
        elif get_origin(kind) is Literal:
            descriptions.append(f"one of {', '.join(get_args(kind))}")
        elif kind in (int, float):
            descriptions.append(" ".join(["a whole number" if kind is int else "a number", *map(str, limits)]))
        elif get_origin(kind) is tuple and get_args(kind)[-1] is not ...:
            descriptions.append(f"{len(get_args(kind))} of them")
        elif get_origin(kind) is tuple:
            descriptions.append("a list of them, each " + _described(get_args(kind)[0]))
        else:
            descriptions.append(f"a {getattr(kind, '__name__', kind)}")
    return " or ".join(descriptions)
