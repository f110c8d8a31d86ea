"""The one memory of keys and values that stays warm between two nodes. ComfyUI may take it back, as it does a model."""

import weakref
from collections.abc import Callable

import comfy.model_management
import torch
from comfy.model_patcher import ModelPatcher

from ..longlive.sampler import Warm


class LongLiveMemory(torch.nn.Module):
    """What ComfyUI finds where a model has its network: so many bytes on a device."""

    def __init__(self, device: torch.device, num_bytes: int) -> None:
        super().__init__()
        self.device, self.model_loaded_weight_memory = device, num_bytes


class Loan(ModelPatcher):
    """A warm memory as ComfyUI sees it: a loaded model. Unloaded it is gone, for it can be rebuilt.

    It is not moved to the CPU, and not unloaded by parts.
    """

    def __init__(self, warm: Warm, device: torch.device) -> None:
        self.warm: Warm | None = warm
        num_bytes = warm.memory.num_bytes
        super().__init__(LongLiveMemory(device, num_bytes), load_device=device, offload_device=device, size=num_bytes)

    def take(self) -> Warm | None:
        """The memory, which from now on is the caller's alone; None where it has gone."""
        warm, self.warm = self.warm, None
        self.size = self.model.model_loaded_weight_memory = 0
        return warm

    def release(self) -> None:
        """Free the memory."""
        if warm := self.take():
            warm.memory.release()

    def partially_load(self, device_to, extra_memory=0, force_patch_weights=False) -> int:
        return 0

    def partially_unload(self, device_to, memory_to_free=0, force_patch_weights=False) -> int:
        return 0

    def detach(self, unpatch_all=True) -> torch.nn.Module:
        self.release()
        return self.model


class Slot:
    """Holds at most one warm memory, for the MODEL it was made with."""

    def __init__(self) -> None:
        self._loan: Loan | None = None
        self._owner: Callable[[], ModelPatcher | None] = lambda: None

    def keep(self, patcher: ModelPatcher, warm: Warm | None) -> None:
        """Hold a memory until a node takes it, its MODEL dies or ComfyUI wants the room. Without one nothing changes.

        A ComfyUI that is told to unload every model after use is given it at once.
        """
        if warm is None:
            return
        self.clear()
        self._owner = weakref.ref(patcher, self._free)
        self._loan = Loan(warm, patcher.load_device)
        if comfy.model_management.DISABLE_SMART_MEMORY:
            self.clear()
        else:
            comfy.model_management.load_models_gpu([self._loan])

    def take(self, patcher: ModelPatcher) -> Warm | None:
        """The memory, if it was made with this very MODEL; else it is freed. The slot is empty then."""
        if self._owner() is not patcher:
            self.clear()
        loan, self._loan = self._loan, None
        return loan.take() if loan else None

    def clear(self) -> None:
        """Free what is held."""
        loan, self._loan = self._loan, None
        if loan:
            loan.release()

    def _free(self, _: object) -> None:
        """Free what is held for a MODEL that died. The loan stays until it is replaced: garbage is collected at any
        moment, also while ComfyUI goes through its list of models."""
        if self._loan:
            self._loan.release()


slot = Slot()
