"""JSON and fields from outside are what they claim to be, or refused in one phrase."""

from dataclasses import dataclass
from enum import StrEnum

import pytest

from longlive.errors import ConfigError, escape_lines, shorten
from longlive.untrusted import MAX_DEPTH, conform, conform_fields, parse_json, read_field


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


@dataclass(frozen=True, slots=True, kw_only=True)
class Paint:
    colour: Colour = Colour.RED
    layers: int = 1
    shine: float = 0.5
    wet: bool = False
    mix: tuple[float, float] = (0.5, 0.5)
    marks: tuple[int, ...] = ()
    name: str | None = None

    def __post_init__(self) -> None:
        conform_fields(self)


def nest_lists(levels: int) -> str:
    return "[" * levels + "]" * levels


def test_plain_json_is_read():
    assert parse_json('{"a": [1, -2.5, null, true, "\\u00e9\\ud83d\\udea3"]}') == {"a": [1, -2.5, None, True, "é🚣"]}
    assert parse_json(nest_lists(MAX_DEPTH)) is not None
    assert parse_json(f"[{2**64 - 1}, {-(2**63)}]") == [2**64 - 1, -(2**63)]


@pytest.mark.parametrize(
    ("text", "phrase"),
    [
        ("{", "Expecting"),
        ("", "Expecting"),
        ('{"a": NaN}', "NaN is not a number that JSON knows"),
        ("[-Infinity]", "-Infinity is not"),
        ("[1e400]", "the number '1e400' is out of range"),
        (f"[{2**64}]", "out of range"),
        (f"[{-(2**63) - 1}]", "out of range"),
        ("9" * 5000, "out of range"),
        ('{"a": {"b": 1, "b": 2}}', "'b' appears twice"),
        (nest_lists(MAX_DEPTH + 2), "nested deeper than 32 levels"),
        (nest_lists(1_000_000), "nested deeper than 32 levels"),
        ('{"a":' * 100_000, "nested deeper than 32 levels"),
        ('["\\ud800"]', "not whole text"),
        ('{"\\udc00": 1}', "not whole text"),
        (b'["\xff"]', "can't decode"),
    ],
    ids=lambda value: str(value[:20]),
)  # fmt: skip
def test_json_that_is_not_plain_is_refused(text, phrase):
    with pytest.raises(ValueError, match=phrase):
        parse_json(text)


def test_json_beyond_the_limit_is_refused():
    assert parse_json("[1]", limit=3) == [1]
    with pytest.raises(ValueError, match="larger than 3 characters"):
        parse_json("[1] ", limit=3)


def test_a_refusal_is_short_however_long_the_text():
    with pytest.raises(ValueError, match="twice") as refusal:
        parse_json(f'{{"{"a" * 10_000}": 1, "{"a" * 10_000}": 2}}')
    assert len(str(refusal.value)) < 100


def test_a_field_is_read_as_its_type():
    assert read_field({"a": 1}, "a", int) == 1
    assert read_field({"a": 1}, "a", float) == 1.0
    assert read_field({"a": [1]}, "a", list) == [1]


@pytest.mark.parametrize(
    ("entry", "kind", "phrase"),
    [
        ({}, int, "it has no a"),
        ([], int, r"\[\] is not an object"),
        ({"a": "x"}, int, "a is 'x'; it must be a whole number"),
        ({"a": 1.0}, int, "a is 1.0; it must be a whole number"),
        ({"a": True}, int, "a is True; it must be a whole number"),
        ({"a": True}, float, "a is True; it must be a number"),
        ({"a": float("nan")}, float, "a is nan; it must be a finite number"),
        ({"a": 10**400}, float, "a is inf; it must be a finite number"),
        ({"a": 5}, str, "a is 5; it must be text"),
        ({"a": 1}, bool, "a is 1; it must be true or false"),
        ({"a": None}, dict, "a is None; it must be an object"),
    ],
)
def test_a_field_of_another_type_is_refused(entry, kind, phrase):
    with pytest.raises(ValueError, match=phrase):
        read_field(entry, "a", kind)


def test_fields_get_the_types_they_are_declared_with():
    paint = Paint(colour="blue", shine=1, mix=[1, 0], marks=[1, 2], name="x")  # type: ignore[arg-type]
    assert paint == Paint(colour=Colour.BLUE, shine=1.0, mix=(1.0, 0.0), marks=(1, 2), name="x")
    assert isinstance(paint.colour, Colour)
    assert isinstance(paint.shine, float)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"colour": "green"}, "colour is 'green'; use red or blue"),
        ({"colour": ["red"]}, r"colour is \['red'\]; use red or blue"),
        ({"layers": True}, "layers is True; it must be a whole number"),
        ({"layers": 2.5}, "layers is 2.5; it must be a whole number"),
        ({"shine": float("inf")}, "shine is inf; it must be a finite number"),
        ({"wet": "x"}, "wet is 'x'; it must be true or false"),
        ({"mix": (1.0,)}, "mix has 1 values; it must have 2"),
        ({"mix": "ab"}, "mix is 'ab'; it must be a list"),
        ({"marks": [1, 2.5]}, r"marks\[1\] is 2.5; it must be a whole number"),
        ({"name": 5}, "name is 5; it must be text"),
    ],
)
def test_fields_of_another_type_are_refused(fields, sentence):
    with pytest.raises(ConfigError, match=sentence):
        Paint(**fields)


def test_conform_names_the_field():
    with pytest.raises(ValueError, match="seed is None"):
        conform(None, int, "seed")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("blocks.0.weight", "blocks.0.weight"),
        ("a\x1b[2Jb\x07", r"a\x1b[2Jb\x07"),
        ("two\r\nlines\u2028", r"two\r\nlines\u2028"),
        ("\u202eturned", r"\u202eturned"),
        ("ein Bär, 👩\u200d🚀", "ein Bär, 👩\u200d🚀"),
        ("x" * 200, "x" * 200),
        ("x" * 10_000_000, "x" * 200 + "..."),
        (ValueError("\x9b"), r"\x9b"),
    ],
)
def test_text_in_a_message_is_printable_and_short(text, shown):
    assert shorten(text) == shown


def test_lines_stay_lines_and_nothing_else():
    assert escape_lines("a\x1b[2Jb\nc\rd\n") == "a\\x1b[2Jb\nc\\rd\n"
