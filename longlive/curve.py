"""The figures of a training, a line of JSON each: written as it goes, read by people and plots."""

import json
from pathlib import Path

from .errors import TuningError
from .files import read_bytes, write_text


class Curve:
    """A file of lines {"step": n, name: value, …}."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> list[dict[str, float]]:
        """The lines that are whole; a damaged one is passed over. Raises TuningError where there is another thing."""
        try:
            lines = read_bytes(self.path).decode(errors="replace").splitlines()
        except FileNotFoundError:
            return []
        except OSError as error:
            raise TuningError(f"{self.path} cannot be read ({error.strerror or error}); move it away") from error
        return [figures for line in lines if (figures := _figures(line))]

    def add(self, step: int, figures: dict[str, float]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **figures}) + "\n")

    def cut(self, num_steps: int) -> None:
        """Drop the lines of steps that will be made again."""
        kept = [f"{json.dumps(line)}\n" for line in self.read() if line["step"] <= num_steps]
        write_text(self.path, "".join(kept))


def _figures(line: str) -> dict[str, float]:
    """The figures of a line; none of one that is no such line. A loss may be NaN."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(found, dict) or not all(type(value) in (int, float) for value in found.values()):
        return {}
    return found if type(found.get("step")) is int else {}
