"""Waits bound to progress: they last as long as a process works, however slow the machine is.

A process stands still when neither it nor its children use processor time.
"""

import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryFile

import psutil

QUIET_SECONDS = 120.0  # a process that does no work for so long is stuck
LIMIT_SECONDS = 20 * 60.0  # limit of one wait, even for a process that works
WORK_SECONDS = 0.05  # processor time that counts as work; an idle ComfyUI uses less in QUIET_SECONDS
LOOK_SECONDS = 0.02  # between two checks of a condition


class Patience:
    """One wait for a process. Call `check` repeatedly; it raises TimeoutError if the process is stuck or too slow."""

    def __init__(self, pid: int, what: str) -> None:
        self.pid, self.what = pid, what
        self._begin = self._moved = self._looked = time.monotonic()
        self._worked = count_worked_seconds(pid)

    def check(self) -> None:
        now = time.monotonic()
        waited = f"waited {now - self._begin:.0f} s for {self.what}"
        if now - self._begin > LIMIT_SECONDS:
            raise TimeoutError(f"{waited}, the limit of one wait")
        if now - self._looked < QUIET_SECONDS / 8:  # reading the times of all processes costs milliseconds
            return
        self._looked, worked = now, count_worked_seconds(self.pid)
        if abs(worked - self._worked) >= WORK_SECONDS:  # fewer than before when a child has ended
            self._moved, self._worked = now, worked
        elif now - self._moved > QUIET_SECONDS:
            raise TimeoutError(f"{waited}; process {self.pid} has stood still for {now - self._moved:.0f} s")


def count_worked_seconds(pid: int) -> float:
    """Processor time of a process and its children so far; 0 when it has ended."""
    try:
        process = psutil.Process(pid)
        used = [process.cpu_times(), *(child.cpu_times() for child in process.children(recursive=True))]
    except psutil.NoSuchProcess:
        return 0.0
    return sum(times.user + times.system + times.children_user + times.children_system for times in used)


def wait_until(condition: Callable[[], object], pid: int, what: str) -> None:
    """Wait for a condition that a process brings about. Raises TimeoutError, or RuntimeError if the process ends."""
    patience = Patience(pid, what)
    while not condition():
        if has_ended(pid) and not condition():
            raise RuntimeError(f"process {pid} ended before {what}")
        patience.check()
        time.sleep(LOOK_SECONDS)


def has_ended(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def wait_for_end(process: subprocess.Popen, what: str) -> int:
    """Wait for the end of a process that works; its exit status. A stuck one is killed."""
    patience = Patience(process.pid, what)
    while process.poll() is None:
        try:
            patience.check()
        except TimeoutError:
            process.kill()
            process.wait()
            raise
        time.sleep(LOOK_SECONDS)
    return process.returncode


def run_patiently(
    command: Sequence[str], what: str, *, cwd: Path | None = None, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end and collect what it says. Raises TimeoutError for a stuck one."""
    with TemporaryFile("w+") as out, TemporaryFile("w+") as err:
        process = subprocess.Popen(command, cwd=cwd, env=env, stdout=out, stderr=err)
        status = wait_for_end(process, what)
        out.seek(0), err.seek(0)
        return subprocess.CompletedProcess(command, status, out.read(), err.read())
