"""The network of the reference, NVlabs/LongLive v1.0 (e52d9ef), from a copy that a user brings."""

import importlib
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from contenders import OtherNetwork, Task
from torch import Tensor

from longlive.model.attention import attend_with_torch

FOLDERS = ("wan", "wan.modules", "utils")  # packages of the reference whose own imports would load all of it
LORA = {"type": "lora", "rank": 256, "alpha": 256, "dropout": 0.0}  # of its configs/longlive_inference.yaml


class Reference(OtherNetwork):
    """The reference's network and KV cache.

    It is released as a network and a LoRA, which `inference.py` leaves unmerged: every linear of a layer has two more
    matrices beside it. `with_lora` adds such a LoRA by the reference's own code; its numbers are zero, so the video is
    the same. Attention is the reference's own where FlashAttention is installed, else PyTorch's.
    """

    def __init__(self, task: Task, folder: Path, *, with_lora: bool) -> None:
        super().__init__(task)
        geometry, config = task.geometry, task.config
        with import_from(folder):
            network = import_network()
            self.network = network.CausalWanModel(
                dim=geometry.dim, ffn_dim=geometry.ffn_dim, num_heads=geometry.num_heads,
                num_layers=geometry.num_layers, text_len=geometry.text_len, cross_attn_norm=True,
                local_attn_size=config.window, sink_size=config.sink,
            )  # fmt: skip
            self.network.load_state_dict(task.tree.state_dict())
            for block in self.network.blocks:
                block.self_attn.max_attention_size = config.window * task.tokens
            if with_lora:
                configure = importlib.import_module("utils.lora_utils").configure_lora_for_model
                self.network = configure(self.network, "generator", LORA, is_main_process=False)
        self.network.requires_grad_(False).to(task.device, task.dtype)

    def start_video(self) -> None:
        task = self.task
        shape = (1, task.config.window * task.tokens, task.geometry.num_heads, task.geometry.head_dim)
        self.cache = [
            {name: torch.zeros(shape, device=task.device, dtype=task.dtype) for name in "kv"}
            | {f"{end}_end_index": torch.tensor([0], device=task.device) for end in ("global", "local")}
            for _ in range(task.geometry.num_layers)
        ]
        self.forget_text()
        self.latents = []

    def forget_text(self) -> None:
        geometry = self.task.geometry
        shape = (1, geometry.text_len, geometry.num_heads, geometry.head_dim)
        like = {"device": self.task.device, "dtype": self.task.dtype}
        self.text_cache = [
            {name: torch.zeros(shape, **like) for name in "kv"} | {"is_init": False} for _ in range(geometry.num_layers)
        ]

    @torch.no_grad()
    def run_pass(self, x_BFCHW: Tensor, timestep: float, start: int) -> Tensor:
        flow_BCFHW = self.network(
            x_BFCHW.transpose(1, 2),
            t=torch.full(x_BFCHW.shape[:2], timestep, device=self.task.device),
            context=self.task.prompt_BLD.to(self.task.device, self.task.dtype),
            seq_len=x_BFCHW.shape[1] * self.task.tokens,
            kv_cache=self.cache,
            crossattn_cache=self.text_cache,
            current_start=start * self.task.tokens,
        )
        return flow_BCFHW.transpose(1, 2)

    def recache(self) -> None:
        frames = self.recent
        self.forget_text()
        self.run_pass(frames, self.task.config.context_noise, self.end - frames.shape[1])
        self.forget_text()

    def release(self) -> None:
        self.cache, self.text_cache = [], []


@contextmanager
def import_from(folder: Path) -> Iterator[None]:
    """Find the reference's packages in its folder, without the rest that they import: VAE, text encoder, CUDA."""
    packages = {name: types.ModuleType(name) for name in FOLDERS}
    for name, package in packages.items():
        package.__path__ = [str(folder.resolve().joinpath(*name.split(".")))]
    memory = types.ModuleType("utils.memory")
    for name in ("gpu", "get_cuda_free_memory_gb", "DynamicSwapInstaller", "log_gpu_memory"):
        setattr(memory, name, None)
    sys.modules.update(packages, **{memory.__name__: memory})
    try:
        yield
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] in FOLDERS]:
            del sys.modules[name]


def import_network() -> types.ModuleType:
    """Import the module of the causal network."""
    network, own = (importlib.import_module(f"wan.modules.{name}") for name in ("causal_model", "attention"))
    if not (torch.cuda.is_available() and (own.FLASH_ATTN_2_AVAILABLE or own.FLASH_ATTN_3_AVAILABLE)):
        network.attention = attend
        importlib.import_module("wan.modules.model").flash_attention = attend
    return network


def attend(q_BTNH: Tensor, k_BSNH: Tensor, v_BSNH: Tensor, **_) -> Tensor:
    return attend_with_torch(q_BTNH, k_BSNH, v_BSNH)
