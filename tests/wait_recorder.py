"""Records what the host waits for, while the meta device stands for a GPU."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

WAIT = "wait"
# Operations whose result the host must know: on a GPU they wait for all that it still computes.
ASKING = {"aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero", "aten::equal", "aten::masked_select"}


class WaitRecorder(TorchDispatchMode):
    """Lists the waits for a device and the passes, and shapes of what is copied to it.

    The meta device stands for the GPU, its numbers for ones.
    """

    def __init__(self) -> None:
        super().__init__()
        self.events: list[str] = []
        self.uploads: list[torch.Size] = []

    def add_pass(self, done) -> None:
        self.events.append(f"{done.kind.name.lower()} {done.step}")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, func._schema.name
        is_meta = any(isinstance(arg, torch.Tensor) and arg.is_meta for arg in args)
        if name in ASKING and is_meta:
            raise AssertionError(f"{name} within a block")
        if name == "aten::_to_copy" and is_meta and kwargs.get("device", args[0].device).type == "cpu":
            if not kwargs.get("non_blocking"):
                self.events.append(WAIT)
            return torch.ones(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        if name == "aten::_to_copy" and not is_meta and kwargs.get("device") == torch.device("meta"):
            self.uploads.append(args[0].shape)
        return func(*args, **kwargs)
