"""Calls into a process of ComfyUI that is no server: its modules, with ours beside them."""

import json
import os
import sys
from pathlib import Path

from hosts import Host
from patience import run_patiently

RUN = Path(__file__).parent / "inhost" / "run.py"


def inside(host: Host, module: str, *functions: str) -> list:
    """What functions of a module in `inhost/` return, called in turn; a failure of one is ours, with all it said."""
    ended = run_patiently(
        [sys.executable, str(RUN), str(host.main.parent), module, *functions],
        f"{', '.join(functions)} in ComfyUI {host.version}",
        cwd=host.main.parent,
        env=os.environ | {"PYTHONPATH": host.python_path, "HF_HUB_OFFLINE": "1"},
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return json.loads(ended.stdout.splitlines()[-1])
