"""Compare the time of a block, a recache and a switch with the bare matrix and attention calls, and with the reference.

    python benchmarks/side_by_side.py [--reference FOLDER] [--dtype bf16] [--rounds 5]

FOLDER is a copy of NVlabs/LongLive, branch v1.0 (e52d9ef), which needs `diffusers`. All take turns in one process, on
one thread of the CPU, with the same random weights of the true width, two layers, no LoRA. Their times are those of the
processor, so ratios hold on a busy machine.
"""

import argparse
import importlib
import statistics
import sys
import time
import types
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from speed import fill
from torch import Tensor, nn

from longlive.config import RolloutConfig
from longlive.model.causal import CausalWan
from longlive.model.dtypes import COMPUTE_DTYPES
from longlive.model.vae import LATENT_CHANNELS
from longlive.model.wan import Geometry, WanModel
from longlive.rollout.noise import seed_noise
from longlive.rollout.rollout import Rollout
from longlive.rollout.schedule import DenoisingSteps, add_noise, convert_flow_to_clean

GEOMETRY = Geometry(dim=1536, ffn_dim=8960, num_heads=12, num_layers=2, freq_dim=256, text_dim=4096)
CELLS = (16, 20)
CONFIG = RolloutConfig()
BLOCK, WINDOW = CONFIG.block, CONFIG.window
TOKENS = CELLS[0] * CELLS[1] // 4  # of a frame
PARTS = ("first block", "four steps", "clean pass", "recache", "switch")  # a block is the second and the third


class Ours:
    """The rollout of a video, as the sampler drives it."""

    def __init__(self, tree: WanModel, prompt_BLD: Tensor) -> None:
        self.model, self.prompt_BLD = CausalWan.of_tree(tree, joined=True), prompt_BLD
        self.noise = seed_noise(0, (1, BLOCK, LATENT_CHANNELS, *CELLS), self.model.dtype)
        self.latents: list[Tensor] = []
        self.start_video()

    def start_video(self) -> None:
        self.rollout = Rollout(self.model, CONFIG, (1, LATENT_CHANNELS, *CELLS))
        self.text = self.model.read_prompt(self.prompt_BLD)
        self.latents = []

    @property
    def end(self) -> int:
        return BLOCK * len(self.latents)

    def denoise(self) -> Tensor:
        return self.rollout.denoise(self.end, self.text, self.noise, len(self.latents))

    def keep(self, latents: Tensor) -> None:
        self.rollout.clean_pass(self.end, latents, self.text)
        self.latents.append(latents)

    def recache(self) -> None:
        self.rollout.recache(self.end, torch.cat(self.latents, 1), self.text)

    def switch(self) -> Tensor:
        self.text = self.model.read_prompt(self.prompt_BLD)
        self.recache()
        return self.denoise()


class Reference(Ours):
    """The reference's network and KV cache. Noise levels are ours, and its attention is PyTorch's, like ours."""

    def __init__(self, folder: Path, tree: WanModel, prompt_BLD: Tensor) -> None:
        network = import_network(folder)
        self.network = network.CausalWanModel(
            dim=GEOMETRY.dim, ffn_dim=GEOMETRY.ffn_dim, num_heads=GEOMETRY.num_heads, num_layers=GEOMETRY.num_layers,
            text_len=GEOMETRY.text_len, cross_attn_norm=True, local_attn_size=WINDOW, sink_size=CONFIG.sink,
        )  # fmt: skip
        self.network.load_state_dict(tree.state_dict())
        self.network.requires_grad_(False).to(tree.patch_embedding.weight.dtype)
        for block in self.network.blocks:
            block.self_attn.max_attention_size = WINDOW * TOKENS
        self.steps = DenoisingSteps.of_config(CONFIG)
        super().__init__(tree, prompt_BLD)

    def start_video(self) -> None:
        shape = (1, WINDOW * TOKENS, GEOMETRY.num_heads, GEOMETRY.head_dim)
        self.cache = [
            {name: torch.zeros(shape, dtype=self.model.dtype) for name in "kv"}
            | {f"{end}_end_index": torch.tensor([0]) for end in ("global", "local")}
            for _ in range(GEOMETRY.num_layers)
        ]
        self.forget_text()
        self.latents = []

    def forget_text(self) -> None:
        shape = (1, GEOMETRY.text_len, GEOMETRY.num_heads, GEOMETRY.head_dim)
        self.text_cache = [
            {name: torch.zeros(shape, dtype=self.model.dtype) for name in "kv"} | {"is_init": False}
            for _ in range(GEOMETRY.num_layers)
        ]

    @torch.no_grad()
    def run_pass(self, x_BFCHW: Tensor, timestep: float, start: int) -> Tensor:
        flow_BCFHW = self.network(
            x_BFCHW.transpose(1, 2),
            t=torch.full(x_BFCHW.shape[:2], timestep),
            context=self.prompt_BLD.to(self.model.dtype),
            seq_len=x_BFCHW.shape[1] * TOKENS,
            kv_cache=self.cache,
            crossattn_cache=self.text_cache,
            current_start=start * TOKENS,
        )
        return flow_BCFHW.transpose(1, 2)

    def denoise(self) -> Tensor:
        noisy = self.noise(len(self.latents), 0)
        for step, timestep in enumerate(self.steps.timesteps.tolist()):
            clean = convert_flow_to_clean(noisy, self.run_pass(noisy, timestep, self.end), self.steps.sigmas[step])
            if step + 1 < len(self.steps):
                noisy = add_noise(clean, self.noise(len(self.latents), step + 1), self.steps.sigmas[step + 1])
        return clean

    def keep(self, latents: Tensor) -> None:
        self.run_pass(latents, CONFIG.context_noise, self.end)
        self.latents.append(latents)

    def recache(self) -> None:
        frames = min(WINDOW, self.end)
        self.forget_text()
        self.run_pass(torch.cat(self.latents, 1)[:, -frames:], CONFIG.context_noise, self.end - frames)

    def switch(self) -> Tensor:
        self.recache()
        self.forget_text()
        return self.denoise()


def import_network(folder: Path) -> types.ModuleType:
    """Import the reference's network alone: without its VAE and text encoder, and without CUDA."""
    for name in ("wan", "wan.modules", "utils"):
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__path__ = [str(folder.joinpath(*name.split(".")))]
    memory = types.ModuleType("utils.memory")
    for name in ("gpu", "get_cuda_free_memory_gb", "DynamicSwapInstaller", "log_gpu_memory"):
        setattr(memory, name, None)
    sys.modules["utils.memory"] = memory
    network = importlib.import_module("wan.modules.causal_model")
    network.attention = attend
    importlib.import_module("wan.modules.model").flash_attention = attend
    return network


def attend(q_BTNH: Tensor, k_BSNH: Tensor, v_BSNH: Tensor, **_) -> Tensor:
    q, k, v = (x.transpose(1, 2) for x in (q_BTNH, k_BSNH, v_BSNH))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)


class BareCalls(Ours):
    """The matrix products and attentions of the same passes, and nothing else."""

    def start_video(self) -> None:
        self.tree, self.latents = self.model.tree, []
        self.read_prompt()

    @torch.no_grad()
    def read_prompt(self) -> None:
        rows = self.make(GEOMETRY.text_len, GEOMETRY.text_dim)
        hidden = multiply(self.tree.text_embedding[2], multiply(self.tree.text_embedding[0], rows))
        for block in self.tree.blocks:
            multiply(block.cross_attn.k, hidden), multiply(block.cross_attn.v, hidden)

    def make(self, rows: int, width: int) -> Tensor:
        return torch.ones(1, rows, width, dtype=self.model.dtype)

    @torch.no_grad()
    def run_pass(self, frames: int, attended: int, *, with_flow: bool) -> None:
        x, hidden = (self.make(frames * TOKENS, width) for width in (GEOMETRY.dim, GEOMETRY.ffn_dim))
        q, keys, text = (
            self.make(rows, GEOMETRY.dim).unflatten(-1, (GEOMETRY.num_heads, -1))
            for rows in (frames * TOKENS, attended * TOKENS, GEOMETRY.text_len)
        )
        for block in self.tree.blocks:
            multiply(block.self_attn.k, x), multiply(block.self_attn.v, x)
            if block is self.tree.blocks[-1] and not with_flow:
                return
            multiply(block.self_attn.q, x), attend(q, keys, keys), multiply(block.self_attn.o, x)
            multiply(block.cross_attn.q, x), attend(q, text, text), multiply(block.cross_attn.o, x)
            multiply(block.ffn[0], x), multiply(block.ffn[2], hidden)
        multiply(self.tree.head.head, x)

    def denoise(self) -> Tensor:
        for _ in CONFIG.steps:
            self.run_pass(BLOCK, min(self.end + BLOCK, WINDOW), with_flow=True)
        return self.make(1, 1)

    def keep(self, latents: Tensor) -> None:
        self.run_pass(BLOCK, min(self.end + BLOCK, WINDOW), with_flow=False)
        self.latents.append(latents)

    def recache(self) -> None:
        self.run_pass(CONFIG.recent, WINDOW, with_flow=False)

    def switch(self) -> Tensor:
        self.read_prompt()
        self.recache()
        return self.denoise()


def multiply(layer: nn.Linear, x: Tensor) -> Tensor:
    return F.linear(x, layer.weight, layer.bias)


def make_weights(dtype: torch.dtype) -> WanModel:
    tree = WanModel(GEOMETRY)
    fill(tree, 0)
    return tree.requires_grad_(False).to(dtype)


def measure_all(contenders: Sequence[Ours], rounds: int) -> list[dict[str, list[float]]]:
    """Measure the seconds of every part, in turn: for each contender, those of every round."""
    measured: list[dict[str, list[float]]] = [{part: [] for part in PARTS} for _ in contenders]

    def measure(number: int, part: str, work: Callable[[], Tensor | None]) -> Tensor | None:
        began = time.thread_time()
        result = work()
        measured[number][part].append(time.thread_time() - began)
        return result

    for _ in range(rounds):
        for number, each in enumerate(contenders):
            measure(number, "first block", lambda each=each: (each.start_video(), each.denoise())[1])
    for each in contenders:
        while each.end < WINDOW:
            each.keep(each.denoise())
    for _ in range(rounds):
        for number, each in enumerate(contenders):
            latents = measure(number, "four steps", each.denoise)
            measure(number, "clean pass", lambda each=each, latents=latents: each.keep(latents))
            measure(number, "recache", each.recache)
            measure(number, "switch", each.switch)
    for parts in measured:
        parts["block"] = [sum(pair) for pair in zip(parts["four steps"], parts["clean pass"], strict=True)]
    return measured


def describe_ratio(ours: Sequence[float], theirs: Sequence[float]) -> str:
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    return f"{statistics.median(ratios):.2f} [{min(ratios):.2f}-{max(ratios):.2f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", type=Path, help="folder of the reference; left out, it is not compared")
    parser.add_argument("--dtype", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    tree, prompt_BLD = make_weights(COMPUTE_DTYPES[options.dtype]), torch.randn(1, GEOMETRY.text_len, GEOMETRY.text_dim)
    others: dict[str, Ours] = {"bare calls": BareCalls(tree, prompt_BLD)}
    if options.reference:
        others["reference"] = Reference(options.reference.resolve(), tree, prompt_BLD)
    contenders = [Ours(tree, prompt_BLD), *others.values()]
    ours, *theirs = measure_all(contenders, options.rounds)

    lines = [["what", "ours, ms", *(f"of the {name}" for name in others)], ["---"] * (2 + len(others))]
    for part in ("first block", "block", "four steps", "clean pass", "recache", "switch"):
        ratios = (describe_ratio(ours[part], other[part]) for other in theirs)
        lines.append([part, f"{1e3 * statistics.median(ours[part]):.0f}", *ratios])
    sys.stdout.write("".join(f"| {' | '.join(line)} |\n" for line in lines))
    if options.reference:
        found, expected = (each.latents[-1].double() for each in (contenders[0], others["reference"]))
        difference = float((found - expected).norm() / expected.norm())
        sys.stdout.write(f"\nThe last latents differ by {difference:.1e} of their size.\n")


if __name__ == "__main__":
    main()
