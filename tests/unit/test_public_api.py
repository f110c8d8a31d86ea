"""The names of `import longlive`: they make a video as documented, and importing them costs nothing."""

import ast
import pickle
import re
import runpy
import subprocess
import sys
import tomllib
from pathlib import Path

import av
import pytest

import longlive
import longlive.errors
from longlive.session.session_file import NotASession

ROOT = Path(__file__).parents[2]
NAMES = [name for names in longlive.MODULES.values() for name in names]


def run_example(page: str, folder: Path, monkeypatch) -> dict:
    """Run the Python examples of a page in a folder; each continues those before it."""
    examples = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)
    (folder / "example.py").write_text("".join(examples), encoding="utf-8")
    monkeypatch.chdir(folder)
    return runpy.run_path("example.py")


def test_the_example_of_the_readme_makes_a_session(tmp_path, monkeypatch):
    run_example("README.md", tmp_path, monkeypatch)
    session = longlive.load_session(tmp_path / "ring.session.safetensors")
    assert [switch.frame for switch in session.switches] == [0]
    assert session.num_frames == 12


def test_the_examples_of_the_documentation_make_videos(tmp_path, monkeypatch):
    names = run_example("docs/python.md", tmp_path, monkeypatch)
    session = longlive.load_session(tmp_path / "rings.session.safetensors")
    assert [switch.prompt.text.split()[1] for switch in session.switches] == ["red", "blue"]
    with av.open("rings.mp4") as video:
        assert sum(1 for _ in video.decode(video=0)) == session.pixel_frames == 4 * 18 - 3
    director = names["director"]
    assert (
        director.script
        == "3b blend 2b | a green ring moves left at night\n3b cut seed 7 | a blue square moves up by day\n"
    )
    with av.open("directed.mp4") as video:
        assert sum(1 for _ in video.decode(video=0)) == director.session.pixel_frames == 4 * 36 - 3


ERRORS = [cls for cls in vars(longlive.errors).values() if isinstance(cls, type) and issubclass(cls, Exception)]


@pytest.mark.parametrize("cls", [*ERRORS, NotASession], ids=lambda cls: cls.__name__)
def test_an_error_comes_through_a_process_boundary(cls):
    """Otherwise the message of a worker is lost."""
    error = cls("no such unit", line=3, column=5) if cls is longlive.TimelineError else cls("no such weights")
    copied = pickle.loads(pickle.dumps(error))  # noqa: S301 (our own)
    assert (type(copied), str(copied), vars(copied)) == (cls, str(error), vars(error))
    assert getattr(longlive, cls.__name__) is cls


def test_importing_it_imports_nothing_but_python():
    code = "import sys; before = {*sys.modules}; import longlive; print(*{*sys.modules} - before)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    new = {name.partition(".")[0] for name in done.stdout.split()}
    assert new - set(sys.stdlib_module_names) == {"longlive"}


@pytest.mark.parametrize("name", NAMES)
def test_every_public_name_is_there(name):
    assert getattr(longlive, name).__name__ == name
    assert name in dir(longlive)


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'longlive' has no attribute 'render'"):
        _ = longlive.render


def test_a_type_checker_sees_the_same_names():
    tree = ast.parse((ROOT / "longlive/__init__.py").read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    seen = [(node.module, alias.name) for node in block.body for alias in node.names]
    assert seen == [(module, name) for module, names in longlive.MODULES.items() for name in names]
    assert (ROOT / "longlive/py.typed").is_file()


def test_the_version_is_the_one_of_the_package():
    """The registry's tools read it from pyproject.toml and know no other place."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["version"] == longlive.__version__
