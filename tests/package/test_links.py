"""The links of the documentation: each file that a page refers to is there, and so is each heading."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
FOLDERS = ("benchmarks", "docs", "longlive", "tests", "web")
PAGES = sorted([*REPOSITORY.glob("*.md"), *(page for name in FOLDERS for page in (REPOSITORY / name).rglob("*.md"))])
LINK = re.compile(r"\]\(([^()\s]+)\)")
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def find_links(text: str) -> list[str]:
    """Targets of the links and images of a page that point to this repository."""
    return [link for link in LINK.findall(FENCE.sub("", text)) if not re.match(r"[a-z]+:", link)]


def find_anchors(text: str) -> set[str]:
    """The names that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def find_broken_links(page: Path, root: Path = REPOSITORY) -> Iterator[str]:
    for link in find_links(page.read_text(encoding="utf-8")):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or not target.is_relative_to(root):
            yield link
        elif anchor and anchor not in find_anchors(target.read_text(encoding="utf-8")):
            yield link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(REPOSITORY).as_posix())
def test_links_lead_to_files_and_headings(page):
    assert list(find_broken_links(page)) == []


def test_a_broken_link_is_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "# A heading: one\n[a](page.md) [b](#a-heading-one) [c](gone.md) [d](page.md#gone) [e](https://e.org)"
    )
    assert list(find_broken_links(page, tmp_path)) == ["gone.md", "page.md#gone"]


def test_pictures_are_used():
    """A picture that no page shows is a leftover."""
    shown = {(page.parent / link).resolve() for page in PAGES for link in find_links(page.read_text(encoding="utf-8"))}
    pictures = {*(REPOSITORY / "docs" / "images").iterdir(), *(REPOSITORY / "web" / "docs").glob("*.png")}
    assert pictures <= shown
