"""Copies from a GPU to the host that nobody waits for before they are read."""

import torch
from torch import Tensor


class HostCopy:
    """A tensor on its way to the CPU. Whoever reads it later waits for no more of the GPU's work than it depends on."""

    def __init__(self, tensor: Tensor) -> None:
        overlaps = tensor.device.type in ("cuda", "meta")  # the meta device stands for a GPU
        self._copy = tensor.to("cpu", non_blocking=overlaps)  # into pinned memory
        self._done = torch.cuda.Event() if tensor.is_cuda else None
        if self._done:
            self._done.record(torch.cuda.current_stream(tensor.device))

    def read(self) -> Tensor:
        """Return the tensor on the CPU, once it is complete."""
        if self._done:
            self._done.synchronize()
        return self._copy
