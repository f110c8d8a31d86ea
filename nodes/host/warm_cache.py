"""The one KV cache that stays warm between two nodes. ComfyUI may unload it like a model."""

import weakref
from collections.abc import Callable

import comfy.model_management
import torch
from comfy.model_patcher import ModelPatcher

from ...longlive.rollout.sampler import WarmCache


class LongLiveKVCache(torch.nn.Module):
    """Stands in the place of a network. ComfyUI asks it for its device and its bytes, nothing else."""

    def __init__(self, device: torch.device, num_bytes: int) -> None:
        super().__init__()
        self.device, self.model_loaded_weight_memory = device, num_bytes


class WarmCachePatcher(ModelPatcher):
    """A warm KV cache as ComfyUI sees it: a loaded model. Unloading frees it, because it can be rebuilt.

    It is never moved to the CPU and never unloaded in part.
    """

    def __init__(self, warm_cache: WarmCache, device: torch.device) -> None:
        self.warm_cache: WarmCache | None = warm_cache
        num_bytes = warm_cache.cache.num_bytes
        super().__init__(LongLiveKVCache(device, num_bytes), load_device=device, offload_device=device, size=num_bytes)

    def take(self) -> WarmCache | None:
        """Hand the warm cache to the caller, who owns it alone; None if it was freed."""
        warm_cache, self.warm_cache = self.warm_cache, None
        self.size = self.model.model_loaded_weight_memory = 0
        return warm_cache

    def release(self) -> None:
        """Free the warm cache."""
        if warm_cache := self.take():
            warm_cache.cache.release()

    def partially_load(self, device_to, extra_memory=0, force_patch_weights=False) -> int:
        return 0

    def partially_unload(self, device_to, memory_to_free=0, force_patch_weights=False) -> int:
        return 0

    def detach(self, unpatch_all=True) -> torch.nn.Module:
        self.release()
        return self.model


class WarmSlot:
    """Holds at most one warm cache, for the MODEL it was made with."""

    def __init__(self) -> None:
        self._loaded: WarmCachePatcher | None = None
        self._owner: Callable[[], ModelPatcher | None] = lambda: None

    def keep(self, patcher: ModelPatcher, warm_cache: WarmCache | None) -> None:
        """Hold a warm cache until a node takes it, its MODEL dies or ComfyUI needs the memory. Does nothing for None.

        With --disable-smart-memory, ComfyUI unloads every model after use: then the cache is freed at once.
        """
        if warm_cache is None:
            return
        self.clear()
        self._owner = weakref.ref(patcher, self._free)
        self._loaded = WarmCachePatcher(warm_cache, patcher.load_device)
        if comfy.model_management.DISABLE_SMART_MEMORY:
            self.clear()
        else:
            comfy.model_management.load_models_gpu([self._loaded])

    def count_bytes(self, patcher: ModelPatcher) -> int:
        """Count the bytes of the cache that `take` would return."""
        return self._loaded.size if self._loaded and self._owner() is patcher else 0

    def take(self, patcher: ModelPatcher) -> WarmCache | None:
        """Empty the slot: return its cache if it was made with this same MODEL, else free it."""
        if self._owner() is not patcher:
            self.clear()
        loaded, self._loaded = self._loaded, None
        return loaded.take() if loaded else None

    def clear(self) -> None:
        """Free the held cache."""
        loaded, self._loaded = self._loaded, None
        if loaded:
            loaded.release()

    def _free(self, _: object) -> None:
        """Free the cache of a MODEL that died.

        The patcher stays in ComfyUI's list of models until another replaces it. Garbage may be collected at any moment,
        also while ComfyUI walks that list.
        """
        if self._loaded:
            self._loaded.release()


warm_slot = WarmSlot()
