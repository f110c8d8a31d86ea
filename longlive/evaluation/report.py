"""Reports: tables in Markdown, the same numbers in JSON, curves as pictures.

This module does not know what the numbers mean. Numbers over seeds have a 95 % interval.
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from ..errors import EvaluationError

log = logging.getLogger(__name__)

NUM_RESAMPLES = 2000  # of a bootstrap
PERCENTILES = (2.5, 97.5)  # of a 95 % interval
FILE_STEM = "report"


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number over seeds and its 95 % interval: the percentiles of a bootstrap over the seeds (Efron 1979)."""

    value: float
    low: float
    high: float

    def __format__(self, spec: str) -> str:
        return f"{self.value:{spec}} ({self.low:{spec}} to {self.high:{spec}})"


Cell = str | int | float | Estimate | None


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of cells under columns (name, format of its numbers)."""

    title: str
    columns: tuple[tuple[str, str], ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""

    def __str__(self) -> str:
        shown = [
            [_format_cell(cell, spec) for cell, (_, spec) in zip(row, self.columns, strict=True)] for row in self.rows
        ]
        names = [name for name, _ in self.columns]
        widths = [max(map(len, column)) for column in zip(names, *shown, strict=True)]
        lines = [
            "| " + " | ".join(map(str.ljust, cells, widths)) + " |"
            for cells in (names, ["-" * width for width in widths], *shown)
        ]
        return "\n".join([f"## {self.title}", "", *lines, *(["", self.note] if self.note else [])])

    def as_dict(self) -> dict:
        """Convert to plain JSON values; a row maps columns to cells."""
        names = [name for name, _ in self.columns]
        plain = [[asdict(cell) if isinstance(cell, Estimate) else cell for cell in row] for row in self.rows]
        rows = [dict(zip(names, row, strict=True)) for row in plain]
        return {"title": self.title, "note": self.note, "rows": rows}


@dataclass(frozen=True, slots=True)
class PlotCurve:
    """Numbers over time: estimates, or plain numbers where there are no seeds."""

    label: str
    x: tuple[float, ...]
    y: tuple[float | Estimate, ...]


@dataclass(frozen=True, slots=True)
class Plot:
    """Curves over one axis."""

    title: str
    x_label: str
    curves: tuple[PlotCurve, ...]


@dataclass(frozen=True, slots=True)
class Figure:
    """Plots side by side in one picture."""

    name: str  # of its file
    plots: tuple[Plot, ...]


@dataclass(frozen=True, slots=True)
class Report:
    """Everything measured in one evaluation."""

    title: str
    tables: tuple[Table, ...]
    figures: tuple[Figure, ...] = ()

    def __str__(self) -> str:
        return "\n\n".join([f"# {self.title}", *map(str, self.tables)]) + "\n"

    def write(self, folder: Path) -> None:
        """Write report.md, report.json and, where matplotlib is installed, a PNG for each figure."""
        content = {
            "title": self.title,
            "tables": [table.as_dict() for table in self.tables],
            "figures": [asdict(figure) for figure in self.figures],
        }
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{FILE_STEM}.md").write_text(str(self), encoding="utf-8")
            (folder / f"{FILE_STEM}.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
            draw_figures(self.figures, folder)
        except OSError as error:
            raise EvaluationError(
                f"the report cannot be written to {folder}: {error.strerror}; choose a folder you may write to"
            ) from error


def estimate(values_S: ArrayLike, statistic=np.mean) -> Estimate:
    """Estimate a statistic of values [seeds, ...] and its interval, by a bootstrap that resamples whole seeds."""
    values = np.asarray(values_S, dtype=np.float64)
    values = values.reshape(len(values), -1)
    chosen = np.random.default_rng(0).integers(len(values), size=(NUM_RESAMPLES, len(values)))
    low, high = np.percentile(statistic(values[chosen].reshape(NUM_RESAMPLES, -1), axis=1), PERCENTILES)
    return Estimate(float(statistic(values)), float(low), float(high))


def estimate_curve(label: str, x: Sequence[float], values_ST: np.ndarray) -> PlotCurve:
    """Estimate the mean over seeds of values [seeds, times]."""
    return PlotCurve(label, tuple(x), tuple(estimate(values_S) for values_S in values_ST.T))


def draw_figures(figures: Sequence[Figure], folder: Path) -> None:
    """Write a PNG for each figure, or warn that matplotlib is missing."""
    if not figures:
        return
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure as Canvas
    except ImportError:
        log.warning("plots need matplotlib: pip install matplotlib; their numbers are in %s.json", FILE_STEM)
        return
    for figure in figures:
        canvas = Canvas(figsize=(4.5 * len(figure.plots), 3.6), layout="constrained")
        FigureCanvasAgg(canvas)
        for axes, plot in zip(canvas.subplots(1, len(figure.plots), squeeze=False)[0], figure.plots, strict=True):
            for line in plot.curves:
                estimates = [y for y in line.y if isinstance(y, Estimate)]
                middle = [y.value if isinstance(y, Estimate) else y for y in line.y]
                (drawn,) = axes.plot(line.x, middle, label=line.label)
                if estimates:
                    band = [y.low for y in estimates], [y.high for y in estimates]
                    axes.fill_between(line.x, *band, color=drawn.get_color(), alpha=0.2, linewidth=0)
            axes.set(title=plot.title, xlabel=plot.x_label)
            axes.grid(alpha=0.3)
            if len(plot.curves) > 1:
                axes.legend()
        canvas.savefig(folder / f"{figure.name}.png", dpi=120)


def _format_cell(cell: Cell, spec: str) -> str:
    if cell is None:
        return "–"
    return cell if isinstance(cell, str) else format(cell, spec)
