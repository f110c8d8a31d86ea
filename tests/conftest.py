"""Tiny tensors only: more threads would spend their time meeting each other. Two processes share the tests instead."""

import os
import re
from typing import TYPE_CHECKING

import pytest
import torch
from hosts import NEWEST

if TYPE_CHECKING:
    from xdist.scheduler import LoadScopeScheduling

os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that tests start, ComfyUI's above all
torch.set_num_threads(1)

# First what looks at a ComfyUI in which nothing has run, then what takes long.
FIRST = "test_boot test_editor test_workflows test_miniature test_soak test_trainer test_training".split()
SHARED = {  # by folder: what tests share, as their parameters name it, and what they share if none does
    "tests/host/": (re.compile(r"\[.*?(\d+\.\d+\.\d+)"), NEWEST.version),
    "tests/browser/": (re.compile(r"\[.*?(pinned|newest)"), ""),
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: FIRST.index(item.path.stem) if item.path.stem in FIRST else len(FIRST))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> "LoadScopeScheduling":
    """Keep a file in one process, and so all that shares a ComfyUI or a front end: each is started once."""
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
