"""The waits of the tests: they last as long as a process works, and end if it is stuck."""

import contextlib
import os
import signal
import subprocess
import sys
import time

import patience
import pytest
from patience import Patience, run_patiently, wait_for_end, wait_until

BUSY = "while True: pass"
STUCK = "import threading; threading.Event().wait()"
BUSY_CHILD = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {BUSY!r}])"


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """Let a wait end after seconds instead of minutes."""
    monkeypatch.setattr(patience, "QUIET_SECONDS", 1.0)


@pytest.fixture
def start():
    """Run Python code in a process until the test ends."""
    begun = []

    def start(code: str) -> subprocess.Popen:
        begun.append(subprocess.Popen([sys.executable, "-c", code], start_new_session=True))
        return begun[-1]

    yield start
    for process in begun:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # its children, too
        process.wait()


def look(waiting: Patience, *, seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        waiting.check()
        time.sleep(0.02)


@pytest.mark.parametrize("code", [BUSY, BUSY_CHILD], ids=["itself", "its child"])
def test_a_wait_lasts_while_a_silent_process_works(start, code):
    look(Patience(start(code).pid, "a word of it"), seconds=3)


def test_a_wait_for_a_stuck_process_ends(start):
    process = start(STUCK)
    with pytest.raises(TimeoutError, match=rf"waited \d+ s for a word of it; process {process.pid} has stood still"):
        look(Patience(process.pid, "a word of it"), seconds=30)


def test_every_wait_has_a_limit(start, monkeypatch):
    monkeypatch.setattr(patience, "LIMIT_SECONDS", 1.0)
    with pytest.raises(TimeoutError, match="for the moon, the limit of one wait"):
        look(Patience(start(BUSY).pid, "the moon"), seconds=30)


def test_a_wait_for_the_end_kills_a_stuck_process(start):
    process = start(STUCK)
    with pytest.raises(TimeoutError, match="for its end"):
        wait_for_end(process, "its end")
    assert process.returncode == -signal.SIGKILL


def test_a_process_that_ends_too_early_raises_an_error():
    process = subprocess.Popen([sys.executable, "-c", ""])
    with pytest.raises(RuntimeError, match=f"process {process.pid} ended before a file is there"):
        wait_until(lambda: False, process.pid, "a file is there")
    assert process.wait() == 0


def test_the_output_of_a_command_is_collected():
    done = run_patiently([sys.executable, "-c", "import sys; print('out'); sys.exit('err')"], "two words")
    assert (done.returncode, done.stdout, done.stderr) == (1, "out\n", "err\n")
