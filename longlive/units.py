"""Frames, pixel frames, blocks, seconds and pixels: the units of a video and how they convert.

Knows no tensor.
"""

import math

from .errors import ConfigError

FPS = 16  # pixel frames per second (Wan2.1)
PIXEL_FRAMES_PER_FRAME = 4  # the VAE's temporal compression; the first frame is one pixel frame
PIXELS_PER_CELL = 8  # the VAE's spatial compression
SIZE_STEP = 2 * PIXELS_PER_CELL  # of width and height in pixels: a token is 2 x 2 cells
MAX_SIZE = 1 << 14  # of width and height in pixels; no model makes as much
MAX_SECONDS = 24 * 60 * 60  # of one segment


def count_pixel_frames(frames: int) -> int:
    """Count the pixel frames that `frames` latent frames decode to: 4 n - 3, or 0."""
    return max(0, PIXEL_FRAMES_PER_FRAME * (frames - 1) + 1)


def convert_seconds_to_blocks(seconds: float, block: int) -> int:
    """Convert seconds to the nearest number of blocks, half up, at least one. Raises ConfigError if out of range."""
    if not (math.isfinite(seconds) and seconds > 0):
        raise ConfigError(f"the duration is {seconds:g} s; use more than 0 seconds")
    if seconds > MAX_SECONDS:
        raise ConfigError(f"the duration is {seconds:.10g} s; one segment may last {MAX_SECONDS} s (a day) at most")
    return max(1, math.floor(FPS * seconds / (PIXEL_FRAMES_PER_FRAME * block) + 0.5))


def convert_blocks_to_seconds(blocks: int, block: int) -> float:
    """Convert blocks of `block` frames to the seconds they add to a running video."""
    return blocks * block * PIXEL_FRAMES_PER_FRAME / FPS
