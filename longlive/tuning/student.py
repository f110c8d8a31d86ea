"""The student: the causal network to tune, and its rollout of a chunk (LongLive Alg. 1; Self-Forcing §3.2).

Every block is denoised as far as one exit step, drawn once per chunk; only that step has a graph. Later blocks attend
the keys and values of a clean pass over the block, which has a little noise and no graph.

Dimension key: B videos, F frames, C channels, H rows and W columns of cells, L rows and D width of a prompt embedding.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..config import Positions, RolloutConfig
from ..model.causal import CausalWan, TextKeys
from ..model.placement import Placement
from ..model.wan import WanModel
from ..rollout.rollout import Pass, PassKind
from ..rollout.schedule import DenoisingSteps, add_noise, convert_flow_to_clean, fill_timesteps
from ..rollout.window import Window
from .graph_cache import GraphCache, GraphPass


class Draws(Protocol):
    """Everything random in the rollout of a chunk."""

    @property
    def exit_step(self) -> int:
        """The denoising step, counted from 0, whose clean latents are the block."""
        ...

    def draw_noise(self, block: int, step: int) -> Tensor:
        """Draw normal noise [B, F, C, H, W] for a block of the chunk: what step 0 denoises, or what is added later."""
        ...

    def draw_context_noise(self, block: int) -> Tensor:
        """Draw the noise of the clean pass, of the same shape."""
        ...


@dataclass(frozen=True)
class CheckpointedWan(CausalWan):
    """A `CausalWan` whose layers are computed again in the backward pass instead of keeping their activations."""

    def run_block(self, *args) -> Tensor:
        if not torch.is_grad_enabled():
            return CausalWan.run_block(self, *args)
        return checkpoint(CausalWan.run_block, self, *args, use_reentrant=False)


class Student(nn.Module):
    """The network to tune. Its `forward` is the rollout of a chunk, so that a wrapper for several GPUs wraps all of it.

    With `kv_gradients`, a block's gradient also reaches the blocks it attends, through the keys and values of their
    exit step. The reference does so until its training cache, `reference_frames` long, rolls; afterwards only in
    chunks that exit at step 0 (measured on the recorded run `streaming_training`).
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
        self.reference_frames = reference_frames  # length of the reference's training cache, to reproduce it
        self.wan = (CheckpointedWan if checkpointing else CausalWan).of_tree(tree)
        self.window = Window(config.sink, config.recent)
        self.steps = DenoisingSteps.of_config(config)

    def forward(
        self, cache: GraphCache, start: int, blocks: int, embedding_BLD: Tensor, draws: Draws
    ) -> tuple[Tensor, GraphCache]:
        """Extend videos of `start` frames by `blocks` blocks; return these [B, F, C, H, W] and the new cache."""
        text, finished = self.wan.read_prompt(embedding_BLD), []
        for block in range(blocks):
            place = self.window.place_block(start + block * self.config.block, self.config.block)
            if self._loses_links(place, draws.exit_step):
                cache = cache.unlinked()
            latents, links = self._denoise(cache, place, text, draws, block)
            cache = self._clean_pass(cache, place, text, latents.detach(), draws.draw_context_noise(block), links)
            finished.append(latents)
        return torch.cat(finished, dim=1), cache.unlinked()

    def _denoise(
        self, cache: GraphCache, place: Placement, text: TextKeys, draws: Draws, block: int
    ) -> tuple[Tensor, GraphCache]:
        """Denoise a block down to the exit step; return its latents and the cache that the exit step leaves."""
        noisy = draws.draw_noise(block, 0).to(self.wan.device, self.wan.dtype)
        with torch.no_grad():
            for step in range(draws.exit_step):
                done, _ = self._pass(PassKind.DENOISE, cache, place, text, noisy, step)
                noise = draws.draw_noise(block, step + 1).to(noisy)
                noisy = add_noise(require_clean(done), noise, self.steps.sigmas[step + 1])
        done, graph_pass = self._pass(PassKind.DENOISE, cache, place, text, noisy, draws.exit_step)
        return require_clean(done), graph_pass.make_cache()

    @torch.no_grad()
    def _clean_pass(
        self, cache: GraphCache, place: Placement, text: TextKeys, latents: Tensor, noise: Tensor, links: GraphCache
    ) -> GraphCache:
        """Pass the finished latents and return the new cache. At timestep 0 they get the least noise of the table."""
        noisy = add_noise(latents, noise.to(latents), self.steps.context_sigma)
        _, graph_pass = self._pass(PassKind.CLEAN, cache, place, text, noisy)
        return graph_pass.make_cache(links if self.kv_gradients else None)

    @torch.no_grad()
    def recache(self, cache: GraphCache, place: Placement, latents: Tensor, embedding_BLD: Tensor) -> GraphCache:
        """Recompute the cache of the frames at `place`, whose latents are given, under another prompt."""
        text = self.wan.read_prompt(embedding_BLD)
        _, graph_pass = self._pass(PassKind.RECACHE, cache, place, text, latents.to(self.wan.dtype))
        return graph_pass.make_cache()

    def _pass(
        self, kind: PassKind, cache: GraphCache, place: Placement, text: TextKeys, x: Tensor, step: int = 0
    ) -> tuple[Pass, GraphPass]:
        is_denoising = kind is PassKind.DENOISE
        timestep = self.steps.timesteps[step].item() if is_denoising else self.config.context_noise
        sigma = self.steps.sigmas[step] if is_denoising else self.steps.context_sigma
        graph_pass = GraphPass(cache, self.window, moves_sink=self.config.positions is Positions.UNBOUNDED)
        flow = graph_pass.run(self.wan, x, fill_timesteps(x, (timestep,)), text, place)
        return Pass(kind, place, step, (timestep,), flow, convert_flow_to_clean(x, flow.to(x.dtype), sigma)), graph_pass

    def _loses_links(self, place: Placement, exit_step: int) -> bool:
        """Whether the reference has lost the graph of its cached frames here: it rolls its cache without a graph."""
        end = place.start + place.frames
        return self.reference_frames is not None and end > self.reference_frames and exit_step > 0


def require_clean(done: Pass) -> Tensor:
    assert done.clean is not None
    return done.clean
