"""The metrics log of a training."""

import math
import os

import pytest

from longlive.errors import TuningError
from longlive.tuning.metrics_log import MetricsLog


def test_lines_of_later_steps_are_dropped(tmp_path):
    log = MetricsLog(tmp_path / "curve.jsonl")
    for step in (1, 2, 3):
        log.add(step, {"loss": step / 10})
    log.truncate(2)
    assert log.read() == [{"step": 1, "loss": 0.1}, {"step": 2, "loss": 0.2}]
    assert [path.name for path in tmp_path.iterdir()] == ["curve.jsonl"]


def test_a_torn_last_line_is_skipped(tmp_path):
    log = MetricsLog(tmp_path / "curve.jsonl")
    log.add(1, {"loss": 0.5})
    with log.path.open("a") as file:
        file.write('{"step": 2, "lo')
    assert log.read() == [{"step": 1, "loss": 0.5}]
    log.truncate(1)
    log.add(2, {"loss": 0.4})
    assert [line["step"] for line in log.read()] == [1, 2]


def test_a_log_that_cannot_be_written_is_a_tuning_error(tmp_path):
    (tmp_path / "file").touch()
    log = MetricsLog(tmp_path / "file" / "curve.jsonl")
    for write in (lambda: log.add(1, {"loss": 0.5}), lambda: log.truncate(0)):
        with pytest.raises(TuningError, match=r"curve\.jsonl cannot be (read|written)"):
            write()


def test_a_missing_log_is_empty(tmp_path):
    assert MetricsLog(tmp_path / "none.jsonl").read() == []


@pytest.mark.parametrize(
    "line",
    [
        b"", b"5", b"[]", b"{}", b'{"loss": 0.5}', b'{"step": "2"}', b'{"step": true}', b'{"step": 1.5}', b"{}}",
        b'{"step": 2, "loss": "x"}', b'{"step": 2, "loss": null}', b"\xff\xfe{}", b"9" * 5000, b"[" * 10_000,
    ],
    ids=lambda line: repr(line[:20]),
)  # fmt: skip
def test_a_damaged_line_is_skipped_wherever_it_is(tmp_path, line):
    log = MetricsLog(tmp_path / "curve.jsonl")
    log.path.write_bytes(b'{"step": 1, "loss": 0.5}\n' + line + b'\n{"step": 3, "loss": 0.25}\n')
    assert log.read() == [{"step": 1, "loss": 0.5}, {"step": 3, "loss": 0.25}]


def test_a_loss_of_nan_is_kept(tmp_path):
    log = MetricsLog(tmp_path / "curve.jsonl")
    log.add(1, {"loss": math.nan})
    assert math.isnan(log.read()[0]["loss"])


@pytest.mark.skipif(os.name == "nt", reason="needs a pipe")
def test_a_pipe_is_not_a_log(tmp_path):
    os.mkfifo(tmp_path / "curve.jsonl")
    with pytest.raises(TuningError, match=r"cannot be read \(it is a pipe, not a file\); move it away"):
        MetricsLog(tmp_path / "curve.jsonl").read()
