"""The machine that a benchmark runs on: its clock and its memory."""

import resource
import time

import torch


class Machine:
    """A GPU, or the CPU. Its clock waits until all is computed."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.on_gpu = device, device.type == "cuda"
        self._before = 0

    @property
    def name(self) -> str:
        return torch.cuda.get_device_name() if self.on_gpu else f"CPU, {torch.get_num_threads()} threads"

    def read_clock(self) -> float:
        if self.on_gpu:
            torch.cuda.synchronize()
        return time.perf_counter()

    def begin_peak(self) -> None:
        """Begin to watch how much memory is taken beside what is taken now."""
        self.forget_peak()
        self._before = torch.cuda.memory_allocated() if self.on_gpu else 0

    def forget_peak(self) -> None:
        """Forget the peak so far; what was taken before the watch began stays left out."""
        if self.on_gpu:
            torch.cuda.reset_peak_memory_stats()

    def read_peak(self) -> int:
        """Read the peak in bytes: of the GPU by tensors, or by the process since it began."""
        if self.on_gpu:
            return torch.cuda.max_memory_allocated() - self._before
        return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
