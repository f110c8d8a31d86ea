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

from ..units import PIXEL_FRAMES_PER_FRAME
from .grammar import Background, Colour, Motion, Scene, Shape, Start

SIZE = 64  # pixels
SPEED = 1  # pixels per pixel frame
FADE = 8  # pixel frames
FRAME_STEP = SPEED * PIXEL_FRAMES_PER_FRAME  # pixels that a thing moves in a latent frame
OFFSET = 5 * FRAME_STEP  # pixels from the middle to a start; so every latent begins at a multiple of the step
RADIUS = 12.5  # pixels, of the ring; the other shapes have about the same area
EDGE = 1.0  # pixels over which a thing fades out
PALETTE = {
    Colour.RED: (0.95, 0.18, 0.22),
    Colour.YELLOW: (1.00, 0.80, 0.12),
    Colour.GREEN: (0.08, 0.78, 0.32),
    Colour.CYAN: (0.08, 0.78, 0.88),
    Colour.BLUE: (0.18, 0.36, 0.98),
    Colour.PINK: (0.98, 0.25, 0.76),
}


@dataclass(frozen=True, slots=True)
class SkyColours:
    """The colours of a background: of its air above and below, and of its clouds at either end of the tint."""

    above: tuple[float, float, float]
    below: tuple[float, float, float]
    clouds: tuple[tuple[float, float, float], tuple[float, float, float]]

    def average(self) -> tuple[float, ...]:
        """Average the colours: half air, half clouds."""
        return tuple(sum(values) / 4 for values in zip(self.above, self.below, *self.clouds, strict=True))


SKIES = {
    Background.NIGHT: SkyColours((0.04, 0.05, 0.16), (0.13, 0.13, 0.31), ((0.15, 0.27, 0.41), (0.33, 0.22, 0.43))),
    Background.DUSK: SkyColours((0.40, 0.33, 0.49), (0.70, 0.49, 0.46), ((0.93, 0.74, 0.64), (0.74, 0.55, 0.69))),
    Background.DAY: SkyColours((0.53, 0.73, 0.85), (0.70, 0.86, 0.92), ((0.98, 0.95, 0.89), (0.91, 0.95, 0.99))),
}
WAVES = ((1, 0, 0.8), (0, 1, 0.9), (1, 1, 0.6), (1, -1, 0.6))  # turns across W and H, height
BEND = 0.5  # radians by which a wave bends its neighbour
CLOUD_EDGE = 1.6  # steepness of a cloud's edge; the sky between is clear
BEVEL = 3.6  # pixels over which a thing's rim bends away from the viewer
LIGHT = (-0.5, -0.6)  # where the light comes from, (x, y); the rest of its unit vector points at the viewer
SHADOW_PLACE, SHADOW_EDGE, SHADOW_DEPTH = (3.0, 4.0), 4.5, 0.45  # pixels (x, y), pixels, darkness 0..1
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
    shift: tuple[int, int] = (0, 0)  # pixels (x, y) from where the first scene starts to where the thing is

    def find_scene(self, frame: int) -> Scene:
        return next(scene for begin, scene in reversed(self.scenes) if begin <= frame)

    def locate_thing(self, pixel_frames: int) -> list[tuple[float, float]]:
        """Locate the thing's centre in each pixel frame, (x, y) in pixels on the torus."""
        x, y = (at + by for at, by in zip(locate_start(self.scenes[0][1].start), self.shift, strict=True))
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


def compute_coverage(weights: Tensor, centres: Tensor, edge: float = EDGE) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute how much of each pixel a thing covers, 0..1, its signed distance, and (x, y) from its centre.

    `weights` [..., 3] blend the shapes, `centres` [..., 2] are (x, y); the thing fades out over `edge` pixels. All
    results are [..., H, W].
    """
    x, y = make_grid(centres.device)
    dx = wrap(x - centres[..., 0, None, None])
    dy = wrap(y - centres[..., 1, None, None])
    distance = torch.einsum("s...hw,...s->...hw", compute_signed_distances(dx, dy), weights)
    return torch.sigmoid(-distance * (3 / edge)), distance, dx, dy


def render_clips(clips: Sequence[Clip], pixel_frames: int) -> tuple[Tensor, Tensor]:
    """Render the first pixel frames of each clip [B F 3 H W], -1..1, and how much the thing covers [B F H W]."""
    colours, shapes, skies = (
        _fade(clips, pixel_frames, encode) for encode in (_encode_colour, _encode_shape, _encode_sky)
    )
    centres = torch.tensor([clip.locate_thing(pixel_frames) for clip in clips])
    alpha, distance, dx, dy = compute_coverage(shapes, centres)
    sky = paint_sky(skies, torch.tensor([clip.sky.phases for clip in clips]))
    shadow = compute_coverage(shapes, centres + torch.tensor(SHADOW_PLACE), SHADOW_EDGE)[0]
    sky = sky * (1 - SHADOW_DEPTH * shadow.unsqueeze(2))
    thing = light_thing(colours[..., None, None], distance, dx, dy)
    return 2 * torch.lerp(sky, thing, alpha.unsqueeze(2)) - 1, alpha


def paint_sky(colours_BFV: Tensor, phases_BN: Tensor) -> Tensor:
    """Paint skies [B F 3 H W], 0..1: air from above to below, and clouds where waves that bend each other are high."""
    x, y = make_grid()
    turns = torch.tensor([(kx, ky) for kx, ky, _ in WAVES], dtype=torch.float32)
    angles_BNHW = 2 * math.pi * (torch.einsum("nt,thw->nhw", turns, torch.stack([x, y])) / SIZE
                                 + phases_BN[..., None, None])  # fmt: skip
    bent_BNHW = angles_BNHW + BEND * angles_BNHW.roll(1, 1).sin() + BEND * (2 * angles_BNHW.roll(2, 1)).sin() / 2
    heights = torch.tensor([height for _, _, height in WAVES])
    cloud_BHW = torch.sigmoid(CLOUD_EDGE * torch.einsum("bnhw,n->bhw", bent_BNHW.cos(), heights))
    lowness_HW = (1 - (2 * math.pi * (y + 0.5) / SIZE).cos()) / 2  # a cosine: the torus has no seam
    above, below, clouds = (colours_BFV[..., i : i + 3, None, None] for i in (0, 3, 6))
    return torch.lerp(torch.lerp(above, below, lowness_HW), clouds, cloud_BHW[:, None, None])


def light_thing(colours: Tensor, distance: Tensor, dx: Tensor, dy: Tensor) -> Tensor:
    """Light a thing of `colours` [B F 3 1 1] whose rim is round: pixels [B F 3 H W], 0..1.

    The gradient of the signed distance points outwards, so it is where a rim leans to.
    """
    out_x, out_y = (((distance.roll(-1, axis) - distance.roll(1, axis)) / 2).clamp(-1, 1) for axis in (-1, -2))
    lean = (1 + distance / BEVEL).clamp(0, 1)
    facing = (1 - (0.9 * lean).square()).sqrt()
    light_x, light_y = LIGHT
    light_z = math.sqrt(1 - light_x**2 - light_y**2)
    lit = 0.9 * lean * (out_x * light_x + out_y * light_y) + facing * light_z
    shade = (0.78 + 0.36 * lit - 0.03 * (dx + dy) / RADIUS).clamp_min(0).unsqueeze(2)
    glint = 0.36 * lit.clamp(0, 1).pow(12)
    thing = colours * shade ** (2 - colours)  # dark sides are deeper in colour, not grey
    return (thing + glint.unsqueeze(2) * (1 - thing)).clamp(0, 1)


def _encode_colour(scene: Scene, _: Sky) -> tuple[float, ...]:
    return PALETTE[scene.colour]


def _encode_shape(scene: Scene, _: Sky) -> tuple[float, ...]:
    return tuple(float(shape is scene.shape) for shape in Shape)


def _encode_sky(scene: Scene, sky: Sky) -> tuple[float, ...]:
    colours = SKIES[scene.background]
    one, other = colours.clouds
    return *colours.above, *colours.below, *(a + sky.tint * (b - a) for a, b in zip(one, other, strict=True))


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
