"""Kernels for NVIDIA's GPUs, each one pass over memory, and their launches. Needs Triton, so it is imported on use.

They compute in float32 and round once, when they write. One program computes one token.
Dimension key: R tokens of all videos, G groups of R / G neighbouring tokens that share a row, D model width, B batch,
T tokens of one pass, N heads, H channels per head, P = H / 2 pairs.
"""

# pyright: reportCallIssue=false, reportIndexIssue=false
# (a kernel is launched with arguments that it does not name)

import torch
import triton
import triton.language as tl
from torch import Tensor

NUMBERS_PER_WARP = 512


@triton.jit
def _add_and_normalise(
    x, y, gate, factor, shift, total, out, width,
    gate_tokens, gate_stride, factor_tokens, factor_stride, shift_tokens, shift_stride, eps, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    channel = tl.arange(0, BLOCK)
    inside = channel < width
    place = row * width + channel
    u = tl.load(x + place, mask=inside, other=0).to(tl.float32)
    if y is not None:
        more = tl.load(y + place, mask=inside, other=0).to(tl.float32)
        if gate is not None:
            more *= tl.load(gate + row // gate_tokens * gate_stride + channel, mask=inside, other=0).to(tl.float32)
        rounded = (u + more).to(total.dtype.element_ty)
        tl.store(total + place, rounded, mask=inside)
        u = rounded.to(tl.float32)  # so that the result is the norm of what is written
    centred = tl.where(inside, u - tl.sum(u, axis=0) / width, 0.0)
    normal = centred / tl.sqrt(tl.sum(centred * centred, axis=0) / width + eps)
    if factor is not None:
        normal *= tl.load(factor + row // factor_tokens * factor_stride + channel, mask=inside, other=0).to(tl.float32)
        normal += tl.load(shift + row // shift_tokens * shift_stride + channel, mask=inside, other=0).to(tl.float32)
    tl.store(out + place, normal.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _normalise_and_rotate(
    x, weight, table, out, tokens, heads, pairs, x_batch, x_token, out_batch, out_token, eps,
    HEADS: tl.constexpr, PAIRS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    batch, token = row // tokens, row % tokens
    head, pair, side = tl.arange(0, HEADS)[:, None, None], tl.arange(0, PAIRS)[None, :, None], tl.arange(0, 2)
    place = (head * pairs + pair) * 2 + side[None, None, :]
    inside = ((head < heads) & (pair < pairs)) & (side[None, None, :] < 2)
    u = tl.load(x + batch * x_batch + token * x_token + place, mask=inside, other=0).to(tl.float32)
    if weight is not None:
        square = tl.sum(tl.sum(tl.sum(u * u, axis=2), axis=1), axis=0)
        u = u / tl.sqrt(square / (heads * pairs * 2) + eps) * tl.load(weight + place, mask=inside, other=0)
    even, odd = tl.split(u)
    at = tl.arange(0, PAIRS)[None, :]
    turn = table + (token * pairs + at) * 4
    known = at < pairs
    first = even * tl.load(turn, mask=known, other=0) + odd * tl.load(turn + 1, mask=known, other=0)
    second = even * tl.load(turn + 2, mask=known, other=0) + odd * tl.load(turn + 3, mask=known, other=0)
    turned = tl.join(first, second).to(out.dtype.element_ty)
    tl.store(out + batch * out_batch + token * out_token + place, turned, mask=inside)


def add_and_normalise(
    x_RD: Tensor, y_RD: Tensor | None, gate_GD: Tensor | None, factor_GD: Tensor | None, shift_GD: Tensor | None,
    eps: float, total_RD: Tensor | None, out_RD: Tensor,
) -> None:  # fmt: skip
    """Write x + gate y to `total`, and its layer norm, times factor plus shift, to `out`. Tokens are contiguous."""
    rows, width = x_RD.shape
    groups = (number for each in (gate_GD, factor_GD, shift_GD) for number in describe_groups(rows, each))
    block = triton.next_power_of_2(width)
    with torch.cuda.device_of(x_RD):
        _add_and_normalise[(rows,)](
            x_RD, y_RD, gate_GD, factor_GD, shift_GD, total_RD, out_RD,
            width, *groups, eps, BLOCK=block, num_warps=count_warps(block),
        )  # fmt: skip


def describe_groups(rows: int, rows_GD: Tensor | None) -> tuple[int, int]:
    """Return how many tokens share a row, and the distance of two rows."""
    return (rows // rows_GD.shape[0], rows_GD.stride(0)) if rows_GD is not None else (1, 0)


def normalise_and_rotate(
    x_BTNH: Tensor, weight_D: Tensor | None, eps: float, table_T1P22: Tensor, out_BTNH: Tensor
) -> None:
    """Write the heads of tokens to `out`, turned; if there is a weight, RMS-normalised over all heads before that.

    The heads of one token are contiguous, and so is the table.
    """
    batch, tokens, heads, channels = x_BTNH.shape
    pairs = channels // 2
    head_block, pair_block = triton.next_power_of_2(heads), triton.next_power_of_2(pairs)
    with torch.cuda.device_of(x_BTNH):
        _normalise_and_rotate[(batch * tokens,)](
            x_BTNH, weight_D, table_T1P22, out_BTNH, tokens, heads, pairs,
            x_BTNH.stride(0), x_BTNH.stride(1), out_BTNH.stride(0), out_BTNH.stride(1), eps,
            HEADS=head_block, PAIRS=pair_block, num_warps=count_warps(head_block * pair_block * 2),
        )  # fmt: skip


def count_warps(block: int) -> int:
    return min(max(block // NUMBERS_PER_WARP, 1), 16)
