"""What the registry accepts: valid metadata, an archive without development files, no line that its scanners refuse."""

import ast
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
SHIPPED = sorted(file for folder in ("longlive", "nodes") for file in (REPOSITORY / folder).rglob("*.py"))
MAX_BYTES = 36_000_000  # most of it the miniature's weights, and those of its teacher

REQUIRED = {"__init__.py", "pyproject.toml", "requirements.txt", "README.md", "LICENSE"}
ALLOWED_FOLDERS = {"longlive", "nodes", "web", "workflows"}

FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "yaml.load", "hashlib.md5"}
FORBIDDEN_MODULES = {"subprocess", "pickle", "marshal", "pip", "ctypes"}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tree as a checkout would have it, outside of any git repository."""
    patterns = [line.rstrip("/") for line in (REPOSITORY / ".gitignore").read_text().split()]
    target = tmp_path_factory.mktemp("checkout") / "pack"
    return shutil.copytree(REPOSITORY, target, ignore=shutil.ignore_patterns(".git", *patterns))


@pytest.fixture(scope="module")
def archived(checkout: Path) -> set[str]:
    """The names of the files in the archive that `comfy node pack` makes."""
    run_comfy("node", "pack", folder=checkout)
    archive = checkout / "node.zip"
    assert archive.stat().st_size < MAX_BYTES
    with zipfile.ZipFile(archive) as content:
        return set(content.namelist())


def run_comfy(*arguments: str, folder: Path) -> str:
    home = folder.parent / "home"
    home.mkdir(exist_ok=True)
    return subprocess.run(
        [Path(sys.executable).parent / "comfy", "--no-json", "--skip-prompt", *arguments],
        cwd=folder,
        env=os.environ
        | {"HOME": str(home), "XDG_CONFIG_HOME": str(home), "DO_NOT_TRACK": "1", "RUFF_NO_CACHE": "true"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def test_registry_accepts_the_metadata(checkout):
    assert "All validation checks passed successfully" in run_comfy("node", "validate", folder=checkout)


def test_archive_holds_what_the_pack_needs(checkout, archived):
    needed = {
        file.relative_to(checkout).as_posix()
        for folder in ALLOWED_FOLDERS
        for file in (checkout / folder).rglob("*")
        if file.is_file()
    }
    assert (REQUIRED | needed) - archived == set()


def test_archive_has_no_other_files(archived):
    assert {name.split("/")[0] for name in archived if "/" in name} <= ALLOWED_FOLDERS
    assert {name for name in archived if "/" not in name} <= REQUIRED | {"CHANGELOG.md"}


def test_entry_point_knows_one_node_api():
    """With `NODE_CLASS_MAPPINGS` beside it, ComfyUI would never call `comfy_entrypoint`."""
    assert "NODE_CLASS_MAPPINGS" not in (REPOSITORY / "__init__.py").read_text()


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.relative_to(REPOSITORY).as_posix())
def test_code_has_no_line_the_scanners_refuse(file):
    assert list(list_refused(ast.parse(file.read_text()))) == []


@pytest.mark.parametrize(
    "line",
    [
        "eval('1')",
        "os.system('ls')",
        "import subprocess",
        "from pickle import loads",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "try:\n    f()\nexcept OSError:\n    pass",
    ],
)
def test_scan_finds(line):
    assert len(list(list_refused(ast.parse(line)))) == 1


@pytest.mark.parametrize("line", ["model.eval()", "torch.load(path, weights_only=True)", "re.compile('a')"])
def test_scan_passes_over(line):
    assert list(list_refused(ast.parse(line))) == []


def list_refused(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                found = [name.name for name in names if name.name.split(".")[0] in FORBIDDEN_MODULES]
            case ast.ImportFrom(module=str(module), level=0):
                found = [module] if module.split(".")[0] in FORBIDDEN_MODULES else []
            case ast.Call(func=function, keywords=keywords):
                name = ast.unparse(function)
                safe = any(word.arg == "weights_only" and ast.unparse(word.value) == "True" for word in keywords)
                found = [name] if name in FORBIDDEN_CALLS or (name == "torch.load" and not safe) else []
            case ast.ExceptHandler(body=[ast.Pass()]):
                found = ["except: pass"]
            case _:
                found = []
        yield from (f"line {node.lineno}: {name}" for name in found)
