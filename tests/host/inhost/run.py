"""Runs checks in a process that has imported ComfyUI and the modules of checks: a new fork for each request.

python run.py COMFYUI_FOLDER reads one request per line: the name of a module in this folder, the names of its
functions, and a folder for the output and the return values of the functions.
"""

import contextlib
import importlib
import json
import os
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import NoReturn

HERE = Path(__file__).parent
PACK = "comfyui_longlive"  # a package without its entry point, whose relative imports work
RETURNED, OUTPUT, STATUS = "returned.json", "output.txt", "status"


def main(comfyui: str) -> None:
    sys.path[1:1] = [comfyui]
    sys.argv = ["main.py", "--cpu"]
    pack = sys.modules[PACK] = ModuleType(PACK)
    pack.__path__ = [str(HERE.parents[2])]
    sys.path += map(str, HERE.parents[:2])  # for model_files and other helpers; last: ComfyUI's modules come first
    importlib.import_module("comfy.options").enable_args_parsing()
    importlib.import_module("utils.extra_config")  # as ComfyUI does, before another `utils` takes its name
    importlib.import_module("comfy.sd")  # takes seconds, which the forks save
    for line in sys.stdin:
        module, functions, folder = json.loads(line)
        with contextlib.suppress(Exception):  # a fork imports it again and reports what fails
            importlib.import_module(module)
        child = os.fork()
        if not child:
            answer(module, functions, Path(folder))
        _, status = os.waitpid(child, 0)
        part = Path(folder, f"{STATUS}.part")
        part.write_text(str(os.waitstatus_to_exitcode(status)))
        part.replace(Path(folder, STATUS))


def answer(module: str, functions: list[str], folder: Path) -> NoReturn:
    status = 1
    output = os.open(folder / OUTPUT, os.O_WRONLY | os.O_CREAT)
    os.dup2(output, sys.stdout.fileno())
    os.dup2(output, sys.stderr.fileno())
    try:
        checks = importlib.import_module(module)
        returned = [getattr(checks, function)() for function in functions]
        (folder / RETURNED).write_text(json.dumps(returned))
        status = 0
    except BaseException:  # also the SystemExit of a check
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    main(sys.argv[1])
