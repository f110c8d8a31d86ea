"""A video being made: a block in a few denoising steps and a clean pass; a switch by a recache (LongLive Alg. 2).

Owns the memory while it lives. Knows nothing of sessions, stores or files.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

from .cache import Memory, TextMemory
from .config import TABLE_FRAMES, Positions, RolloutConfig, pixel_frames
from .errors import PositionError
from .model.causal import CausalWan
from .noise import Noise
from .precision import exact_device
from .schedule import Schedule, add_noise, clean_from_flow
from .window import Placement


class PassKind(Enum):
    """What a pass of the network is for."""

    DENOISE = 0
    CLEAN = 1  # of a finished block, so that later blocks remember it clean
    RECACHE = 2  # of the window, so that it is remembered under a new prompt


@dataclass(frozen=True, slots=True)
class Pass:
    """One pass of the network, as told to whoever watches."""

    kind: PassKind
    place: Placement
    step: int  # of a block's denoising steps; 0 otherwise
    timestep: float
    flow: Tensor | None  # [B, F, C, H, W]; None where nobody needs it
    clean: Tensor | None  # x_0 by that flow


Watch = Callable[[Pass], object]
"""Called after every pass; what it raises ends the rollout there."""


class Rollout:
    """The memory of one video and the passes that read and write it; a `memory` that is given is one of the same kind.

    `exhaustive` also computes what nothing depends on (the flow of clean passes, the dead queries of a recache), for
    comparison with runs of the reference, which does.
    """

    def __init__(
        self,
        model: CausalWan,
        config: RolloutConfig,
        shape_BCHW: Sequence[int],
        *,
        memory: Memory | None = None,
        watch: Watch | None = None,
        exhaustive: bool = False,
    ) -> None:
        self.model, self.config, self.exhaustive = model, config, exhaustive
        self.watch: Watch = watch or (lambda _: None)
        schedule = Schedule(config.shift)
        self.timesteps = schedule.warped(config.steps)
        self.sigmas = schedule.sigma(self.timesteps)
        self.context_sigma = schedule.sigma(torch.tensor(config.context_noise))
        self.memory = memory or empty_memory(model, config, shape_BCHW)
        self.window = self.memory.window

    @torch.no_grad()
    def denoise(self, start: int, text: TextMemory, noise: Noise, block: int) -> Tensor:
        """The clean latents [B, F, C, H, W] of the block at position `start`, from the noise of block number `block`.

        Raises PositionError past the end of the table of absolute positions.
        """
        check_positions(self.config, start + self.config.block)
        place = self.window.block(start, self.config.block)
        draws = [self._on_device(noise(block, step)) for step in range(len(self.sigmas))]
        noisy = draws[0]
        for step, timestep in enumerate(self.timesteps.tolist()):
            flow = self._pass(noisy, timestep, text, place)
            assert flow is not None
            clean = clean_from_flow(noisy, flow, self.sigmas[step])
            self.watch(Pass(PassKind.DENOISE, place, step, timestep, flow, clean))
            if step + 1 < len(self.sigmas):
                noisy = add_noise(clean, draws[step + 1], self.sigmas[step + 1])
        return clean

    def commit(self, start: int, latents: Tensor, text: TextMemory) -> None:
        """Remember a finished block: the clean pass."""
        self.remember(self.window.block(start, latents.shape[1]), latents, text, PassKind.CLEAN)

    def recache(self, end: int, latents: Tensor, text: TextMemory, *, renew: bool = False) -> None:
        """Remember the newest of a video's first `end` frames under a new prompt (§3.1).

        `latents` [B, F, C, H, W] are the newest frames, at least a window of them or all there are.
        """
        place = self.window.recache(end, renew=renew, whole=self.exhaustive)
        self.remember(place, latents[:, latents.shape[1] - place.frames :], text, PassKind.RECACHE)

    @torch.no_grad()
    def remember(self, place: Placement, latents: Tensor, text: TextMemory, kind: PassKind) -> None:
        """Write clean latents into the memory at `place`. No noise is added to them, whatever the context noise is:
        the reference gives the timestep alone."""
        clean = latents.to(self.model.device, self.model.dtype)
        flow = self._pass(clean, self.config.context_noise, text, place, with_flow=self.exhaustive)
        estimate = None if flow is None else clean_from_flow(clean, flow, self.context_sigma)
        self.watch(Pass(kind, place, 0, self.config.context_noise, flow, estimate))

    def _on_device(self, draw: Tensor) -> Tensor:
        """Noise where the model is; from pinned memory, so that the copy waits for no kernel and no kernel for it."""
        on_gpu = self.model.device.type == "cuda"
        return (draw.pin_memory() if on_gpu else draw).to(self.model.device, self.model.dtype, non_blocking=on_gpu)

    def _pass(self, x: Tensor, timestep: float, text: TextMemory, place: Placement, with_flow=True) -> Tensor | None:
        timesteps_BF = torch.full(x.shape[:2], timestep, dtype=torch.float32, device=exact_device(x.device))
        return self.model.forward(x, timesteps_BF, text, self.memory, place, with_flow=with_flow)


def empty_memory(model: CausalWan, config: RolloutConfig, shape_BCHW: Sequence[int]) -> Memory:
    """Allocate the memory of a video of latents of that shape."""
    batch, _, height, width = shape_BCHW
    rows, columns = model.geometry.grid(height, width)
    return Memory(config, model.geometry.num_layers, rows * columns, model.like_token(batch))


def check_positions(config: RolloutConfig, end: int) -> None:
    """Refuse frames past the table of absolute positions, before anything is computed.

    Raises:
        PositionError: `end` frames since the start or the last cut are more than the table has.
    """
    if config.positions is Positions.ABSOLUTE and end > TABLE_FRAMES:
        raise PositionError(
            f"the video would reach frame {end} since its start or last cut, but absolute positions end at frame "
            f"{TABLE_FRAMES} ({pixel_frames(TABLE_FRAMES)} pixel frames); set positions to unbounded in the options, "
            f"or begin anew with a cut (discard cache)"
        )
