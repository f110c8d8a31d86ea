"""Answer requests for checks, as the pack would run inside ComfyUI: each in a process forked from one that has it.

python run.py COMFYUI_FOLDER, then a request a line: the names of a module beside this one and of its functions, and a
folder, in which the child leaves what it said and what the functions returned.
"""

import importlib
import importlib.util
import json
import os
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import NoReturn

HERE = Path(__file__).parent
PACK = "comfyui_longlive"  # a package without its entry point, whose relative imports work
RETURNED, SAID, STATUS = "returned.json", "said.txt", "status"


def main(comfyui: str) -> None:
    sys.path[1:1] = [comfyui]
    sys.argv = ["main.py", "--cpu"]
    pack = sys.modules[PACK] = ModuleType(PACK)
    pack.__path__ = [str(HERE.parents[2])]
    borrow(HERE.parent / "model_files.py")
    importlib.import_module("comfy.options").enable_args_parsing()
    importlib.import_module("comfy.sd")  # seconds that no child spends again
    for line in sys.stdin:
        module, functions, folder = json.loads(line)
        child = os.fork()
        if not child:
            answer(module, functions, Path(folder))
        _, status = os.waitpid(child, 0)
        part = Path(folder, f"{STATUS}.part")
        part.write_text(str(os.waitstatus_to_exitcode(status)))
        part.replace(Path(folder, STATUS))


def answer(module: str, functions: list[str], folder: Path) -> NoReturn:
    status = 1
    said = os.open(folder / SAID, os.O_WRONLY | os.O_CREAT)
    os.dup2(said, sys.stdout.fileno())
    os.dup2(said, sys.stderr.fileno())
    try:
        checks = importlib.import_module(module)
        returned = [getattr(checks, function)() for function in functions]
        (folder / RETURNED).write_text(json.dumps(returned))
        status = 0
    except BaseException:  # also of a check that leaves with an exit
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def borrow(path: Path) -> None:
    """Import one module of a folder that must not be on the path: it has a `comfy` of its own."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    sys.modules[path.stem] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)


if __name__ == "__main__":
    main(sys.argv[1])
