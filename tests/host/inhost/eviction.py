"""Checks that the network is on its device whenever it computes, though a text encoder evicted it; run inside a host.

A second name of the CPU stands for a GPU of 12, 16 or 24 GB. ComfyUI's own memory management moves the weights; it
takes the bytes of a tiny network, a text encoder and a VAE for those of the real ones.
"""

import contextlib
from collections.abc import Iterator

import comfy.model_management as host
import comfy.ops
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from comfyui_longlive.longlive.model.causal import CausalWan
from comfyui_longlive.longlive.rollout.kv_cache import WindowKVCache
from comfyui_longlive.longlive.rollout.sampler import Sampler
from comfyui_longlive.longlive.session.prompt import Prompt
from comfyui_longlive.nodes.host import sampling
from compute import begin_session
from identity import load_model
from model_files import GEOMETRY
from torch import nn

GPU, CPU = torch.device("cpu", 0), torch.device("cpu")
GB = 10**9
DIT, TEXT_ENCODER, VAE, KV_CACHE, WORK = 2.8 * GB, 11.4 * GB, 0.25 * GB, 3.45 * GB, 1.5 * GB
TEXT_LAYERS = 24


class Device:
    """A GPU of `total` bytes on which one sampler works with `models`."""

    def __init__(self, total: float, *models: ModelPatcher) -> None:
        self.total, self.models = total, models
        self.sampler: Sampler | None = None

    def count_free(self) -> float:
        rollout = self.sampler._rollout if self.sampler else None
        loaded = sum(model.loaded_size() for model in self.models)
        return self.total - loaded - (rollout.cache.num_bytes if rollout else 0)


@contextlib.contextmanager
def simulate_device(total: float, network: ModelPatcher, *others: ModelPatcher) -> Iterator[Device]:
    """Make ComfyUI use a device of `total` bytes on which the network has those of 1.3B; unload everything at the end.

    Every pass checks that all weights of the network are on the device, with room for the activations.
    """
    device = Device(total, network, *others)
    measure, count, forward = host.module_size, WindowKVCache.num_bytes.fget, CausalWan.forward
    scale = DIT / measure(network.model)

    def compute(*arguments, **options):
        assert network.loaded_size() == network.model_size() == pytest.approx(DIT)
        assert device.count_free() >= WORK
        return forward(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
        patch.setattr(host, "module_size", lambda module: measure(module) * scale)
        patch.setattr(
            host,
            "get_free_memory",
            lambda dev=None, torch_free_too=False: (device.count_free(), 0) if torch_free_too else device.count_free(),
        )
        patch.setattr(host, "get_torch_device", lambda: GPU)
        patch.setattr(host, "get_all_torch_devices", lambda *_, **__: [GPU], raising=False)
        patch.setattr(host, "is_device_cpu", lambda dev: dev == CPU)
        patch.setattr(host, "vram_state", host.VRAMState.NORMAL_VRAM)
        patch.setattr(WindowKVCache, "num_bytes", property(lambda cache: KV_CACHE if count(cache) else 0))
        patch.setattr(sampling, "count_cache_bytes", lambda *_: KV_CACHE)
        patch.setattr(sampling, "ACTIVATIONS", WORK)  # tensors: so many that the host's own estimate is taken
        patch.setattr(network.model, "memory_required", lambda *_: WORK)
        patch.setattr(sampling, "open_block_store", lambda: None)
        patch.setattr(CausalWan, "forward", compute)
        network.load_device, network.size = GPU, 0
        yield device
        host.current_loaded_models.clear()


def make_model(network: ModelPatcher, num_bytes: float, layers: int) -> ModelPatcher:
    """Make another model whose bytes are to the network's as `num_bytes` are to those of 1.3B."""
    width = round(host.module_size(network.model) * num_bytes / DIT / layers / torch.float32.itemsize)
    module = nn.Sequential(*(comfy.ops.disable_weight_init.Linear(width, 1, bias=False) for _ in range(layers)))
    return ModelPatcher(module, load_device=GPU, offload_device=CPU)


def draw_prompt(number: int) -> Prompt:
    return Prompt.of(torch.randn(1, 8, GEOMETRY.text_dim, generator=torch.Generator().manual_seed(number)))


def direct(total: float) -> list[float]:
    """Sample five blocks, each under a prompt encoded just before; return the network's bytes after each encoding."""
    network = load_model()
    text_encoder, vae = make_model(network, TEXT_ENCODER, TEXT_LAYERS), make_model(network, VAE, 4)
    session, left = begin_session(network), []
    with (
        simulate_device(total, network, text_encoder, vae) as device,
        sampling.open_sampler(network, session, 5) as sampler,
    ):
        device.sampler = sampler
        for number in range(5):
            host.load_models_gpu([text_encoder])
            left.append(network.loaded_size())
            session = sampler.sample(session.switched_to(draw_prompt(number)), 1)
            host.load_models_gpu([vae])
        device.sampler = None  # hands its cache over
    return left


def check_the_network_is_loaded_before_every_block() -> None:
    """On the smaller devices every prompt evicts it, as the check would notice if it did not."""
    for total in (12 * GB, 16 * GB):
        assert direct(total) == [0] * 5
    assert direct(24 * GB)[1:] == [pytest.approx(DIT)] * 4


def check_nothing_is_loaded_again_where_nothing_moved() -> None:
    """Loading what is loaded already would return the memory that PyTorch keeps for the next block."""
    network = load_model()
    session, loads = begin_session(network), []
    with simulate_device(24 * GB, network) as device, sampling.open_sampler(network, session, 4) as sampler:
        device.sampler, load = sampler, host.load_models_gpu
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(host, "load_models_gpu", lambda *args, **options: (loads.append(1), load(*args, **options)))
            sampler.sample(session, 4)
        device.sampler = None
    assert len(loads) == 1
