"""The tables of docs/reliability.md; `make fuzz` and `make soak` replace them."""

import re
from collections.abc import Sequence
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "reliability.md"


def make_table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Make a table in Markdown; numbers get separators of thousands."""
    cells = [[f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row] for row in rows]
    lines = [heads, ["---"] * len(heads), *cells]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def write_table(name: str, content: str, page: Path = PAGE) -> None:
    """Put a table between the marks `<!-- name -->` and `<!-- /name -->` of the page."""
    text = page.read_text(encoding="utf-8")
    marked = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
    assert marked.search(text), f"{page} has no place for the table {name}"
    page.write_text(marked.sub(lambda marks: f"{marks[1]}{content}{marks[2]}", text), encoding="utf-8")
