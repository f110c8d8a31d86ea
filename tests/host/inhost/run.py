"""Call functions of a module beside this one, as the pack would run inside ComfyUI, and print what they return.

python run.py COMFYUI_FOLDER MODULE FUNCTION
"""

import importlib
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

HERE = Path(__file__).parent
PACK = "comfyui_longlive"  # a package without its entry point, whose relative imports work


def main(comfyui: str, module: str, *functions: str) -> None:
    sys.path[1:1] = [comfyui]
    sys.argv = [module, "--cpu"]
    pack = sys.modules[PACK] = ModuleType(PACK)
    pack.__path__ = [str(HERE.parents[2])]
    borrow(HERE.parent / "model_files.py")
    options = importlib.import_module("comfy.options")
    options.enable_args_parsing()
    checks = importlib.import_module(module)
    sys.stdout.write(json.dumps([getattr(checks, function)() for function in functions]))


def borrow(path: Path) -> None:
    """Import one module of a folder that must not be on the path: it has a `comfy` of its own."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    sys.modules[path.stem] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)


if __name__ == "__main__":
    main(*sys.argv[1:])
