"""The miniature's world: a torus of 64 x 64 pixels where one thing moves, and its clips, exact to the pixel.

What leaves at one edge enters at the other, so that "moves left" is always true. At a switch the thing continues from
its place, turns at once, and fades into its new colour, shape and background over half a second. Each clip has its own
sky (waves of random phase, a random tint), which no prompt names: only the KV cache can keep it.

Dimension key: B clips, F pixel frames, H rows, W columns.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .grammar import Background, Colour, Motion, Scene, Shape, Start

SIZE = 64  # pixels
SPEED = 1  # pixels per pixel frame
FADE = 8  # pixel frames
OFFSET = 20  # pixels from the middle to a start; with SPEED 1, every latent begins at a multiple of 4 pixels
RADIUS = 12.5  # pixels, of the ring; the other shapes have about the same area
EDGE = 1.0  # pixels over which a thing fades out
PALETTE = {
    Colour.RED: (0.92, 0.16, 0.20),
    Colour.YELLOW: (0.98, 0.82, 0.12),
    Colour.GREEN: (0.14, 0.72, 0.26),
    Colour.CYAN: (0.10, 0.80, 0.86),
    Colour.BLUE: (0.16, 0.30, 0.96),
    Colour.PINK: (0.94, 0.22, 0.78),
}
SKIES = {  # colours of the valleys, and of the crests at either end of the tint
    Background.NIGHT: ((0.04, 0.05, 0.14), (0.10, 0.20, 0.32), (0.26, 0.13, 0.32)),
    Background.DUSK: ((0.36, 0.30, 0.40), (0.62, 0.50, 0.44), (0.56, 0.44, 0.58)),
    Background.DAY: ((0.66, 0.78, 0.86), (0.97, 0.96, 0.90), (0.90, 0.94, 0.98)),
}
WAVES = ((1, 0, 0.6), (0, 1, 0.6), (1, 1, 0.45), (1, -1, 0.45))  # turns across W and H, height
STEP = {Motion.LEFT: (-1, 0), Motion.RIGHT: (1, 0), Motion.UP: (0, -1), Motion.DOWN: (0, 1), Motion.STILL: (0, 0)}


@dataclass(frozen=True, slots=True)
class Sky:
    """What no prompt names: the phases of a clip's waves, in turns, and its tint, 0..1."""

    phases: tuple[float, float, float, float]
    tint: float


@dataclass(frozen=True, slots=True)
class Clip:
    """Scenes in order, each with its first pixel frame; the first begins at 0."""

    scenes: tuple[tuple[int, Scene], ...]
    sky: Sky

    def find_scene(self, frame: int) -> Scene:
        return next(scene for begin, scene in reversed(self.scenes) if begin <= frame)

    def locate_thing(self, pixel_frames: int) -> list[tuple[float, float]]:
        """Locate the thing's centre in each pixel frame, (x, y) in pixels on the torus."""
        x, y = locate_start(self.scenes[0][1].start)
        centres = []
        for frame in range(pixel_frames):
            if frame:
                dx, dy = STEP[self.find_scene(frame).motion]
                x, y = (x + SPEED * dx) % SIZE, (y + SPEED * dy) % SIZE
            centres.append((x, y))
        return centres


def locate_start(start: Start) -> tuple[float, float]:
    row, column = start
    return SIZE / 2 + OFFSET * column, SIZE / 2 + OFFSET * row


def wrap(distance: Tensor) -> Tensor:
    """Wrap a distance to the shortest way around the torus, -SIZE/2 .. SIZE/2."""
    return (distance + SIZE / 2) % SIZE - SIZE / 2


def compute_signed_distances(x: Tensor, y: Tensor) -> Tensor:
    """Compute how far outside each shape a point (x, y) from its centre is, in pixels: [shape, ...]."""
    ring = (torch.hypot(x, y) - 0.68 * RADIUS).abs() - 0.32 * RADIUS
    half, corner = 0.76 * RADIUS, 0.12 * RADIUS
    over_x, over_y = x.abs() - half + corner, y.abs() - half + corner
    square = torch.hypot(over_x.clamp_min(0), over_y.clamp_min(0)) + torch.maximum(over_x, over_y).clamp_max(0) - corner
    inner = 0.62 * RADIUS  # of the circle inside an equilateral triangle
    slope = math.sqrt(3) / 2
    triangle = torch.maximum(y - inner, torch.maximum(slope * x - y / 2, -slope * x - y / 2) - inner)
    return torch.stack([ring, square, triangle])


def make_grid(device=None) -> tuple[Tensor, Tensor]:
    """Make the pixels' coordinates (x, y), each [H, W]."""
    axis = torch.arange(SIZE, dtype=torch.float32, device=device)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    return x, y


def compute_coverage(weights: Tensor, centres: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute how much of each pixel a thing covers, 0..1, its signed distance, and (x, y) from its centre.

    `weights` [..., 3] blend the shapes, `centres` [..., 2] are (x, y). All results are [..., H, W].
    """
    x, y = make_grid(centres.device)
    dx = wrap(x - centres[..., 0, None, None])
    dy = wrap(y - centres[..., 1, None, None])
    distance = torch.einsum("s...hw,...s->...hw", compute_signed_distances(dx, dy), weights)
    return torch.sigmoid(-distance * (3 / EDGE)), distance, dx, dy


def render_clips(clips: Sequence[Clip], pixel_frames: int) -> tuple[Tensor, Tensor]:
    """Render the first pixel frames of each clip [B F 3 H W], -1..1, and how much the thing covers [B F H W]."""
    colours, shapes, skies = (
        _fade(clips, pixel_frames, encode) for encode in (_encode_colour, _encode_shape, _encode_sky)
    )
    centres = torch.tensor([clip.locate_thing(pixel_frames) for clip in clips])
    alpha, distance, dx, dy = compute_coverage(shapes, centres)

    x, y = make_grid()
    turns = torch.tensor([(kx, ky) for kx, ky, _ in WAVES], dtype=torch.float32)
    phases = torch.tensor([clip.sky.phases for clip in clips])
    waves = torch.einsum("nt,thw->nhw", turns, torch.stack([x, y])) / SIZE + phases[..., None, None]
    heights = torch.tensor([height for _, _, height in WAVES])
    crest_BHW = torch.sigmoid(1.6 * torch.einsum("bnhw,n->bhw", (2 * math.pi * waves).cos(), heights))
    valley, high = skies[..., :3, None, None], skies[..., 3:, None, None]
    sky = valley + (high - valley) * crest_BHW[:, None, None]

    light = 1 - 0.16 * (dx + dy) / RADIUS / 2 + 0.10 * torch.exp(-(((distance + 2.2) / 1.2) ** 2))
    thing = (colours[..., None, None] * light.unsqueeze(2)).clamp(0, 1)
    glow = 0.22 * torch.exp(-distance.clamp_min(0) / 4).unsqueeze(2)
    sky = sky + glow * (colours[..., None, None] - sky)
    pixels = torch.lerp(sky, thing, alpha.unsqueeze(2))
    return 2 * pixels - 1, alpha


def _encode_colour(scene: Scene, _: Sky) -> tuple[float, ...]:
    return PALETTE[scene.colour]


def _encode_shape(scene: Scene, _: Sky) -> tuple[float, ...]:
    return tuple(float(shape is scene.shape) for shape in Shape)


def _encode_sky(scene: Scene, sky: Sky) -> tuple[float, ...]:
    valley, one, other = SKIES[scene.background]
    return *valley, *(a + sky.tint * (b - a) for a, b in zip(one, other, strict=True))


def _fade(clips: Sequence[Clip], pixel_frames: int, encode) -> Tensor:
    """Encode an attribute of every pixel frame [B, F, values]; each scene fades in as it begins."""
    rows = []
    for clip in clips:
        values = torch.tensor([encode(scene, clip.sky) for _, scene in clip.scenes])
        row = values[:1].expand(pixel_frames, -1)
        for (begin, _), value in zip(clip.scenes[1:], values[1:], strict=True):
            ramp = ((torch.arange(pixel_frames) - begin + 1) / FADE).clamp(0, 1)
            ramp = (ramp * ramp * (3 - 2 * ramp)).unsqueeze(1)
            row = row + ramp * (value - row)
        rows.append(row)
    return torch.stack(rows)
