"""One thread for every tuning, so that its numbers are the same everywhere."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _use_one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
