"""Calls into a process of ComfyUI that is no server: its modules, with ours beside them."""

import json
import os
import subprocess
import sys
from pathlib import Path

from hosts import Host

RUN = Path(__file__).parent / "inhost" / "run.py"


def inside(host: Host, module: str, *functions: str, seconds: float = 120) -> list:
    """What functions of a module in `inhost/` return, called in turn; a failure of one is ours, with all it said."""
    ended = subprocess.run(
        [sys.executable, str(RUN), str(host.main.parent), module, *functions],
        cwd=host.main.parent,
        env=os.environ | {"PYTHONPATH": host.python_path, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=seconds,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return json.loads(ended.stdout.splitlines()[-1])
