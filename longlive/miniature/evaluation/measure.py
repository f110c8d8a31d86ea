"""What a video of the miniature's world shows, read from its pixels alone; exact for the world's own clips.

Dimension key: F pixel frames, H rows, W columns, S shapes, P places.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as nnf
from torch import Tensor

from ..grammar import ATTRIBUTES, Background, Colour, Motion, Scene, Shape
from ..world import PALETTE, SHADOW_PLACE, SIZE, SKIES, SPEED, STEP, compute_coverage, make_grid, wrap

VIVID = 0.38  # spread of a pixel's three colours above which it belongs to the thing; no sky reaches it
MIN_AREA = 24  # pixels, of a thing that can be recognised
STRIDE = 4  # pixel frames over which a motion is measured
REACH = 2  # pixels around the middle within which a shape is tried, in steps of half a pixel
SHADOW_REACH = 5  # pixels around the shadow's place, the thing's own included
UNKNOWN = -1  # the index of what cannot be recognised


@dataclass(frozen=True, slots=True)
class Observation:
    """What each pixel frame shows. Indices follow the order of the grammar's words."""

    colour_F: Tensor
    shape_F: Tensor
    background_F: Tensor
    motion_F: Tensor  # over the last `STRIDE` frames; the first frames take the first motion measured
    centre_F2: Tensor  # (x, y) in pixels, on the torus
    area_F: Tensor  # pixels
    likeness_F: Tensor  # to the recognised shape, as intersection over union
    sky_FHW: Tensor  # lightness of the sky, 0..1, NaN on the thing and in its shadow


def observe(pixels_FCHW: Tensor) -> Observation:
    """Read pixels [F, 3, 64, 64], -1..1."""
    rgb_FCHW = (pixels_FCHW.float() + 1) / 2
    mask_FHW = rgb_FCHW.amax(1) - rgb_FCHW.amin(1) > VIVID
    area_F = mask_FHW.sum((1, 2)).float()
    is_there_F = area_F >= MIN_AREA

    weight_FHW = mask_FHW / area_F.clamp_min(1)[:, None, None]
    centre_F2 = compute_circular_mean(weight_FHW)
    mean_F3 = (rgb_FCHW * weight_FHW.unsqueeze(1)).sum((2, 3))
    colour_F = find_nearest(
        compute_chroma(mean_F3), compute_chroma(torch.tensor([PALETTE[colour] for colour in Colour]))
    )
    likeness_FS = compare_with_shapes(mask_FHW, centre_F2)

    sky_F3 = compute_median_outside(mask_FHW, rgb_FCHW)
    return Observation(
        colour_F=colour_F.where(is_there_F, UNKNOWN),
        shape_F=likeness_FS.argmax(1).where(is_there_F, UNKNOWN),
        background_F=find_nearest(sky_F3, torch.tensor([SKIES[kind].average() for kind in Background])),
        motion_F=recognise_motion(centre_F2, is_there_F),
        centre_F2=centre_F2,
        area_F=area_F,
        likeness_F=likeness_FS.amax(1),
        sky_FHW=torch.where(widen_by_shadow(mask_FHW), torch.nan, rgb_FCHW.mean(1)),
    )


def find_right_frames(observation: Observation, scenes: Sequence[tuple[int, Scene]]) -> dict[str, Tensor]:
    """Find frames that show what their prompt says, by attribute [F], bool. `scenes` are (first pixel frame, scene).

    Strict: while a thing still fades or turns after a switch, its frames are not right.
    """
    is_right = {}
    for name, kind in ATTRIBUTES.items():
        seen_F = getattr(observation, f"{name}_F")
        wanted_F = torch.full_like(seen_F, UNKNOWN)
        for begin, scene in scenes:
            wanted_F[begin:] = list(kind).index(getattr(scene, name))
        is_right[name] = (seen_F == wanted_F) & (wanted_F != UNKNOWN)
    return is_right


def measure_jump(observation: Observation, frame: int) -> float:
    """Measure how far the thing moves from the pixel frame before to this one, in pixels on the torus."""
    return _measure_distance(observation, frame - 1, frame)


def measure_leap(observation: Observation, frame: int, later: int) -> float:
    """Measure the pixels by which the thing moved farther than it can, in the `later` pixel frames after `frame` - 1.

    A decoder spreads a cut over several pixel frames, so the cut shows only after them.
    """
    return max(0.0, _measure_distance(observation, frame - 1, frame - 1 + later) - SPEED * later)


def _measure_distance(observation: Observation, begin: int, end: int) -> float:
    """Measure the distance of the thing between two pixel frames; the longest possible if one of them shows none."""
    if observation.area_F[[begin, end]].amin() < MIN_AREA:
        return math.hypot(SIZE / 2, SIZE / 2)
    return math.hypot(*wrap(observation.centre_F2[end] - observation.centre_F2[begin]).tolist())


def measure_way(pixels_FCHW: Tensor, ends: Sequence[int]) -> Tensor:
    """Measure how far the mean colour of the picture has come from the first of `ends` to the last: 0 to 1.

    Each is read over the STRIDE pixel frames before it.
    """
    means = torch.stack([pixels_FCHW[end - STRIDE : end].mean((0, 2, 3)) for end in ends])
    way = means[-1] - means[0]
    return (means - means[0]) @ way / (way @ way)


def correlate_skies(sky_HW: Tensor, other_HW: Tensor) -> float:
    """Correlate the skies of two pixel frames where both are visible, -1..1; 0 if there is no correlation."""
    both = ~(sky_HW.isnan() | other_HW.isnan())
    if both.sum() < 2:
        return 0.0
    return torch.corrcoef(torch.stack([sky_HW[both], other_HW[both]]))[0, 1].nan_to_num().item()


def compute_circular_mean(weight_FHW: Tensor) -> Tensor:
    """Compute the middle of a weight on the torus, (x, y) in pixels [F, 2]."""
    angles = torch.arange(SIZE) * (2 * math.pi / SIZE)
    turn = torch.stack([angles.cos(), angles.sin()])
    middles = []
    for axis in (1, 2):  # summed over rows: x; over columns: y
        cos, sin = turn @ weight_FHW.sum(axis).T
        middles.append(torch.atan2(sin, cos) * (SIZE / (2 * math.pi)) % SIZE)
    return torch.stack(middles, -1)


def recognise_motion(centre_F2: Tensor, is_there_F: Tensor) -> Tensor:
    """Find the motion [F] nearest to the step over the last `STRIDE` frames."""
    if len(centre_F2) <= STRIDE:
        return torch.full((len(centre_F2),), UNKNOWN)
    steps = SPEED * STRIDE * torch.tensor([STEP[motion] for motion in Motion], dtype=torch.float32)
    index = find_nearest(wrap(centre_F2[STRIDE:] - centre_F2[:-STRIDE]), steps)
    index = index.where(is_there_F[STRIDE:] & is_there_F[:-STRIDE], UNKNOWN)
    return torch.cat([index[:1].expand(STRIDE), index])


def compare_with_shapes(mask_FHW: Tensor, centre_F2: Tensor) -> Tensor:
    """Compute the intersection over union with each shape [F, S], the best over the places around the middle."""
    templates = make_templates()
    x, y = make_grid()
    home = SIZE // 2
    columns, rows = (
        (axis.long() + centre_F2[:, i, None, None].round().long() - home) % SIZE for i, axis in enumerate((x, y))
    )
    frames = torch.arange(len(mask_FHW))[:, None, None]
    mask_FN = mask_FHW[frames, rows, columns].flatten(1).float()  # moved to the middle of the picture
    both_FSP = torch.einsum("fn,spn->fsp", mask_FN, templates)
    either_FSP = mask_FN.sum(1)[:, None, None] + templates.sum(2) - both_FSP
    return (both_FSP / either_FSP).amax(2)


@functools.cache
def make_templates() -> Tensor:
    """Make templates [S, P, H W], 0 or 1: each shape with its mass up to `REACH` pixels from the picture's middle."""
    offset = torch.arange(-REACH, REACH + 0.5, 0.5)
    places_P2 = torch.cartesian_prod(offset, offset)
    weights = torch.eye(len(Shape))
    home = torch.full((len(Shape), 2), SIZE / 2)
    alpha_SHW = compute_coverage(weights, home)[0]
    mass_S2 = compute_circular_mean(alpha_SHW / alpha_SHW.sum((1, 2), keepdim=True))
    off_centre_S2 = ((mass_S2 - home) * 2).round() / 2
    centres = home[:, None] - off_centre_S2[:, None] + places_P2
    alpha = compute_coverage(weights[:, None].expand(-1, len(places_P2), -1), centres)[0]
    return (alpha > 0.5).flatten(2).float()


def compute_chroma(rgb: Tensor) -> Tensor:
    """Compute the direction of a colour away from grey."""
    away = rgb - rgb.mean(-1, keepdim=True)
    return away / away.norm(dim=-1, keepdim=True).clamp_min(1e-6)


def find_nearest(values_FC: Tensor, choices_NC: Tensor) -> Tensor:
    return torch.cdist(values_FC, choices_NC).argmin(1)


def compute_median_outside(mask_FHW: Tensor, rgb_FCHW: Tensor) -> Tensor:
    """Compute the median colour [F, 3] of what is not masked."""
    shown = rgb_FCHW.masked_fill(mask_FHW.unsqueeze(1), torch.nan)
    return shown.flatten(2).nanmedian(-1).values.nan_to_num()


def widen_by_shadow(mask_FHW: Tensor) -> Tensor:
    """Widen a mask by the pixels that the thing's shadow darkens."""
    right, down = (round(way) for way in SHADOW_PLACE)
    size = 2 * SHADOW_REACH + 1
    padded = nnf.pad(mask_FHW.roll((down, right), (-2, -1))[:, None].float(), (SHADOW_REACH,) * 4, mode="circular")
    across = nnf.max_pool2d(padded, (1, size), stride=1)
    return nnf.max_pool2d(across, (size, 1), stride=1)[:, 0] > 0
