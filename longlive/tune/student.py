"""The causal network that learns, and how it rolls out a chunk with a graph (LongLive Alg. 1; Self-Forcing §3.2).

Every block is denoised down to one exit step, the same for a whole chunk and drawn anew for each; only that step has
a graph. What the block is remembered by is a clean pass over it, with a trace of noise and no graph.

Dimension key: B videos, F frames, C channels, H rows and W columns of cells, L rows and D width of a prompt embedding.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..cache import TextMemory
from ..config import Positions, RolloutConfig
from ..model.causal import CausalWan
from ..model.wan import WanModel
from ..precision import exact_device
from ..rollout import Pass, PassKind
from ..schedule import Schedule, add_noise, clean_from_flow
from ..window import Placement, Window
from .memory import Call, Memory


class Draws(Protocol):
    """All that is random in the rollout of a chunk."""

    @property
    def exit_step(self) -> int:
        """The denoising step, counted from 0, whose clean latents are a block's."""
        ...

    def noise(self, block: int, step: int) -> Tensor:
        """Normal noise [B, F, C, H, W] of a block of the chunk: what step 0 begins with, and each later one adds."""
        ...

    def context(self, block: int) -> Tensor:
        """The noise of the clean pass, of the same shape."""
        ...


@dataclass(frozen=True)
class CheckpointedWan(CausalWan):
    """A `CausalWan` whose layers are computed again in the backward pass, so that their insides need not be kept."""

    def _layer(self, *args) -> Tensor:
        if not torch.is_grad_enabled():
            return CausalWan._layer(self, *args)
        return checkpoint(CausalWan._layer, self, *args, use_reentrant=False)


class Student(nn.Module):
    """The network that learns. A rollout is its `forward`, so that what wraps a module for several GPUs can wrap it.

    With `kv_gradients` a block's gradient also reaches the blocks it remembers, through the exit step's keys and
    values. The reference has that until its window rolls, and from then on only in chunks that exit at step 0, which
    `reference_frames` reproduces (measured on the recorded run `streaming_training`).
    """

    def __init__(
        self,
        tree: WanModel,
        config: RolloutConfig,
        *,
        kv_gradients: bool = False,
        checkpointing: bool = False,
        reference_frames: int | None = None,
    ) -> None:
        super().__init__()
        self.tree, self.config, self.kv_gradients = tree, config, kv_gradients
        self.reference_frames = reference_frames  # of the reference's training cache, where that is reproduced
        self.wan = (CheckpointedWan if checkpointing else CausalWan).of_tree(tree)
        self.window = Window(config.sink, config.recent)
        schedule = Schedule(config.shift)
        self.timesteps = schedule.warped(config.steps)
        self.sigmas = schedule.sigma(self.timesteps)
        self.context_sigma = schedule.sigma(torch.tensor(config.context_noise))

    def forward(
        self, memory: Memory, start: int, blocks: int, embedding_BLD: Tensor, draws: Draws
    ) -> tuple[Tensor, Memory]:
        """The next `blocks` blocks [B, F, C, H, W] of videos of `start` frames, and the memory after them."""
        text, made = self.wan.read(embedding_BLD), []
        for block in range(blocks):
            place = self.window.block(start + block * self.config.block, self.config.block)
            if self._link_is_lost(place, draws.exit_step):
                memory = memory.unlinked()
            latents, links = self._denoised(memory, place, text, draws, block)
            memory = self._committed(memory, place, text, latents.detach(), draws.context(block), links)
            made.append(latents)
        return torch.cat(made, dim=1), memory.unlinked()

    def _denoised(
        self, memory: Memory, place: Placement, text: TextMemory, draws: Draws, block: int
    ) -> tuple[Tensor, Memory]:
        """A block's latents, and the memory as the exit step leaves it."""
        noisy = draws.noise(block, 0).to(self.wan.device, self.wan.dtype)
        with torch.no_grad():
            for step in range(draws.exit_step):
                done, _ = self._pass(PassKind.DENOISE, memory, place, text, noisy, step)
                noisy = add_noise(clean_of(done), draws.noise(block, step + 1).to(noisy), self.sigmas[step + 1])
        done, call = self._pass(PassKind.DENOISE, memory, place, text, noisy, draws.exit_step)
        return clean_of(done), call.memory()

    @torch.no_grad()
    def _committed(
        self, memory: Memory, place: Placement, text: TextMemory, latents: Tensor, noise: Tensor, links: Memory
    ) -> Memory:
        """The memory after the clean pass, which sees the latents with the least noise of the table in them."""
        shaken = add_noise(latents, noise.to(latents), self.context_sigma)
        _, call = self._pass(PassKind.CLEAN, memory, place, text, shaken)
        return call.memory(links if self.kv_gradients else None)

    @torch.no_grad()
    def recached(self, memory: Memory, place: Placement, latents: Tensor, embedding_BLD: Tensor) -> Memory:
        """The memory of the same frames under another prompt; `latents` are those of `place`."""
        _, call = self._pass(PassKind.RECACHE, memory, place, self.wan.read(embedding_BLD), latents.to(self.wan.dtype))
        return call.memory()

    def _pass(
        self, kind: PassKind, memory: Memory, place: Placement, text: TextMemory, x: Tensor, step: int = 0
    ) -> tuple[Pass, Call]:
        is_denoising = kind is PassKind.DENOISE
        timestep = self.timesteps[step].item() if is_denoising else self.config.context_noise
        sigma = self.sigmas[step] if is_denoising else self.context_sigma
        timesteps_BF = torch.full(x.shape[:2], timestep, dtype=torch.float32, device=exact_device(x.device))
        call = Call(memory, self.window, moves_sink=self.config.positions is Positions.UNBOUNDED)
        flow = self.wan.forward(x, timesteps_BF, text, call, place)
        assert flow is not None
        return Pass(kind, place, step, timestep, flow, clean_from_flow(x, flow.to(x.dtype), sigma)), call

    def _link_is_lost(self, place: Placement, exit_step: int) -> bool:
        """Whether the reference, rolling its cache without a graph, has left the graph behind by now."""
        end = place.start + place.frames
        return self.reference_frames is not None and end > self.reference_frames and exit_step > 0


def clean_of(done: Pass) -> Tensor:
    assert done.clean is not None
    return done.clean
