"""Reports: intervals that hold what they should, tables for people, the same numbers for programs."""

import json
import sys

import numpy as np
import pytest

from longlive.errors import EvaluationError
from longlive.evaluation.report import Estimate, Figure, Plot, PlotCurve, Report, Table, estimate, estimate_curve

TABLE = Table(
    "Jumps",
    (("memory", ""), ("seeds", "d"), ("px", ".1f")),
    (("keep", 3, Estimate(2.0, 1.5, 2.25)), ("cut", 3, None)),
    "A note.",
)
FIGURE = Figure(
    "drift",
    (
        Plot(
            "of 255", "seconds", (PlotCurve("light", (0.0, 1.0), (3.0, 4.0)), estimate_curve("band", (0, 1), np.eye(2)))
        ),
    ),
)


def test_a_bootstrap_covers_the_mean_as_often_as_it_says():
    draws = np.random.default_rng(5).normal(7, 2, size=(200, 32))
    intervals = [estimate(values) for values in draws]
    covered = sum(interval.low <= 7 <= interval.high for interval in intervals)
    assert 180 <= covered <= 198
    widths = [interval.high - interval.low for interval in intervals]
    assert np.mean(widths) == pytest.approx(2 * 1.96 * 2 / 32**0.5, rel=0.08)


def test_an_estimate_is_the_same_every_time_and_sure_of_what_never_varies():
    assert estimate([1, 2, 4]) == estimate([1, 2, 4])
    assert estimate([3, 3, 3], np.median) == Estimate(3, 3, 3)


def test_values_of_one_seed_stay_together():
    together = estimate([[0, 0, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0], [1, 1, 1, 1]])
    assert together.value == 0.5
    assert (together.low, together.high) == (0, 1)


def test_a_table_is_aligned_markdown():
    assert str(TABLE).splitlines() == [
        "## Jumps",
        "",
        "| memory | seeds | px               |",
        "| ------ | ----- | ---------------- |",
        "| keep   | 3     | 2.0 (1.5 to 2.2) |",
        "| cut    | 3     | –                |",
        "",
        "A note.",
    ]


def test_a_report_is_written_as_table_and_json(tmp_path):
    report = Report("All", (TABLE,))
    report.write(tmp_path / "deep" / "folder")
    assert (tmp_path / "deep" / "folder" / "report.md").read_text() == f"# All\n\n{TABLE}\n"
    content = json.loads((tmp_path / "deep" / "folder" / "report.json").read_text())
    assert content["tables"][0]["rows"][0] == {
        "memory": "keep",
        "seeds": 3,
        "px": {"value": 2.0, "low": 1.5, "high": 2.25},
    }


def test_figures_are_drawn_with_matplotlib(tmp_path):
    pytest.importorskip("matplotlib")
    Report("All", (), (FIGURE,)).write(tmp_path)
    assert (tmp_path / "drift.png").read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_a_sentence_says_what_to_install(tmp_path, monkeypatch, caplog):
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    Report("All", (), (FIGURE,)).write(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.json", "report.md"]
    assert "pip install matplotlib" in caplog.text
    assert json.loads((tmp_path / "report.json").read_text())["figures"][0]["plots"][0]["curves"][0]["y"] == [3.0, 4.0]


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(EvaluationError, match=r"cannot be written to .*file: .*; choose a folder"):
        Report("All", ()).write(tmp_path / "file")
