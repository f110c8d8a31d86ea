"""Tiny tensors only: more threads would spend their time meeting each other. Two processes share the tests instead."""

import os

import pytest
import torch

os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that tests start, ComfyUI's above all
torch.set_num_threads(1)


@pytest.hookimpl(tryfirst=True)  # pytest-xdist reads the groups in the same hook
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep a file in one process, and of a file that runs on several ComfyUIs each of them."""
    for item in items:
        host = getattr(item, "callspec", None) and item.callspec.params.get("host")
        item.add_marker(pytest.mark.xdist_group(f"{item.path.stem} {getattr(host, 'version', '')}".strip()))
