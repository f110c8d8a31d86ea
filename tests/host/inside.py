"""Calls of functions inside a process that has imported ComfyUI's modules and ours, without its server."""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from hosts import Host
from inhost.run import OUTPUT, RETURNED, STATUS
from patience import wait_until

RUN = Path(__file__).parent / "inhost" / "run.py"


def call_inside(host: Host, module: str, *functions: str) -> list:
    """Call functions of a module in `inhost/` in turn and return what they return.

    Raises AssertionError with all their output if one fails. Each call runs in a new process, forked from one that has
    imported ComfyUI.
    """
    comfyui = start_comfyui(host)
    assert comfyui.stdin is not None
    with TemporaryDirectory() as folder:
        comfyui.stdin.write(json.dumps([module, functions, folder]) + "\n")
        comfyui.stdin.flush()
        status, output = Path(folder, STATUS), Path(folder, OUTPUT)
        try:
            wait_until(status.exists, comfyui.pid, f"{', '.join(functions)} in ComfyUI {host.version}")
        except BaseException:
            comfyui.kill()
            start_comfyui.cache_clear()
            raise
        assert status.read_text() == "0", output.read_text()
        return json.loads(Path(folder, RETURNED).read_text())


@functools.cache
def start_comfyui(host: Host) -> subprocess.Popen[str]:
    """Start the process from which the calls are forked. It ends with this process, which holds its input open."""
    return subprocess.Popen(
        [sys.executable, str(RUN), str(host.main.parent)],
        cwd=host.main.parent,
        env=os.environ | {"PYTHONPATH": host.python_path, "HF_HUB_OFFLINE": "1"},
        stdin=subprocess.PIPE,
        text=True,
    )
