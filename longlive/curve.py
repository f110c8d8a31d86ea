"""The figures of a training, a line of JSON each: written as it goes, read by people and plots."""

import json
from pathlib import Path

from .files import write_text


class Curve:
    """A file of lines {"step": n, name: value, …}."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> list[dict[str, float]]:
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
        return [json.loads(line) for line in lines if line.endswith("}")]  # the last may be torn

    def add(self, step: int, figures: dict[str, float]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **figures}) + "\n")

    def cut(self, num_steps: int) -> None:
        """Drop the lines of steps that will be made again."""
        kept = [f"{json.dumps(line)}\n" for line in self.read() if line["step"] <= num_steps]
        write_text(self.path, "".join(kept))
