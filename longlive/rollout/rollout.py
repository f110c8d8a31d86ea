"""Rolls out a video: denoising steps and a clean pass for a block, a recache for a prompt switch (LongLive Alg. 2).

Owns the KV cache. Knows nothing of sessions, stores or files. `rolling_rollout.py` denoises several blocks jointly.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

from ..config import TABLE_FRAMES, Positions, RolloutConfig
from ..errors import PositionError
from ..model.causal import CausalWan, Modulations, TextKeys
from ..model.placement import Placement
from ..model.rope import Rotation
from ..units import count_pixel_frames
from .kv_cache import WindowKVCache
from .noise import Noise
from .schedule import DenoisingSteps, add_noise, convert_flow_to_clean, fill_timesteps


class PassKind(Enum):
    """What a pass of the network is for."""

    DENOISE = 0
    CLEAN = 1  # over a finished block: writes its keys and values at the context timestep
    RECACHE = 2  # over the window, so that its keys and values are those of a new prompt


@dataclass(frozen=True, slots=True)
class Pass:
    """One pass of the network, for observers."""

    kind: PassKind
    place: Placement
    step: int  # of a block's denoising steps; 0 otherwise
    timesteps: tuple[float, ...]  # of its blocks, oldest first
    flow: Tensor | None  # [B, F, C, H, W]; None if nothing needs it
    clean: Tensor | None  # x_0 by that flow


Watch = Callable[[Pass], object]
"""Called after every pass; an error that it raises ends the rollout."""


class Rollout:
    """The KV cache of one video and the passes that read and write it.

    What passes share is made once and freed with the rollout: the modulations of a timestep, the rotation of a block.
    Continues with `cache` if given, else allocates one. `exhaustive` also computes what is never used, to compare it
    with the reference: the flow of clean passes and, in a recache, queries whose keys are not stored.
    """

    def __init__(
        self,
        model: CausalWan,
        config: RolloutConfig,
        shape_BCHW: Sequence[int],
        *,
        cache: WindowKVCache | None = None,
        watch: Watch | None = None,
        exhaustive: bool = False,
    ) -> None:
        self.model, self.config, self.exhaustive = model, config, exhaustive
        self.watch: Watch = watch or (lambda _: None)
        self.steps = DenoisingSteps.of_config(config)
        self.cache = cache or allocate_cache(model, config, shape_BCHW)
        self.window = self.cache.window
        self._modulations: dict[tuple[int, tuple[float, ...]], Modulations] = {}  # by frames and timesteps
        self._rotation: tuple[Placement, Rotation] | None = None  # of the last pass

    @torch.no_grad()
    def denoise(self, start: int, text: TextKeys, noise: Noise, block: int) -> Tensor:
        """Denoise the block at position `start` and return its clean latents [B, F, C, H, W].

        `start` counts frames since the last cut. `block` counts blocks since the beginning and chooses the noise.
        Raises PositionError past the end of the table of absolute positions.
        """
        check_positions(self.config, start + self.config.block)
        place = self.window.place_block(start, self.config.block)
        draws = [self.copy_to_model(noise(block, step)) for step in range(len(self.steps))]
        noisy, sigmas = draws[0], self.steps.sigmas
        for step, timestep in enumerate(self.steps.timesteps.tolist()):
            flow = self._pass(noisy, (timestep,), text, place)
            assert flow is not None
            clean = convert_flow_to_clean(noisy, flow, sigmas[step])
            self.watch(Pass(PassKind.DENOISE, place, step, (timestep,), flow, clean))
            if step + 1 < len(sigmas):
                noisy = add_noise(clean, draws[step + 1], sigmas[step + 1])
        return clean

    def clean_pass(self, start: int, latents: Tensor, text: TextKeys) -> None:
        """Write the finished block [B, F, C, H, W] at position `start` into the KV cache."""
        self._write(PassKind.CLEAN, self.window.place_clean(start, latents.shape[1]), latents, text)

    def recache(self, end: int, latents: Tensor, text: TextKeys, *, renew: bool = False) -> None:
        """Recompute the keys and values of the window under a new prompt (§3.1).

        `latents` [B, F, C, H, W] end at frame `end` of the video: at least a window of them, or all.
        """
        place = self.window.place_recache(end, renew=renew, whole=self.exhaustive)
        self._write(PassKind.RECACHE, place, latents[:, latents.shape[1] - place.frames :], text)

    @torch.no_grad()
    def _write(self, kind: PassKind, place: Placement, latents: Tensor, text: TextKeys) -> None:
        """Write clean latents into the KV cache. Context noise is not added, it only sets the timestep (reference)."""
        clean = latents.to(self.model.device, self.model.dtype)
        timesteps = (self.config.context_noise,)
        flow = self._pass(clean, timesteps, text, place, with_flow=self.exhaustive)
        estimate = None if flow is None else convert_flow_to_clean(clean, flow, self.steps.context_sigma)
        self.watch(Pass(kind, place, 0, timesteps, flow, estimate))

    def release(self) -> None:
        """Free the KV cache and what its passes share now, even if something still refers to this rollout."""
        self.cache.release()
        self._modulations.clear()
        self._rotation = None

    def copy_to_model(self, draw: Tensor) -> Tensor:
        """Copy noise to the model's device, from pinned memory, so that the copy overlaps with computing."""
        on_gpu = self.model.device.type == "cuda"
        return (draw.pin_memory() if on_gpu else draw).to(self.model.device, self.model.dtype, non_blocking=on_gpu)

    def _pass(
        self, x: Tensor, timesteps: tuple[float, ...], text: TextKeys, place: Placement, with_flow=True
    ) -> Tensor | None:
        modulations, rotation = self._find_modulations(x, timesteps), self._find_rotation(x, place)
        self.cache.move_sink(place, rotation)
        return self.model.forward(x, text, self.cache, place, modulations, rotation, with_flow=with_flow)

    def _find_modulations(self, x: Tensor, timesteps: tuple[float, ...]) -> Modulations:
        """Find the modulations of the timesteps of blocks for latents of this shape."""
        key = x.shape[1], timesteps
        if key not in self._modulations:
            self._modulations[key] = self.model.make_modulations(fill_timesteps(x, timesteps))
        return self._modulations[key]

    def _find_rotation(self, x: Tensor, place: Placement) -> Rotation:
        """Find the rotation of a placement: that of the last pass, or a new one."""
        if self._rotation is None or self._rotation[0] != place:
            grid = self.model.geometry.grid(*x.shape[-2:])
            self._rotation = place, self.model.make_rotation(place, grid, self.cache.count_moving(place))
        return self._rotation[1]


def allocate_cache(model: CausalWan, config: RolloutConfig, shape_BCHW: Sequence[int]) -> WindowKVCache:
    """Allocate the KV cache of a video of latents of that shape."""
    batch, _, height, width = shape_BCHW
    rows, columns = model.geometry.grid(height, width)
    return WindowKVCache(config, model.geometry.num_layers, rows * columns, model.make_empty_token(batch))


def check_positions(config: RolloutConfig, end: int) -> None:
    """Check that `end` frames since the start or the last cut fit the table of absolute positions.

    Raises PositionError.
    """
    if config.positions is Positions.ABSOLUTE and end > TABLE_FRAMES:
        raise PositionError(
            f"the video would reach frame {end} since its start or last cut, but absolute positions end at frame "
            f"{TABLE_FRAMES} ({count_pixel_frames(TABLE_FRAMES)} pixel frames); begin the video with unbounded "
            f"positions, or restart them with a cut (discard cache)"
        )
