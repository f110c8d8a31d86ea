"""Decisions that code could break without a word: which way imports run, what the pack never does."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from house import PACKAGES

ROOT = Path(__file__).parents[2]
LIBRARY, NODES = ROOT / "longlive", ROOT / "nodes"
FILES = sorted([*LIBRARY.rglob("*.py"), *NODES.rglob("*.py"), ROOT / "__init__.py"])

HOST = ("comfy", "comfy_api", "comfy_execution", "comfy_extras", "folder_paths", "latent_preview", "nodes", "server")
OPTIONAL = (
    "accelerate", "comfy_kitchen", "diffusers", "flash_attn", "flash_attn_interface", "ftfy", "matplotlib", "peft",
    "sageattention", "transformers", "triton",
)  # fmt: skip
WRITTEN_IN_TRITON = LIBRARY / "model" / "triton_kernels.py"  # imported where Triton is used
DANGEROUS_MODULES = {"pickle", "cPickle", "dill", "marshal", "shelve", "subprocess", "runpy", "code", "pty", "ctypes"}
DANGEROUS_CALLS = {"eval", "exec", "compile", "__import__"}
DANGEROUS_METHODS = {("os", "system"), ("os", "popen"), ("os", "execv"), ("os", "spawnv")}


def name_module(path: Path) -> str:
    """Dotted name under its package: `model.wan` of longlive/model/wan.py, empty for a package's own file."""
    parts = path.relative_to(LIBRARY if path.is_relative_to(LIBRARY) else ROOT).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def find_file(module: str) -> Path:
    return LIBRARY.joinpath(*module.split(".")).with_suffix(".py")


def list_imports(path: Path) -> list[tuple[int, str]]:
    """(dots, module) of every import in a file; of a package, the modules taken from it."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(0, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            folder = path.parents[max(0, node.level - 1)].joinpath(*(node.module or "").split("."))
            of_package = node.level > 0 and folder.is_dir()
            modules = [".".join(filter(None, (node.module, alias.name))) for alias in node.names]
            found += [(node.level, name) for name in (modules if of_package else [node.module])]
    return found


def list_library_imports(path: Path) -> list[str]:
    """Modules of the library that one of its files imports."""
    package = path.parent.relative_to(LIBRARY).parts
    return [
        ".".join([*package[: len(package) - level + 1], name])
        for level, name in list_imports(path)
        if level and name != "__version__"
    ]


def list_calls(path: Path) -> list[ast.Call]:
    return [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]


def rank(module: str) -> int:
    """How high the package of a module lies; 0 for the library's own room."""
    package = module.partition(".")[0]
    return PACKAGES.index(package) + 1 if package in PACKAGES else 0


def to_relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


library_files = pytest.mark.parametrize("path", sorted(LIBRARY.rglob("*.py")), ids=to_relative)
all_files = pytest.mark.parametrize("path", FILES, ids=to_relative)


@library_files
def test_imports_of_the_library_run_downwards_only(path):
    module = name_module(path)
    assert module in ("", "__main__") or not [name for name in list_library_imports(path) if rank(name) > rank(module)]


@library_files
def test_modules_import_modules_and_not_the_public_names(path):
    """`longlive` loads its modules on first use, so an import of its names could be circular."""
    found = list_library_imports(path)
    assert [
        name for name in found if not find_file(name).is_file() and not find_file(name).with_suffix("").is_dir()
    ] == []


def test_no_two_modules_import_each_other():
    TopologicalSorter({name_module(path): set(list_library_imports(path)) for path in LIBRARY.rglob("*.py")}).prepare()


@pytest.mark.parametrize(
    ("module", "never"),
    [
        ("config", ("torch", "numpy")),
        ("rollout.cache_passes", ("torch", "numpy")),
        ("session.timeline", ("torch", "numpy")),
        ("errors", ("torch",)),
        ("untrusted", ("torch", "numpy")),
    ],
)
def test_integers_are_kept_apart_from_tensors(module, never):
    used = {name.partition(".")[0] for level, name in list_imports(find_file(module)) if not level}
    assert not used & set(never)


@pytest.mark.parametrize(
    ("module", "never"),
    [
        ("rollout.rollout", {"session.session", "session.session_file", "session.block_store", "rollout.sampler"}),
        ("session.session", {"session.block_store", "session.session_file"}),
        ("session.block_store", {"session.session"}),
        ("rollout.kv_cache", {"rollout.rollout", "rollout.sampler"}),
        ("rollout.cache_passes", {"rollout.rollout", "rollout.sampler", "session.session", "model.causal"}),
    ],
)
def test_each_owner_knows_nothing_of_the_others(module, never):
    assert not never & set(list_library_imports(find_file(module)))


@library_files
def test_the_library_knows_neither_the_host_nor_the_nodes(path):
    assert all(len(path.parent.relative_to(LIBRARY).parts) >= dots - 1 for dots, _ in list_imports(path))
    assert not {name.partition(".")[0] for dots, name in list_imports(path) if not dots} & set(HOST)


@all_files
def test_the_pack_imports_itself_relatively(path):
    """By its absolute name it would be another module, or ComfyUI's `nodes`."""
    absolute = {name.partition(".")[0] for dots, name in list_imports(path) if not dots}
    assert not absolute & {"longlive", "nodes", "web", ROOT.name}


@all_files
def test_only_the_host_package_imports_what_is_inside_comfyui(path):
    """The other nodes import its node API and its lists of folders."""
    used = {name.partition(".")[0] for dots, name in list_imports(path) if not dots}
    if path.parent == NODES:
        assert not used & set(HOST) - {"comfy_api", "folder_paths"}
    elif path.parent != NODES / "host":
        assert not used & set(HOST)


@all_files
def test_nothing_is_printed_but_by_the_command_line(path):
    if path != LIBRARY / "cli" / "terminal.py":
        assert not [call.lineno for call in list_calls(path) if getattr(call.func, "id", "") == "print"]
        assert "sys.stdout" not in path.read_text(encoding="utf-8")


@all_files
def test_no_file_runs_code_it_was_given(path):
    used = {name.partition(".")[0] for dots, name in list_imports(path) if not dots}
    assert not used & DANGEROUS_MODULES
    for call in list_calls(path):
        function = call.func
        assert getattr(function, "id", "") not in DANGEROUS_CALLS
        if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name):
            assert (function.value.id, function.attr) not in DANGEROUS_METHODS
            if (function.value.id, function.attr) == ("torch", "load"):
                safe = [keyword.value for keyword in call.keywords if keyword.arg == "weights_only"]
                assert [getattr(value, "value", None) for value in safe] == [True]


def test_the_entry_point_is_the_one_of_v3_nodes():
    """ComfyUI ignores `comfy_entrypoint` where NODE_CLASS_MAPPINGS is set beside it."""
    source = (ROOT / "__init__.py").read_text(encoding="utf-8")
    assert "comfy_entrypoint" in source
    assert not [path for path in FILES if "NODE_CLASS_MAPPINGS" in path.read_text(encoding="utf-8")]


@pytest.fixture(scope="module")
def imported() -> set[str]:
    """The top-level modules a fresh process has after it imported every module of the library."""
    paths = {*LIBRARY.rglob("*.py")} - {WRITTEN_IN_TRITON}
    modules = [f"longlive.{name_module(path)}".rstrip(".") for path in paths]
    code = f"import importlib, sys; [importlib.import_module(m) for m in {modules}]; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return {name.partition(".")[0] for name in done.stdout.split()}


def test_optional_packages_are_imported_only_where_they_are_used(imported):
    assert "longlive" in imported
    assert not imported & set(OPTIONAL)


def test_the_library_imports_without_a_host(imported):
    assert not imported & set(HOST)


@pytest.mark.parametrize(
    "name",
    [
        "config",
        "units",
        "errors",
        "session.timeline",
        "rollout.window",
        "rollout.cache_passes",
        "tuning.config",
        "tuning.prompt_pairs",
    ],
)
def test_integers_are_decided_without_torch(name):
    """Also not by way of what they import."""
    seen, waiting = set(), [name]
    while waiting:
        module = waiting.pop()
        seen.add(module)
        path = find_file(module)
        assert not {"torch", "numpy"} & {found.split(".")[0] for dots, found in list_imports(path) if not dots}, module
        waiting += set(list_library_imports(path)) - seen
