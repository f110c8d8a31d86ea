"""Whether ComfyUI takes a warm cache back whenever it would unload a model; runs inside a host.

A device that is not the CPU, with as much room as a check says, stands for a GPU: ComfyUI frees nothing on a CPU unless
it is told to.
"""

import contextlib
import gc
import weakref
from collections.abc import Iterator

import comfy.model_management as host
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from comfyui_longlive.longlive.config import RolloutConfig
from comfyui_longlive.longlive.rollout.kv_cache import RollingKVCache
from comfyui_longlive.longlive.rollout.sampler import WarmCache
from comfyui_longlive.longlive.session.session import Trace
from comfyui_longlive.nodes.host.warm_cache import WarmCachePatcher, WarmSlot

GPU, CPU = torch.device("meta"), torch.device("cpu")
PLENTY = 1 << 40


@contextlib.contextmanager
def device_with(free: int) -> Iterator[pytest.MonkeyPatch]:
    """A device that says it has so many bytes free, and nothing loaded on it before or after."""
    with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
        patch.setattr(
            host, "get_free_memory", lambda dev=None, torch_free_too=False: (free, 0) if torch_free_too else free
        )
        patch.setattr(host, "get_torch_device", lambda: GPU)
        patch.setattr(host, "get_all_torch_devices", lambda *_, **__: [GPU], raising=False)
        yield patch
        host.current_loaded_models.clear()


def model() -> ModelPatcher:
    return ModelPatcher(torch.nn.Linear(8, 8), load_device=GPU, offload_device=CPU)


def warm_cache() -> WarmCache:
    cache = RollingKVCache(RolloutConfig(), 2, 4, torch.empty(1, 1, 2, 8))
    return WarmCache(cache, "kernel", Trace("base", (), ()), None)


def warm_patchers() -> list[WarmCachePatcher]:
    return [loaded.model for loaded in host.current_loaded_models if isinstance(loaded.model, WarmCachePatcher)]


def lent(slot: WarmSlot, owner: ModelPatcher) -> RollingKVCache:
    """A KV cache that a slot holds; ComfyUI knows of it, and of all its bytes."""
    held = warm_cache()
    slot.keep(owner, held)
    [patcher] = warm_patchers()
    assert patcher.model_size() == patcher.loaded_size() == held.cache.num_bytes > 0
    return held.cache


def check_it_is_taken_out() -> None:
    """Whoever takes it has it alone: ComfyUI no longer knows of it, and the slot is empty."""
    slot, owner = WarmSlot(), model()
    with device_with(PLENTY):
        cache = lent(slot, owner)
        host.load_models_gpu([model()])  # there is room for both
        taken = slot.take(owner)
        assert taken.cache is cache
        assert warm_patchers() == []
        host.unload_all_models()
        assert cache.num_bytes > 0
        assert slot.take(owner) is None


def check_it_is_evicted() -> None:
    """By unloading all, by another model that needs the room, and by whoever frees memory; whole, and at once."""
    another, evictions = model(), (
        host.unload_all_models,
        lambda: host.load_models_gpu([another]),
        lambda: host.free_memory(1, GPU),
    )  # fmt: skip
    for evict in evictions:
        slot, owner = WarmSlot(), model()
        with device_with(0):
            cache = lent(slot, owner)
            evict()
            assert cache.num_bytes == 0
            assert warm_patchers() == []
            assert slot.take(owner) is None


def check_it_belongs_to_one_model() -> None:
    """Another MODEL, were it a clone, does not get it; it is freed then, and when its own dies."""
    with device_with(PLENTY):
        slot, owner = WarmSlot(), model()
        cache = lent(slot, owner)
        assert slot.take(owner.clone()) is None
        assert cache.num_bytes == 0
        cache = lent(slot, owner)
        network = weakref.ref(owner.model)
        del owner
        gc.collect()
        assert network() is None
        assert cache.num_bytes == 0


def check_there_is_one() -> None:
    """The next one takes the place of the last; a node that made none leaves it."""
    with device_with(PLENTY):
        slot, owner = WarmSlot(), model()
        first = lent(slot, owner)
        second = lent(slot, owner)
        slot.keep(owner, None)
        assert (first.num_bytes, slot.take(owner).cache is second) == (0, True)


def check_nothing_is_kept_where_models_are_not() -> None:
    """With --disable-smart-memory ComfyUI unloads a model as soon as another is loaded."""
    with device_with(PLENTY) as patch:
        patch.setattr(host, "DISABLE_SMART_MEMORY", True)
        slot, owner, held = WarmSlot(), model(), warm_cache()
        slot.keep(owner, held)
        assert held.cache.num_bytes == 0
        assert warm_patchers() == []
