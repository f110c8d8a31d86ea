"""Rotary positions in time, height and width (Wan2.1; RoFormer, arXiv 2104.09864).

Pairs of neighbouring channels turn by angle position x frequency: of the pairs of a head the first part follows the
frame, then the row, then the column. Angles are float64, the rotation float32.
Dimension key: T tokens of one call, N heads, H channels per head, P = H / 2 pairs.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..precision import exact_device

BASE = 10000.0


def frequencies(head_dim: int, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor, Tensor]:
    """Angle per position of the pairs that follow frame, row and column, float64: 22, 21 and 21 of 64."""
    spatial = 2 * (head_dim // 6)

    def axis(channels: int) -> Tensor:
        exponent = torch.arange(0, channels, 2, dtype=torch.float64, device=device) / channels
        return 1.0 / BASE**exponent

    return axis(head_dim - 2 * spatial), axis(spatial), axis(spatial)


def table(start: int, frames: int, grid: tuple[int, int], head_dim: int, device: torch.device | str) -> Tensor:
    """The rotations [T, 1, P, 2, 2], float32, of `frames` frames of `grid` tokens whose first lies at `start`."""
    exact = exact_device(device)
    by_frame, by_row, by_column = frequencies(head_dim, exact)
    rows, columns = grid

    def turns(first: int, count: int, frequency: Tensor) -> Tensor:
        angle = torch.outer(torch.arange(first, first + count, dtype=torch.float64, device=exact), frequency)
        cos, sin = angle.cos(), angle.sin()
        turn = torch.stack([torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)], -2)
        return turn.float().to(device)  # a few rows; the table is put together where it is used

    table_FHWP22 = torch.cat(
        [
            turns(start, frames, by_frame)[:, None, None].expand(-1, rows, columns, -1, -1, -1),
            turns(0, rows, by_row)[None, :, None].expand(frames, -1, columns, -1, -1, -1),
            turns(0, columns, by_column)[None, None, :].expand(frames, rows, -1, -1, -1, -1),
        ],
        dim=3,
    )
    return table_FHWP22.flatten(0, 2)[:, None]


def rotate(x_BTNH: Tensor, table_T1P22: Tensor) -> Tensor:
    """Turn the channel pairs of every token; float32 inside, `x`'s dtype outside."""
    pairs = x_BTNH.float().unflatten(-1, (-1, 1, 2))
    turned = table_T1P22[..., 0] * pairs[..., 0]
    return turned.addcmul_(table_T1P22[..., 1], pairs[..., 1]).flatten(-2).to(x_BTNH.dtype)


@dataclass(frozen=True, slots=True)
class Rotation:
    """The rotations of one call: of its own tokens, and of the sink where that has moved."""

    call_T1P22: Tensor
    sink_T1P22: Tensor | None = None

    def of_call(self, x_BTNH: Tensor) -> Tensor:
        return rotate(x_BTNH, self.call_T1P22)

    def of_sink(self, k_BSNH: Tensor) -> Tensor:
        assert self.sink_T1P22 is not None
        return rotate(k_BSNH, self.sink_T1P22)
