"""The accelerator of a tuning: precision, processes and TensorBoard, by `accelerate`."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..errors import TuningError
from .config import Precision, TuneConfig

if TYPE_CHECKING:
    from accelerate import Accelerator


def make_accelerator(config: TuneConfig, folder: Path, *, on_cpu: bool = False) -> "Accelerator":
    """Make the object that spreads a tuning over GPUs and machines.

    Autocast must not cache the weights it casts: they change within a step, and a cast without a graph would be used
    again where a graph is needed. Raises TuningError if `accelerate` or a requested `tensorboard` is missing.
    """
    try:
        from accelerate import Accelerator
        from accelerate.utils import AutocastKwargs
    except ImportError as error:
        raise TuningError(
            f"tuning needs accelerate, which does not load ({error}); pip install peft accelerate"
        ) from error
    with_tensorboard = config.run.tensorboard
    if with_tensorboard and find_spec("tensorboard") is None:
        raise TuningError("tensorboard is not installed; pip install tensorboard, or set tensorboard = false")
    accelerator = Accelerator(
        mixed_precision="bf16" if config.learn.precision is Precision.HALF else "no",
        cpu=on_cpu,
        log_with="tensorboard" if with_tensorboard else None,
        project_dir=folder if with_tensorboard else None,
        kwargs_handlers=[AutocastKwargs(cache_enabled=False)],
    )
    if with_tensorboard:
        accelerator.init_trackers("tensorboard")
    return accelerator


@contextmanager
def fail_together(accelerator: "Accelerator") -> Iterator[None]:
    """Wait at the end of the block until all processes are there. If it fails in one, it fails in all of them.

    Otherwise the others would wait without end for the one that failed. They raise TuningError.
    """
    error = None
    try:
        yield
    except Exception as caught:
        error = caught
    has_failed = torch.tensor(float(error is not None), device=accelerator.device)
    if accelerator.reduce(has_failed, "sum"):
        raise error or TuningError("another process of this tuning failed; its message says why")
