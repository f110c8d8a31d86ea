"""Measures the imports, names and sizes of the library; `python tests/house.py [REPOSITORY …]` prints a column each."""

import ast
import itertools
import re
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

from walks import WALKS, list_stops

ROOT = Path(__file__).parents[1]

# A package may import those before it, and the modules directly in longlive/, which are below all packages.
PACKAGES: Sequence[str] = "model weights session rollout video evaluation live tuning miniature reference cli".split()
MAX_LINES = 350

# The first words of functions. A new one is added on purpose, if it is a verb.
VERBS = """
add advance align allocate announce append apply assemble attach attend average begin bind borrow build cast catch check
choose claim clean clear clone close collect colour compare compile complete compute conform continue convert convolve
copy correlate count couple create crop decode defer define deliver denoise denormalise describe detach digest dilate
direct discard divide drain draw embed encode enlarge escape estimate evaluate execute expand expect explain export
extend fade fail feed fill find fingerprint finish flush fold follow format forward free get guess hand hash hide hold
identify import initialize interrupt join keep launch lay lend light lighten list load locate lower make mark match
measure merge mix modulate move name normalise observe open optimize order pad paint parse pass perturb place plan plot
predict prepare project publish push put quantise read rebuild recache receive recognise refuse regress release reload
remove remux rename render replace replay report require reseed reserve reset resolve restore resume retry rewind roll
rotate run sample save say scale score seed select send set shorten show shrink shuffle smooth spell split stack start
step stop store strip subtract suggest sweep switch tabulate take teach tokenize train trim truncate try tune turn
unrotate unwarp unwrap update use validate verify view visit wait warp watch weigh widen wrap write
""".split()
CONVERSIONS = ("of_", "from_", "as_", "to_")
PREDICATES = ("is_", "has_", "can_")

# Names of what several modules have, each its own.
CONVENTIONS = (
    ("log", "the logger of a module"),
    ("main", "what a program does"),
    ("make_parser", "the arguments of a program"),
    ("add_parser", "the arguments of a command"),
    ("NODES", "the nodes of a module"),
    ("CURE", "where to get a good file: the end of a module's messages about a bad one"),
)

# Functions that begin with another word, each with the reason. A new function needs a verb.
EXCEPTIONS = (
    ("main", "what a program does"),
    ("switched_to", "returns a changed copy of a session"),
    ("extended_by", "returns a changed copy of a session"),
    ("advanced_by", "returns a changed copy of a session"),
    ("rewound_to", "returns a changed copy of a session"),
    ("rekeyed", "returns a changed copy of a session"),
    ("with_session", "returns a changed copy of a session beside its MODEL"),
    ("carrying_gradient", "returns a changed copy of a frame's keys and values"),
    ("linked_to", "returns a changed copy of a frame's keys and values"),
    ("zeroed", "returns a changed copy of a frame's keys and values"),
    ("unlinked", "returns a changed copy of a graph cache"),
    ("scaled_by", "returns a changed copy of a LoRA"),
    ("stating", "returns a changed copy of a weights file"),
    ("empty", "an alternative constructor of a graph cache"),
    ("begins_with", "a predicate"),
    ("continues", "a predicate"),
    ("fits", "a predicate"),
    ("_loses_links", "a predicate"),
    ("on_load", "ComfyUI calls it by this name"),
    ("comfy_entrypoint", "ComfyUI calls it by this name"),
    ("_comfy_cache_tensors", "ComfyUI calls it by this name"),
    ("partially_load", "ComfyUI calls it by this name"),
    ("partially_unload", "ComfyUI calls it by this name"),
    ("state_dict", "torch has this name for it"),
    ("videos_state_dict", "torch has the name state_dict for it"),
    ("atomic_write", "a context manager, named for the write in its block"),
    ("axis", "a number of a formula"),
    ("grid", "a number of a formula"),
    ("sigma", "a number of a formula"),
    ("turns", "a number of a formula"),
    ("frames", "named for the part of a session that it returns"),
    ("latents", "named for the part of a session that it returns"),
    ("trace", "named for the part of a session that it returns"),
    ("state", "named for what it returns"),
    ("error", "named for what it returns"),
    ("iter_loaded_weights", "named for what it returns"),
    ("_decoder", "named for what it returns"),
    ("_kinds_of", "named for what it returns"),
    ("_network", "named for what it returns"),
    ("_noise", "named for what it returns"),
    ("_path", "named for what it returns"),
    ("_starts", "named for what it returns"),
    ("_tiles", "named for what it returns"),
    ("_up", "named for what it returns"),
    ("_vector", "named for what it returns"),
    ("dot", "named for what it draws"),
    ("line", "named for what it draws"),
    ("text", "named for what it draws"),
)


class House:
    """A repository of this project; its files are parsed, not imported."""

    def __init__(self, root: Path = ROOT) -> None:
        self.root, self.library = root, root / "longlive"

    @cached_property
    def trees(self) -> dict[Path, ast.Module]:
        """The modules of the pack, parsed."""
        paths = [*self.library.rglob("*.py"), *(self.root / "nodes").rglob("*.py"), self.root / "__init__.py"]
        return {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(paths)}

    def list_own_room(self) -> list[str]:
        """List the modules of the library that are in no package."""
        return sorted(path.name for path in self.library.glob("*.py") if not path.stem.startswith("__"))

    def list_upward_imports(self) -> list[str]:
        """List the imports of a module in a higher package."""
        return [
            f"{self._name_module(path)} -> {target}"
            for path, target in self._list_imports()
            if self._rank(target) > self._rank(self._name_module(path))
        ]

    def collect_arrows(self) -> set[tuple[str, str]]:
        """Collect the pairs (importer, imported) of packages, and of modules that are in none."""
        pairs = {
            tuple(self._find_package(module) or module for module in (self._name_module(path), target))
            for path, target in self._list_imports()
        }
        return {(start, end) for start, end in pairs if start != end}

    def list_package_cycles(self) -> list[str]:
        """List the groups of packages that import each other, also by way of others; "own" means modules in none."""
        rooms = {
            (self._find_package(start) or "own", self._find_package(end) or "own")
            for start, end in self.collect_arrows()
        }
        arrows = {(start, end) for start, end in rooms if start != end}
        reached = {package: reach(package, arrows) for pair in arrows for package in pair}
        groups = {
            tuple(sorted({package, *(other for other in seen if package in reached[other])}))
            for package, seen in reached.items()
            if package in seen
        }
        return [" ".join(group) for group in sorted(groups)]

    def list_functions_without_verb(self, *, listed: bool = False) -> list[str]:
        """List the functions whose first word is not a known verb: those in EXCEPTIONS if `listed`, else the others."""
        exceptions = {name for name, _ in EXCEPTIONS}
        return [
            f"{path.relative_to(self.root)}:{function.lineno} {function.name}"
            for path, tree in self.trees.items()
            for function in list_functions(tree)
            if not starts_with_verb(function) and (function.name in exceptions) == listed
        ]

    def count_functions(self) -> int:
        return sum(len(list(list_functions(tree))) for tree in self.trees.values())

    def list_shared_names(self) -> list[str]:
        """List the functions and classes of one name in several modules, and the constants of one name and two values.

        A private name belongs to its module alone.
        """
        conventions = {name for name, _ in CONVENTIONS}
        defined: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
        for path, tree in self.trees.items():
            for name, value in list_definitions(tree):
                defined[name][value or str(path)].append(path.relative_to(self.root).as_posix())
        return [
            f"{name}: {', '.join(itertools.chain(*places.values()))}"
            for name, places in sorted(defined.items())
            if len(places) > 1 and not name.startswith("_") and name not in conventions
        ]

    def count_readme_words(self) -> int:
        return len((self.root / "README.md").read_text(encoding="utf-8").split())

    def list_long_files(self) -> list[str]:
        """List the source files of more than 350 lines, tests included."""
        paths = [
            path
            for folder in ("longlive", "nodes", "web", "tests", "benchmarks")
            for path in find_files(self.root / folder)
        ]
        lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in paths}
        return [f"{path.relative_to(self.root)} ({n})" for path, n in sorted(lengths.items()) if n > MAX_LINES]

    def _name_module(self, path: Path) -> str:
        """The dotted name of a module inside the library."""
        parts = path.relative_to(self.library).with_suffix("").parts
        return ".".join(part for part in parts if part != "__init__")

    def _find_package(self, module: str) -> str:
        """The package of a module; empty if it is in none."""
        package = module.partition(".")[0]
        folders = {path.name for path in self.library.iterdir() if path.is_dir()}
        return package if package in folders else ""

    def _rank(self, module: str) -> int:
        """The place of a module's package in PACKAGES, from 1; 0 for a module in none."""
        package = self._find_package(module)
        return PACKAGES.index(package) + 1 if package else 0

    def _list_imports(self) -> Iterator[tuple[Path, str]]:
        """Yield the imports inside the library as (file, dotted name); not those of `longlive` and `__main__`."""
        for path, tree in self.trees.items():
            if not path.is_relative_to(self.library) or self._name_module(path) in {"", "__main__"}:
                continue
            for node in ast.walk(tree):
                if isinstance(node, ast.ImportFrom) and node.level:
                    folder = path.parents[node.level - 1].joinpath(*(node.module or "").split("."))
                    for name in [alias.name for alias in node.names] if folder.is_dir() else [""]:
                        target = self._name_module(folder / name) if folder.is_relative_to(self.library) else ""
                        if target and name != "__version__":
                            yield path, target


def find_files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.suffix in {".py", ".js", ".mjs", ".css"}]


def reach(package: str, arrows: set[tuple[str, str]]) -> set[str]:
    """Follow the arrows from a package; it reaches itself only if an arrow leads back."""
    seen: set[str] = set()
    waiting = [package]
    while waiting:
        start = waiting.pop()
        found = {end for begin, end in arrows if begin == start} - seen
        seen |= found
        waiting += found
    return seen


def list_functions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Every function and method except properties and dunders."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not re.fullmatch("__.*__", node.name):
            names = {ast.unparse(decorator).split("(")[0].split(".")[-1] for decorator in node.decorator_list}
            if not names & {"property", "cached_property", "setter"}:
                yield node


def starts_with_verb(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Return whether a name begins with a known verb; conversions, predicates and `_` need none."""
    name = function.name.lstrip("_")
    return not name or name.partition("_")[0] in VERBS or f"{name}_".startswith((*CONVERSIONS, *PREDICATES))


def list_definitions(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """The module-level names with their values; functions and classes have none."""
    for node in tree.body:
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield name, ""
            case (
                ast.Assign(targets=[ast.Name(id=name)], value=value)
                | ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value)
            ):
                yield name, ast.unparse(value)
            case ast.Assign(targets=[ast.Tuple(elts=names)], value=ast.Tuple(elts=values)):
                yield from ((ast.unparse(name), ast.unparse(value)) for name, value in zip(names, values, strict=False))


def measure_rows(house: House) -> dict[str, list[str] | int]:
    return {
        "modules in the library's own room": house.list_own_room(),
        "import arrows between rooms": len(house.collect_arrows()),
        "imports that point upwards": house.list_upward_imports(),
        "cycles of packages": house.list_package_cycles(),
        "functions": house.count_functions(),
        "functions without a verb": house.list_functions_without_verb(),
        "listed functions without a verb": len(house.list_functions_without_verb(listed=True)),
        "names of two things": house.list_shared_names(),
        "words of the README": house.count_readme_words(),
        "files over 350 lines": house.list_long_files(),
    } | {name: len(list_stops(walk)) for name, walk in WALKS.items()}


def main(*roots: str) -> None:
    """Print a row for each measure, and what was found in the last repository."""
    columns = [measure_rows(House(Path(root).resolve())) for root in roots or [ROOT]]
    for name, last in columns[-1].items():
        counts = [row[name] if isinstance(row[name], int) else len(row[name]) for row in columns]  # type: ignore[arg-type]
        sys.stdout.write(f"{name:36}{''.join(f'{count:8}' for count in counts)}\n")
        sys.stdout.writelines(f"    {found}\n" for found in (last if isinstance(last, list) else []))


if __name__ == "__main__":
    main(*sys.argv[1:])
