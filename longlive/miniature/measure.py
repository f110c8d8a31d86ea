"""What a video of the miniature's world shows, read from its pixels alone; right on the world's own films.

Dimension key: F pixel frames, H rows, W columns, S shapes, P places.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as nnf
from torch import Tensor

from .grammar import ATTRIBUTES, Background, Colour, Motion, Scene, Shape
from .world import PALETTE, SIZE, SKIES, SPEED, STEP, coverage, grid, wrapped

VIVID = 0.38  # spread of a pixel's three colours above which it belongs to the thing; no sky has it
FEWEST = 24  # pixels, of something that can be told
STRIDE = 4  # pixel frames over which a motion is told
REACH = 2  # pixels around the middle in which a shape is tried, every half a pixel
GLOW = 6  # pixels around the thing where the sky is tinted by it
NOTHING = -1  # the index of what cannot be told


@dataclass(frozen=True, slots=True)
class Observation:
    """What each pixel frame shows. Indices follow the order of the grammar's words."""

    colour_F: Tensor
    shape_F: Tensor
    background_F: Tensor
    motion_F: Tensor  # since `STRIDE` frames before; that of the first frames is the first that can be told
    centre_F2: Tensor  # (x, y) in pixels, on the torus
    area_F: Tensor  # pixels
    likeness_F: Tensor  # to the shape it was taken for, as intersection over union
    sky_FHW: Tensor  # how light the sky is, 0..1, NaN on the thing and in its glow


def observed(pixels_FCHW: Tensor) -> Observation:
    """Read pixels [F, 3, 64, 64], -1..1."""
    rgb_FCHW = (pixels_FCHW.float() + 1) / 2
    mask_FHW = rgb_FCHW.amax(1) - rgb_FCHW.amin(1) > VIVID
    area_F = mask_FHW.sum((1, 2)).float()
    is_there_F = area_F >= FEWEST

    weight_FHW = mask_FHW / area_F.clamp_min(1)[:, None, None]
    centre_F2 = circular_mean(weight_FHW)
    mean_F3 = (rgb_FCHW * weight_FHW.unsqueeze(1)).sum((2, 3))
    colour_F = nearest(chroma(mean_F3), chroma(torch.tensor([PALETTE[colour] for colour in Colour])))
    likeness_FS = likeness(mask_FHW, centre_F2)

    sky_F3 = median_outside(mask_FHW, rgb_FCHW)
    skies = [[(a + (b + c) / 2) / 2 for a, b, c in zip(*SKIES[kind], strict=True)] for kind in Background]
    return Observation(
        colour_F=colour_F.where(is_there_F, NOTHING),
        shape_F=likeness_FS.argmax(1).where(is_there_F, NOTHING),
        background_F=nearest(sky_F3, torch.tensor(skies)),
        motion_F=told_motion(centre_F2, is_there_F),
        centre_F2=centre_F2,
        area_F=area_F,
        likeness_F=likeness_FS.amax(1),
        sky_FHW=torch.where(with_glow(mask_FHW), torch.nan, rgb_FCHW.mean(1)),
    )


def right(observation: Observation, scenes: Sequence[tuple[int, Scene]]) -> dict[str, Tensor]:
    """Which frames show what their prompt says, by attribute [F], bool. `scenes` are (first pixel frame, scene).

    At once: what fades or turns where a scene begins is not right yet.
    """
    is_right = {}
    for name, kind in ATTRIBUTES.items():
        seen_F = getattr(observation, f"{name}_F")
        wanted_F = torch.full_like(seen_F, NOTHING)
        for begin, scene in scenes:
            wanted_F[begin:] = list(kind).index(getattr(scene, name))
        is_right[name] = (seen_F == wanted_F) & (wanted_F != NOTHING)
    return is_right


def jump(observation: Observation, frame: int) -> float:
    """How far the thing moves between a pixel frame and the one before, in pixels on the torus."""
    return _way(observation, frame - 1, frame)


def leap(observation: Observation, frame: int, later: int) -> float:
    """How many pixels farther the thing is, `later` pixel frames after the one before `frame`, than it can have moved.

    A decoder spreads a cut over several pixel frames; what is not in its place after them has leapt all the same.
    """
    return max(0.0, _way(observation, frame - 1, frame - 1 + later) - SPEED * later)


def _way(observation: Observation, begin: int, end: int) -> float:
    """How far apart the thing is in two pixel frames; as far as can be where one of them shows none."""
    if observation.area_F[[begin, end]].amin() < FEWEST:
        return math.hypot(SIZE / 2, SIZE / 2)
    return math.hypot(*wrapped(observation.centre_F2[end] - observation.centre_F2[begin]).tolist())


def sky_correlation(sky_HW: Tensor, other_HW: Tensor) -> float:
    """The correlation of the skies of two pixel frames where neither is hidden, -1..1; 0 where there is none."""
    both = ~(sky_HW.isnan() | other_HW.isnan())
    if both.sum() < 2:
        return 0.0
    return torch.corrcoef(torch.stack([sky_HW[both], other_HW[both]]))[0, 1].nan_to_num().item()


def circular_mean(weight_FHW: Tensor) -> Tensor:
    """The middle of a weight on the torus, (x, y) in pixels [F, 2]."""
    angles = torch.arange(SIZE) * (2 * math.pi / SIZE)
    turn = torch.stack([angles.cos(), angles.sin()])
    middles = []
    for axis in (1, 2):  # summed over rows: x; over columns: y
        cos, sin = turn @ weight_FHW.sum(axis).T
        middles.append(torch.atan2(sin, cos) * (SIZE / (2 * math.pi)) % SIZE)
    return torch.stack(middles, -1)


def told_motion(centre_F2: Tensor, is_there_F: Tensor) -> Tensor:
    """The motion nearest to the step since `STRIDE` frames before [F]."""
    if len(centre_F2) <= STRIDE:
        return torch.full((len(centre_F2),), NOTHING)
    steps = SPEED * STRIDE * torch.tensor([STEP[motion] for motion in Motion], dtype=torch.float32)
    index = nearest(wrapped(centre_F2[STRIDE:] - centre_F2[:-STRIDE]), steps)
    index = index.where(is_there_F[STRIDE:] & is_there_F[:-STRIDE], NOTHING)
    return torch.cat([index[:1].expand(STRIDE), index])


def likeness(mask_FHW: Tensor, centre_F2: Tensor) -> Tensor:
    """Intersection over union with each shape [F, S], the best of the places around the middle."""
    templates = templates_SPN()
    x, y = grid()
    home = SIZE // 2
    columns, rows = (
        (axis.long() + centre_F2[:, i, None, None].round().long() - home) % SIZE for i, axis in enumerate((x, y))
    )
    frames = torch.arange(len(mask_FHW))[:, None, None]
    mask_FN = mask_FHW[frames, rows, columns].flatten(1).float()  # brought to the middle of the picture
    both_FSP = torch.einsum("fn,spn->fsp", mask_FN, templates)
    either_FSP = mask_FN.sum(1)[:, None, None] + templates.sum(2) - both_FSP
    return (both_FSP / either_FSP).amax(2)


@functools.cache
def templates_SPN() -> Tensor:
    """Each shape with its mass in the middle of the picture or up to `REACH` pixels off it, 0 or 1; N = H W."""
    offset = torch.arange(-REACH, REACH + 0.5, 0.5)
    places_P2 = torch.cartesian_prod(offset, offset)
    weights = torch.eye(len(Shape))
    home = torch.full((len(Shape), 2), SIZE / 2)
    alpha_SHW = coverage(weights, home)[0]
    mass_S2 = circular_mean(alpha_SHW / alpha_SHW.sum((1, 2), keepdim=True))
    off_centre_S2 = ((mass_S2 - home) * 2).round() / 2
    centres = home[:, None] - off_centre_S2[:, None] + places_P2
    alpha = coverage(weights[:, None].expand(-1, len(places_P2), -1), centres)[0]
    return (alpha > 0.5).flatten(2).float()


def chroma(rgb: Tensor) -> Tensor:
    """The direction of a colour away from grey."""
    away = rgb - rgb.mean(-1, keepdim=True)
    return away / away.norm(dim=-1, keepdim=True).clamp_min(1e-6)


def nearest(values_FC: Tensor, choices_NC: Tensor) -> Tensor:
    return torch.cdist(values_FC, choices_NC).argmin(1)


def median_outside(mask_FHW: Tensor, rgb_FCHW: Tensor) -> Tensor:
    """The median colour [F, 3] of what is not masked."""
    shown = rgb_FCHW.masked_fill(mask_FHW.unsqueeze(1), torch.nan)
    return shown.flatten(2).nanmedian(-1).values.nan_to_num()


def with_glow(mask_FHW: Tensor) -> Tensor:
    """The mask and the pixels around it that the thing's glow tints."""
    padded = nnf.pad(mask_FHW[:, None].float(), (GLOW,) * 4, mode="circular")
    across = nnf.max_pool2d(padded, (1, 2 * GLOW + 1), stride=1)
    return nnf.max_pool2d(across, (2 * GLOW + 1, 1), stride=1)[:, 0] > 0
