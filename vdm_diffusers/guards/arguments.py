"""What a constructor takes, said once, by the annotations of its parameters, and held to before anything is built."""

import inspect
import math
import reprlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, wraps
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints


@dataclass(frozen=True)
class Within:
    """For annotations such as `Annotated[int, Within(1, 100)]`: the least and the greatest value, both allowed."""

    low: float
    high: float

    def __str__(self) -> str:
        return f"from {self.low:,} to {self.high:,}"


def checked(function: Callable) -> Callable:
    """
    A function that refuses arguments other than its annotations say, one sentence each.

    An `int` is no `bool`, a `float` may be an `int`, a `tuple` a `list`, as JSON has it; numbers may be NumPy's. Parameters
    without an annotation take anything.

    Raises `TypeError` for another type, `ValueError` for a number that is not [`Within`] its limits.
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


def check_argument(name: str, value: object, annotation: Any) -> None:
    """Raise `TypeError` or `ValueError`, as [`checked`] does, unless a value is what an annotation says."""
    fitting = [member for member in _members(annotation) if _is_a(value, member)]
    if not fitting:
        raise TypeError(f"`{name}` is {_shown(value)}, but must be {_described(annotation)}.")
    kind, *limits = _parts(fitting[0])
    for limit in limits:
        if not limit.low <= value <= limit.high:
            raise ValueError(f"`{name}` is {value}, but must be {limit}.")
    if isinstance(value, (tuple, list)) and get_args(kind):
        for i, (element, element_kind) in enumerate(zip(value, _element_kinds(kind, len(value)))):
            check_argument(f"{name}[{i}]", element, element_kind)


def _members(annotation: Any) -> Sequence[Any]:
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
    for member in _members(annotation):
        kind, *limits = _parts(member)
        if kind is NoneType:
            descriptions.append("None")
        elif kind in (int, float):
            descriptions.append(" ".join(["a whole number" if kind is int else "a number", *map(str, limits)]))
        elif get_origin(kind) is tuple and get_args(kind)[-1] is not ...:
            descriptions.append(f"{len(get_args(kind))} of them")
        elif get_origin(kind) is tuple:
            descriptions.append("a list of them, each " + _described(get_args(kind)[0]))
        else:
            descriptions.append(f"a {getattr(kind, '__name__', kind)}")
    return " or ".join(descriptions)


def is_finite_number(value: object) -> bool:
    """Whether it is a real number, neither a `bool` nor NaN nor infinite."""
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
