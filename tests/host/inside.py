"""Calls into a process of ComfyUI that is no server: its modules, with ours beside them."""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from hosts import Host
from inhost.run import RETURNED, SAID, STATUS
from patience import wait_until

RUN = Path(__file__).parent / "inhost" / "run.py"


def inside(host: Host, module: str, *functions: str) -> list:
    """What functions of a module in `inhost/` return, called in turn; a failure of one is ours, with all it said.

    Each call has a process of its own, forked from one that has imported ComfyUI.
    """
    comfyui = imported(host)
    assert comfyui.stdin is not None
    with TemporaryDirectory() as folder:
        comfyui.stdin.write(json.dumps([module, functions, folder]) + "\n")
        comfyui.stdin.flush()
        status, said = Path(folder, STATUS), Path(folder, SAID)
        try:
            wait_until(status.exists, comfyui.pid, f"{', '.join(functions)} in ComfyUI {host.version}")
        except BaseException:
            comfyui.kill()
            imported.cache_clear()
            raise
        assert status.read_text() == "0", said.read_text()
        return json.loads(Path(folder, RETURNED).read_text())


@functools.cache
def imported(host: Host) -> subprocess.Popen[str]:
    """The process of a host from which the others are forked; it ends with this one, whose end closes its input."""
    return subprocess.Popen(
        [sys.executable, str(RUN), str(host.main.parent)],
        cwd=host.main.parent,
        env=os.environ | {"PYTHONPATH": host.python_path, "HF_HUB_OFFLINE": "1"},
        stdin=subprocess.PIPE,
        text=True,
    )
