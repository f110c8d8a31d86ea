"""Values from outside: JSON that anyone may have written, and fields that may be of any type.

Knows no file and no tensor. Raises ValueError with one phrase as its text; callers add the place and the cure.
"""

import dataclasses
import json
import math
import reprlib
import types
import typing
from enum import StrEnum
from functools import cache
from typing import NoReturn, TypeVar

from .errors import ConfigError

MAX_JSON = 16 << 20  # characters: the header of a session file that holds two days of video
MAX_DEPTH = 32  # of nested lists and objects
MIN_INTEGER, MAX_INTEGER = -(2**63), 2**64 - 1  # no number is greater than the greatest seed
MAX_DIGITS = 20  # characters of either number, sign included
WORDS = {
    int: "a whole number",
    float: "a number",
    str: "text",
    bool: "true or false",
    list: "a list",
    dict: "an object",
}

Value = TypeVar("Value")


def parse_json(text: str | bytes, limit: int = MAX_JSON) -> object:
    """Parse standard JSON of at most `limit` characters.

    Raises ValueError also for what Python's own parser accepts or fails on: NaN and infinity, numbers out of range, a
    name twice in an object, deep nesting, half of a surrogate pair.
    """
    if len(text) > limit:
        raise ValueError(f"it is larger than {limit:,} characters")
    try:
        value = json.loads(
            text,
            object_pairs_hook=_parse_object,
            parse_int=_parse_integer,
            parse_float=_parse_float,
            parse_constant=_refuse_constant,
        )
    except RecursionError as error:
        raise ValueError(f"it is nested deeper than {MAX_DEPTH} levels") from error
    _check_tree(value)
    return value


def read_field(entry: object, name: str, kind: type[Value]) -> Value:
    """Read a field of a JSON object as `kind` (see `conform`). Raises ValueError if missing or of another type."""
    if not isinstance(entry, dict):
        raise ValueError(f"{reprlib.repr(entry)} is not {WORDS[dict]}")
    if name not in entry:
        raise ValueError(f"it has no {name}")
    return conform(entry[name], kind, name)


def conform(value: object, kind: type[Value], name: str) -> Value:
    """Convert a value to the type its field is declared with. Raises ValueError naming the field.

    `kind` is a plain type, a StrEnum, a tuple[...] or `X | None`. Takes a whole number for a float, a list for a tuple
    and text for a StrEnum. A bool is not a number, and NaN and infinity are refused.
    """
    return typing.cast(Value, _conform(value, kind, name))


def conform_fields(config: object) -> None:
    """Convert every field of a dataclass, also a frozen one, to its declared type. For `__post_init__`.

    Raises ConfigError naming the field.
    """
    for name, kind in _kinds_of(type(config)).items():
        try:
            object.__setattr__(config, name, _conform(getattr(config, name), kind, name))
        except ValueError as error:
            raise ConfigError(str(error)) from None


@cache
def _kinds_of(dataclass: type) -> dict[str, object]:
    hints = typing.get_type_hints(dataclass)
    return {field.name: hints[field.name] for field in dataclasses.fields(dataclass)}


def _conform(value: object, kind: object, name: str) -> object:
    if typing.get_origin(kind) is tuple:
        return _conform_tuple(value, typing.get_args(kind), name)
    if typing.get_origin(kind) is types.UnionType:
        (inner,) = (part for part in typing.get_args(kind) if part is not types.NoneType)
        return None if value is None else _conform(value, inner, name)
    assert isinstance(kind, type), kind
    if issubclass(kind, StrEnum):
        if value not in list(kind):
            raise ValueError(f"{name} is {reprlib.repr(value)}; use {' or '.join(kind)}")
        return kind(value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value) if abs(value) <= MAX_INTEGER else math.inf
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"{name} is {reprlib.repr(value)}; it must be {WORDS.get(kind, kind.__name__)}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{name} is {value}; it must be a finite number")
    return value


def _conform_tuple(value: object, kinds: tuple[object, ...], name: str) -> tuple[object, ...]:
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"{name} is {reprlib.repr(value)}; it must be {WORDS[list]}")
    if kinds[-1] is Ellipsis:
        kinds = kinds[:1] * len(value)
    if len(value) != len(kinds):
        raise ValueError(f"{name} has {len(value)} values; it must have {len(kinds)}")
    return tuple(_conform(item, kind, f"{name}[{n}]") for n, (item, kind) in enumerate(zip(value, kinds, strict=True)))


def _check_tree(value: object) -> None:
    """Refuse deep nesting and text that cannot be encoded. Uses a loop, because deep nesting breaks recursion."""
    waiting = [(value, 0)]
    while waiting:
        found, depth = waiting.pop()
        if depth > MAX_DEPTH:
            raise ValueError(f"it is nested deeper than {MAX_DEPTH} levels")
        if isinstance(found, str):
            _check_text(found)
        elif isinstance(found, dict):
            waiting += ((item, depth + 1) for pair in found.items() for item in pair)
        elif isinstance(found, list):
            waiting += ((item, depth + 1) for item in found)


def _check_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{reprlib.repr(text)} is not whole text") from error


def _parse_object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found: dict[str, object] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"{reprlib.repr(name)} appears twice")
        found[name] = value
    return found


def _parse_integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS or not MIN_INTEGER <= int(digits) <= MAX_INTEGER:
        raise ValueError(f"the number {reprlib.repr(digits)} is out of range")
    return int(digits)


def _parse_float(digits: str) -> float:
    if not math.isfinite(value := float(digits)):
        raise ValueError(f"the number {reprlib.repr(digits)} is out of range")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number that JSON knows")
