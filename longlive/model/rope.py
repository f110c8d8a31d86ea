"""Rotary positions in time, height and width (Wan2.1; RoFormer, arXiv 2104.09864).

Pairs of neighbouring channels turn by the angle position x frequency. The first pairs of a head follow the frame, the
next the row, the last the column. Angles are float64, the rotation is float32.
Dimension key: T tokens of one pass, S tokens of the sink, N heads, H channels per head, P = H / 2 pairs.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .dtypes import choose_exact_device

BASE = 10000.0


def make_frequencies(head_dim: int, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor, Tensor]:
    """Make the angles per position, float64, of the pairs that follow the frame, the row and the column.

    A head of 64 pairs has 22, 21 and 21 of them.
    """
    spatial = 2 * (head_dim // 6)

    def axis(channels: int) -> Tensor:
        exponent = torch.arange(0, channels, 2, dtype=torch.float64, device=device) / channels
        return 1.0 / BASE**exponent

    return axis(head_dim - 2 * spatial), axis(spatial), axis(spatial)


def make_table(start: int, frames: int, grid: tuple[int, int], head_dim: int, device: torch.device | str) -> Tensor:
    """Make the rotations [T, 1, P, 2, 2], float32, of `frames` frames of `grid` tokens from position `start` on."""
    exact = choose_exact_device(device)
    by_frame, by_row, by_column = make_frequencies(head_dim, exact)
    rows, columns = grid

    def turns(first: int, count: int, frequency: Tensor) -> Tensor:
        angle = torch.outer(torch.arange(first, first + count, dtype=torch.float64, device=exact), frequency)
        cos, sin = angle.cos(), angle.sin()
        turn = torch.stack([torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)], -2)
        return turn.float().to(device)  # one axis is small to copy; the target device builds the full table

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
    """Rotate the channel pairs of every token, in float32; the result has the dtype of `x`."""
    return rotate_pairs(x_BTNH, table_T1P22).to(x_BTNH.dtype)


def rotate_pairs(x_BTNH: Tensor, table_T1P22: Tensor) -> Tensor:
    """Rotate the channel pairs of every token; the result is float32."""
    pairs = x_BTNH.float().unflatten(-1, (-1, 1, 2))
    turned = table_T1P22[..., 0] * pairs[..., 0]
    return turned.addcmul_(table_T1P22[..., 1], pairs[..., 1]).flatten(-2)


@dataclass(frozen=True, slots=True)
class Rotation:
    """The rotations of one pass: of its own tokens, and of the sink if that has moved."""

    pass_T1P22: Tensor
    sink_T1P22: Tensor | None = None
    rotate: Callable[[Tensor, Tensor], Tensor] = rotate_pairs

    def rotate_pass(self, x_BTNH: Tensor) -> Tensor:
        return self.rotate(x_BTNH, self.pass_T1P22).to(x_BTNH.dtype)

    def rotate_sink(self, k_BSNH: Tensor) -> Tensor:
        assert self.sink_T1P22 is not None
        return self.rotate(k_BSNH, self.sink_T1P22).to(k_BSNH.dtype)
