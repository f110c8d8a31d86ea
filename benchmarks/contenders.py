"""Those that compute the same video for a benchmark: ours, and the bare matrix products and attentions of it."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longlive.config import RolloutConfig
from longlive.model.attention import attend_with_torch
from longlive.model.causal import CausalWan
from longlive.model.vae import LATENT_CHANNELS
from longlive.model.wan import Geometry, WanModel
from longlive.rollout.noise import Noise, seed_noise
from longlive.rollout.rollout import Rollout
from longlive.rollout.schedule import DenoisingSteps, add_noise, convert_flow_to_clean

BLOCKS_WITH_NOISE = 8  # of their own
SCALE = 0.03  # of random weights, small enough that the flow stays near the size of noise


def fill(module: nn.Module, seed: int) -> None:
    """Fill a module with seeded random weights: matrices small, convolutions of unit gain, norms one, biases zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in module.named_parameters():
            if name.endswith("bias"):
                weight.zero_()
            elif weight.ndim == 1 or name.endswith("gamma"):
                weight.fill_(1.0)
            else:
                gain = weight[0].numel() ** -0.5 if weight.ndim > 3 else SCALE
                weight.copy_(gain * torch.randn(weight.shape, generator=generator))


@dataclass(frozen=True)
class Task:
    """What all compute: a video of these weights, this prompt [1, L, D] and noise, of a size in cells."""

    tree: WanModel
    prompt_BLD: Tensor
    cells: tuple[int, int]
    config: RolloutConfig = field(default_factory=RolloutConfig)

    @classmethod
    def make(cls, geometry: Geometry, cells: tuple[int, int], **like) -> "Task":
        """Make a task of seeded random weights; `like` is their device and dtype."""
        tree = WanModel(geometry)
        fill(tree, 0)
        generator = torch.Generator().manual_seed(0)
        prompt_BLD = torch.randn(1, geometry.text_len, geometry.text_dim, generator=generator)
        return cls(tree.requires_grad_(False).to(**like), prompt_BLD, cells)

    @cached_property
    def geometry(self) -> Geometry:
        return Geometry.of_tree(self.tree)

    @property
    def device(self) -> torch.device:
        return self.tree.patch_embedding.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.tree.patch_embedding.weight.dtype

    @cached_property
    def tokens(self) -> int:
        """How many tokens a frame has."""
        rows, columns = self.geometry.grid(*self.cells)
        return rows * columns

    @cached_property
    def noise(self) -> Noise:
        """The noise of a video, again after so many blocks. It is drawn once: the sampler draws it in a thread."""
        draw = cache(seed_noise(0, (1, self.config.block, LATENT_CHANNELS, *self.cells), self.dtype))
        return lambda block, step: draw(block % BLOCKS_WITH_NOISE, step)


class Contender(ABC):
    """One that makes the video of a task, block by block, and keeps its latents in RAM, as the sampler does."""

    is_causal = True  # whether it makes block after block; else it makes a clip at once
    can_switch = True

    def __init__(self, task: Task) -> None:
        self.task, self.latents = task, list[Tensor]()

    @property
    def end(self) -> int:
        return self.task.config.block * len(self.latents)

    @property
    @abstractmethod
    def weights(self) -> nn.Module: ...

    @property
    def recent(self) -> Tensor:
        """The frames of the window, where the network is."""
        blocks = self.latents[-(self.task.config.window // self.task.config.block) :]
        return torch.cat(blocks, 1).to(self.task.device)

    @abstractmethod
    def start_video(self) -> None: ...
    @abstractmethod
    def denoise(self) -> Tensor:
        """Make the next block."""

    def keep(self, latents: Tensor) -> None:
        """Take the block as finished: with the clean pass over it."""
        self.latents.append(latents.cpu())

    def recache(self) -> None:
        """Take the prompt as a new one, and write the window under it."""
        raise NotImplementedError(f"{type(self).__name__} has no switch")

    def switch(self) -> Tensor:
        """Recache, then make the next block."""
        self.recache()
        return self.denoise()

    def release(self) -> None:  # noqa: B027
        """Free all of the video but its latents in RAM. It ends here."""


class Ours(Contender):
    """Our rollout, as the sampler drives it."""

    def __init__(self, task: Task, model: CausalWan) -> None:
        super().__init__(task)
        self.model = model

    @property
    def weights(self) -> nn.Module:
        return self.task.tree

    def start_video(self) -> None:
        self.latents = []
        self.rollout = Rollout(self.model, self.task.config, (1, LATENT_CHANNELS, *self.task.cells))
        self.text = self.model.read_prompt(self.task.prompt_BLD)

    def denoise(self) -> Tensor:
        return self.rollout.denoise(self.end, self.text, self.task.noise, len(self.latents))

    def keep(self, latents: Tensor) -> None:
        self.rollout.clean_pass(self.end, latents, self.text)
        super().keep(latents)

    def recache(self) -> None:
        self.text = self.model.read_prompt(self.task.prompt_BLD)
        self.rollout.recache(self.end, self.recent, self.text)

    def release(self) -> None:
        self.rollout.release()
        self.text.release()
        del self.rollout, self.text


class OtherNetwork(Contender):
    """A network of others. Noise and noise levels are ours, because each has its own."""

    network: nn.Module

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self.steps = DenoisingSteps.of_config(task.config)

    @property
    def weights(self) -> nn.Module:
        return self.network

    @abstractmethod
    def run_pass(self, x_BFCHW: Tensor, timestep: float, start: int) -> Tensor:
        """Pass frames that begin at frame `start` through the network; return their flow [B, F, C, H, W]."""

    def denoise(self) -> Tensor:
        return self.remove_noise(lambda step: self.task.noise(len(self.latents), step))

    @torch.no_grad()
    def remove_noise(self, draw: Callable[[int], Tensor]) -> Tensor:
        """Make frames of noise [B, F, C, H, W] in the steps of the method; `draw` gives the noise of each."""
        place = {"device": self.task.device, "dtype": self.task.dtype}
        noisy = clean = draw(0).to(**place)
        for step, timestep in enumerate(self.steps.timesteps.tolist()):
            flow = self.run_pass(noisy, timestep, self.end)
            clean = convert_flow_to_clean(noisy, flow, self.steps.sigmas[step])
            if step + 1 < len(self.steps):
                noisy = add_noise(clean, draw(step + 1).to(**place), self.steps.sigmas[step + 1])
        return clean

    @torch.no_grad()
    def keep(self, latents: Tensor) -> None:
        self.run_pass(latents, self.task.config.context_noise, self.end)
        super().keep(latents)


class BareCalls(Contender):
    """The matrix products and attentions of our passes, and nothing else."""

    @property
    def weights(self) -> nn.Module:
        return self.task.tree

    def start_video(self) -> None:
        self.latents = []
        self.read_prompt()

    @torch.no_grad()
    def read_prompt(self) -> None:
        tree, geometry = self.task.tree, self.task.geometry
        rows = self.make(geometry.text_len, geometry.text_dim)
        hidden = multiply(tree.text_embedding[2], multiply(tree.text_embedding[0], rows))
        for block in tree.blocks:
            multiply(block.cross_attn.k, hidden), multiply(block.cross_attn.v, hidden)

    def make(self, rows: int, width: int) -> Tensor:
        return torch.ones(1, rows, width, device=self.task.device, dtype=self.task.dtype)

    @torch.no_grad()
    def run_pass(self, frames: int, attended: int, *, with_flow: bool) -> None:
        tree, geometry, tokens = self.task.tree, self.task.geometry, self.task.tokens
        x, hidden = (self.make(frames * tokens, width) for width in (geometry.dim, geometry.ffn_dim))
        q, keys, text = (
            self.make(rows, geometry.dim).unflatten(-1, (geometry.num_heads, -1))
            for rows in (frames * tokens, attended * tokens, geometry.text_len)
        )
        for block in tree.blocks:
            multiply(block.self_attn.k, x), multiply(block.self_attn.v, x)
            if block is tree.blocks[-1] and not with_flow:
                return
            multiply(block.self_attn.q, x), attend_with_torch(q, keys, keys), multiply(block.self_attn.o, x)
            multiply(block.cross_attn.q, x), attend_with_torch(q, text, text), multiply(block.cross_attn.o, x)
            multiply(block.ffn[0], x), multiply(block.ffn[2], hidden)
        multiply(tree.head.head, x)

    def denoise(self) -> Tensor:
        for _ in self.task.config.steps:
            self.run_block(with_flow=True)
        return self.make(1, 1)

    def keep(self, latents: Tensor) -> None:
        self.run_block(with_flow=False)
        super().keep(latents)

    def run_block(self, *, with_flow: bool) -> None:
        config = self.task.config
        self.run_pass(config.block, min(self.end + config.block, config.window), with_flow=with_flow)

    def recache(self) -> None:
        self.read_prompt()
        self.run_pass(self.task.config.recent, self.task.config.window, with_flow=False)


def multiply(layer: nn.Linear, x: Tensor) -> Tensor:
    return F.linear(x, layer.weight, layer.bias)
