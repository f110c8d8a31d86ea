"""The causal network of ComfyUI's core, from a copy that a user brings (0.30.0 or newer; GPL-3.0)."""

import importlib
import sys
from pathlib import Path

import torch
from contenders import OtherNetwork, Task
from torch import Tensor


class HostNetwork(OtherNetwork):
    """`CausalWanModel.forward_block`, driven as the sampler `ar_video` does: the steps and a clean pass.

    It has no window and no switch. So a block beyond the window attends the first frames of the video and itself: as
    many keys as ours.
    """

    can_switch = False

    def __init__(self, task: Task, folder: Path) -> None:
        super().__init__(task)
        geometry = task.geometry
        module, operations = import_network(folder, task.device)
        self.network = module.CausalWanModel(
            dim=geometry.dim, ffn_dim=geometry.ffn_dim, num_heads=geometry.num_heads, num_layers=geometry.num_layers,
            freq_dim=geometry.freq_dim, text_dim=geometry.text_dim, text_len=geometry.text_len,
            device=task.device, dtype=task.dtype, operations=operations,
        )  # fmt: skip
        self.network.load_state_dict(task.tree.state_dict())
        self.network.requires_grad_(False)

    def start_video(self) -> None:
        tokens, like = self.task.config.window * self.task.tokens, (self.task.device, self.task.dtype)
        self.cache = self.network.init_kv_caches(1, tokens, *like)
        self.text_cache = self.network.init_crossattn_caches(1, *like)
        self.latents = []

    @torch.no_grad()
    def run_pass(self, x_BFCHW: Tensor, timestep: float, start: int) -> Tensor:
        kept = min(start, self.task.config.window - self.task.config.block)
        for layer in self.cache:
            layer["end"] = kept * self.task.tokens
        flow_BCFHW = self.network.forward_block(
            x_BFCHW.transpose(1, 2),
            torch.full(x_BFCHW.shape[:2], timestep, device=self.task.device),
            self.task.prompt_BLD.to(self.task.device, self.task.dtype),
            start,
            self.cache,
            self.text_cache,
        )
        return flow_BCFHW.transpose(1, 2)

    def release(self) -> None:
        self.cache, self.text_cache = [], []


def import_network(folder: Path, device: torch.device):
    """Import the module of the network, and the class of its layers. Attention is PyTorch's, as on a GPU."""
    sys.path.append(str(folder.resolve()))
    options = importlib.import_module("comfy.cli_args").args
    options.cpu, options.use_pytorch_cross_attention = device.type == "cpu", True
    return importlib.import_module("comfy.ldm.wan.ar_model"), importlib.import_module("comfy.ops").disable_weight_init
