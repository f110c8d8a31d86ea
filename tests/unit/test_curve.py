"""The figures of a training as a file of lines."""

import math
import os

import pytest

from longlive.curve import Curve
from longlive.errors import TuningError


def test_lines_of_steps_that_will_be_made_again_are_dropped(tmp_path):
    curve = Curve(tmp_path / "curve.jsonl")
    for step in (1, 2, 3):
        curve.add(step, {"loss": step / 10})
    curve.cut(2)
    assert curve.read() == [{"step": 1, "loss": 0.1}, {"step": 2, "loss": 0.2}]
    assert [path.name for path in tmp_path.iterdir()] == ["curve.jsonl"]


def test_a_torn_last_line_ends_nothing(tmp_path):
    curve = Curve(tmp_path / "curve.jsonl")
    curve.add(1, {"loss": 0.5})
    with curve.path.open("a") as file:
        file.write('{"step": 2, "lo')
    assert curve.read() == [{"step": 1, "loss": 0.5}]
    curve.cut(1)
    curve.add(2, {"loss": 0.4})
    assert [line["step"] for line in curve.read()] == [1, 2]


def test_a_curve_that_is_not_there_is_empty(tmp_path):
    assert Curve(tmp_path / "none.jsonl").read() == []


@pytest.mark.parametrize(
    "line",
    [
        b"", b"5", b"[]", b"{}", b'{"loss": 0.5}', b'{"step": "2"}', b'{"step": true}', b'{"step": 1.5}', b"{}}",
        b'{"step": 2, "loss": "x"}', b'{"step": 2, "loss": null}', b"\xff\xfe{}", b"9" * 5000, b"[" * 10_000,
    ],
    ids=lambda line: repr(line[:20]),
)  # fmt: skip
def test_a_damaged_line_is_passed_over_wherever_it_is(tmp_path, line):
    curve = Curve(tmp_path / "curve.jsonl")
    curve.path.write_bytes(b'{"step": 1, "loss": 0.5}\n' + line + b'\n{"step": 3, "loss": 0.25}\n')
    assert curve.read() == [{"step": 1, "loss": 0.5}, {"step": 3, "loss": 0.25}]


def test_a_loss_that_is_no_number_is_kept(tmp_path):
    curve = Curve(tmp_path / "curve.jsonl")
    curve.add(1, {"loss": math.nan})
    assert math.isnan(curve.read()[0]["loss"])


@pytest.mark.skipif(os.name == "nt", reason="needs a pipe")
def test_a_pipe_is_no_curve(tmp_path):
    os.mkfifo(tmp_path / "curve.jsonl")
    with pytest.raises(TuningError, match=r"cannot be read \(it is a pipe, not a file\); move it away"):
        Curve(tmp_path / "curve.jsonl").read()
