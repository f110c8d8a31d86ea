"""The metrics log of a training: one line of JSON per logged step, for people and plots."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import TuningError
from ..files import read_bytes, write_text


class MetricsLog:
    """A file of lines {"step": n, name: value, …}."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> list[dict[str, float]]:
        """Return the intact lines and skip damaged ones. Raises TuningError if the path cannot be read as a file."""
        try:
            lines = read_bytes(self.path).decode(errors="replace").splitlines()
        except FileNotFoundError:
            return []
        except OSError as error:
            raise TuningError(f"{self.path} cannot be read ({error.strerror or error}); move it away") from error
        return [metrics for line in lines if (metrics := _parse_line(line))]

    def add(self, step: int, metrics: dict[str, float]) -> None:
        """Append a line. Raises TuningError if the disk refuses."""
        with self._report_disk_errors(), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **metrics}) + "\n")

    def truncate(self, num_steps: int) -> None:
        """Drop the lines of later steps, which will be made again. Raises TuningError if the disk refuses."""
        kept = [f"{json.dumps(line)}\n" for line in self.read() if line["step"] <= num_steps]
        with self._report_disk_errors():
            write_text(self.path, "".join(kept))

    @contextmanager
    def _report_disk_errors(self) -> Iterator[None]:
        """Turn an OSError into a TuningError."""
        try:
            yield
        except OSError as error:
            reason = error.strerror or error
            raise TuningError(f"{self.path} cannot be written: {reason}; free some space") from error


def _parse_line(line: str) -> dict[str, float]:
    """Return the metrics of a line; an empty dict for a damaged one. A loss may be NaN."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(found, dict) or not all(type(value) in (int, float) for value in found.values()):
        return {}
    return found if type(found.get("step")) is int else {}
