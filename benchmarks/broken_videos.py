"""Videos of the world, and faults to put into videos. Bytes are [F, H, W, 3]."""

import torch
from torch import Tensor

from longlive.evaluation.drift import Fault
from longlive.miniature.clips import choose_clip, seed_random
from longlive.miniature.grammar import Motion
from longlive.miniature.world import render_clips
from longlive.units import FPS
from longlive.video.pixels import to_bytes

BLOCK = 12  # pixel frames
SWITCH, MIDDLE, FRAMES = 105, 160, 249  # pixel frames of a world video: where its prompt changes, where a fault begins
TINT = (2.0, 0.0, -2.0)  # of 255 a second, for red, green and blue
FROZEN_FRAMES = 32


def render_world_video(number: int) -> Tensor:
    """Render the bytes of a clip of the world that always moves; its prompt changes at SWITCH."""
    draw = seed_random("drift", number)
    while True:
        clip = choose_clip(draw, (SWITCH,))
        if all(scene.motion is not Motion.STILL for _, scene in clip.scenes):
            return to_bytes(render_clips([clip], FRAMES)[0])


def tint(bytes_FHW3: Tensor, at: int = 0, by: tuple[float, float, float] = TINT) -> Tensor:
    """Let the colours drift from the first frame on, wherever else the fault would begin."""
    seconds_F = torch.arange(len(bytes_FHW3)) / FPS
    return (bytes_FHW3 + seconds_F.view(-1, 1, 1, 1) * torch.tensor(by)).clamp(0, 255).round().byte()


def freeze(bytes_FHW3: Tensor, at: int) -> Tensor:
    """Repeat a frame for two seconds."""
    frozen_FHW3 = bytes_FHW3.clone()
    frozen_FHW3[at : at + FROZEN_FRAMES] = bytes_FHW3[at]
    return frozen_FHW3


def skip_block(bytes_FHW3: Tensor, at: int) -> Tensor:
    """Leave out as many frames as a block has."""
    return torch.cat([bytes_FHW3[:at], bytes_FHW3[at + BLOCK :]])


FAULTS = {Fault.DRIFT: tint, Fault.FREEZE: freeze, Fault.JUMP: skip_block}
