"""One version for each tool: what runs before a commit is what `make lint` runs."""

import re
import tomllib
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]


def test_hooks_use_the_versions_of_the_project():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    hooks = (REPOSITORY / ".pre-commit-config.yaml").read_text()
    pinned = set(re.findall(r"\[(\w+==[\d.]+)\]", hooks))
    assert {pin.split("==")[0] for pin in pinned} == {"ruff", "bandit"}
    assert pinned <= set(project["optional-dependencies"]["dev"])


def test_the_citation_names_the_version_of_the_project():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert f"\nversion: {project['version']}\n" in (REPOSITORY / "CITATION.cff").read_text()
