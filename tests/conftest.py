"""Settings for all tests: one thread per process, because tensors are tiny, and the order and division of the tests."""

import os
import re
import sys
from typing import TYPE_CHECKING

import pytest
import torch
from hosts import NEWEST

if TYPE_CHECKING:
    from xdist.scheduler import LoadScopeScheduling

os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that tests start, ComfyUI's above all
torch.set_num_threads(1)
# Some containers forbid Python to write bytecode; each start of a ComfyUI would then compile it anew, for 2 seconds.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # Triton reads it when it is imported, and then runs its kernels on the CPU

# test_boot comes first because it checks a ComfyUI that has run nothing. The others take longest, so they start early
# and the two processes end at about the same time.
FIRST = """
test_boot test_editor test_workflows test_session_laws test_miniature test_soak test_trainer test_training
""".split()
# By folder: how a test's parameters name the host or front end that it uses, and the one it uses if they name none.
SHARED = {
    "tests/host/": (re.compile(r"\[.*?(\d+\.\d+\.\d+)"), NEWEST.version),
    "tests/browser/": (re.compile(r"\[.*?(pinned|newest)"), ""),
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: FIRST.index(item.path.stem) if item.path.stem in FIRST else len(FIRST))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> "LoadScopeScheduling":
    """Keep each file in one process, and all tests of one ComfyUI or front end too, so that each is started once."""
    from xdist.scheduler import LoadScopeScheduling

    class ByWhatIsShared(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            for folder, (pattern, usual) in SHARED.items():
                if file.startswith(folder):
                    found = pattern.search(nodeid)
                    return f"{folder} {found[1] if found else usual}"
            return file

    config.option.loadscopereorder = False
    return ByWhatIsShared(config, log)
