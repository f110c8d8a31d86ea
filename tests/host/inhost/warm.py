"""Checks that ComfyUI frees a warm cache whenever it would unload a model; run inside a host.

The meta device, with as many free bytes as a check says, stands for a GPU: on a CPU, ComfyUI frees nothing by itself.
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
from comfyui_longlive.longlive.rollout.kv_cache import WindowKVCache
from comfyui_longlive.longlive.rollout.sampler import WarmCache
from comfyui_longlive.longlive.session.session import Trace
from comfyui_longlive.nodes.host.warm_cache import WarmCachePatcher, WarmSlot

GPU, CPU = torch.device("meta"), torch.device("cpu")
PLENTY = 1 << 40


@contextlib.contextmanager
def simulate_device(free: int) -> Iterator[pytest.MonkeyPatch]:
    """Make ComfyUI use a device that reports `free` bytes; unload everything at the end."""
    with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
        patch.setattr(
            host, "get_free_memory", lambda dev=None, torch_free_too=False: (free, 0) if torch_free_too else free
        )
        patch.setattr(host, "get_torch_device", lambda: GPU)
        patch.setattr(host, "get_all_torch_devices", lambda *_, **__: [GPU], raising=False)
        yield patch
        host.current_loaded_models.clear()


def make_model() -> ModelPatcher:
    return ModelPatcher(torch.nn.Linear(8, 8), load_device=GPU, offload_device=CPU)


def make_warm_cache() -> WarmCache:
    cache = WindowKVCache(RolloutConfig(), 2, 4, torch.empty(1, 1, 2, 8))
    return WarmCache(cache, "kernel", Trace("base", (), ()), None)


def list_warm_patchers() -> list[WarmCachePatcher]:
    return [loaded.model for loaded in host.current_loaded_models if isinstance(loaded.model, WarmCachePatcher)]


def fill_slot(slot: WarmSlot, owner: ModelPatcher) -> WindowKVCache:
    """Put a KV cache into a slot; ComfyUI then lists it with all its bytes."""
    held = make_warm_cache()
    slot.keep(owner, held)
    [patcher] = list_warm_patchers()
    assert patcher.model_size() == patcher.loaded_size() == held.cache.num_bytes > 0
    return held.cache


def check_it_is_taken_out() -> None:
    """A cache that is taken belongs to the taker alone: ComfyUI no longer lists it, and the slot is empty."""
    slot, owner = WarmSlot(), make_model()
    with simulate_device(PLENTY):
        cache = fill_slot(slot, owner)
        host.load_models_gpu([make_model()])  # there is room for both
        taken = slot.take(owner)
        assert taken.cache is cache
        assert list_warm_patchers() == []
        host.unload_all_models()
        assert cache.num_bytes > 0
        assert slot.take(owner) is None


def check_it_is_evicted() -> None:
    """Unloading all models, loading another model and freeing memory each free the whole cache at once."""
    another, evictions = make_model(), (
        host.unload_all_models,
        lambda: host.load_models_gpu([another]),
        lambda: host.free_memory(1, GPU),
    )  # fmt: skip
    for evict in evictions:
        slot, owner = WarmSlot(), make_model()
        with simulate_device(0):
            cache = fill_slot(slot, owner)
            evict()
            assert cache.num_bytes == 0
            assert list_warm_patchers() == []
            assert slot.take(owner) is None


def check_it_belongs_to_one_model() -> None:
    """No other MODEL gets it, not even a clone; it is freed then, and when its MODEL dies."""
    with simulate_device(PLENTY):
        slot, owner = WarmSlot(), make_model()
        cache = fill_slot(slot, owner)
        assert slot.take(owner.clone()) is None
        assert cache.num_bytes == 0
        cache = fill_slot(slot, owner)
        network = weakref.ref(owner.model)
        del owner
        gc.collect()
        assert network() is None
        assert cache.num_bytes == 0


def check_there_is_one() -> None:
    """A new cache replaces the old one; a node that made none changes nothing."""
    with simulate_device(PLENTY):
        slot, owner = WarmSlot(), make_model()
        first = fill_slot(slot, owner)
        second = fill_slot(slot, owner)
        slot.keep(owner, None)
        assert (first.num_bytes, slot.take(owner).cache is second) == (0, True)


def check_nothing_is_kept_where_models_are_not() -> None:
    """With --disable-smart-memory, ComfyUI unloads every model after use, so a cache is freed at once."""
    with simulate_device(PLENTY) as patch:
        patch.setattr(host, "DISABLE_SMART_MEMORY", True)
        slot, owner, held = WarmSlot(), make_model(), make_warm_cache()
        slot.keep(owner, held)
        assert held.cache.num_bytes == 0
        assert list_warm_patchers() == []
