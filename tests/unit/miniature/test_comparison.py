"""Before and after tuning: one report of two models, every difference paired by its seed."""

import pytest

from longlive.errors import ConfigError
from longlive.miniature.evaluation.comparison import report_comparison
from longlive.miniature.evaluation.plan import EvaluationPlan

SHORT = EvaluationPlan(marks=(6, 12), untimed_blocks=1, num_segments=2, segment_frames=12)


def test_a_model_compared_with_itself_shows_no_difference(miniature):
    report = report_comparison(miniature, miniature, 2, SHORT)
    tables = {table.title: table.as_dict()["rows"] for table in report.tables}
    assert [*tables] == ["Adherence", "Long videos", "What the sink adds", "Different seeds under one prompt"]
    differences = [row for name in [*tables][:3] for row in tables[name] if row["tuning"] == "difference"]
    assert len(differences) == 5
    numbers = [cell for row in differences for cell in row.values() if isinstance(cell, dict)]
    assert len(numbers) >= 5 * 4
    assert all(number == {"value": 0, "low": 0, "high": 0} for number in numbers)
    assert [figure.name for figure in report.figures] == ["tuned"]


def test_one_seed_has_no_interval(miniature):
    with pytest.raises(ConfigError, match="seeds is 1; intervals need at least 2 videos"):
        report_comparison(miniature, miniature, 1)
