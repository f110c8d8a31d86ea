"""Rotary positions: how channels are shared out, how exact the angles are, what a shift of positions changes."""

import math

import pytest
import torch

from longlive.model.rope import Rotation, make_frequencies, make_table, rotate

GRID = (2, 3)


def rotate_by_hand(x_BTNH: torch.Tensor, start: int, frames: int) -> torch.Tensor:
    """Rotate each token with complex numbers of Python floats, one frequency at a time."""
    channels = x_BTNH.shape[-1]
    spatial = 2 * (channels // 6)
    sizes = (channels - 2 * spatial, spatial, spatial)
    out = x_BTNH.double().clone()
    for token in range(x_BTNH.shape[1]):
        frame, cell = divmod(token, GRID[0] * GRID[1])
        place = (start + frame, *divmod(cell, GRID[1]))
        angles = [
            p * 10000.0 ** (-2 * i / size) for p, size in zip(place, sizes, strict=True) for i in range(size // 2)
        ]
        turn = torch.tensor([complex(math.cos(a), math.sin(a)) for a in angles], dtype=torch.complex128)
        pairs = torch.view_as_complex(out[:, token].unflatten(-1, (-1, 2)).contiguous())
        out[:, token] = torch.view_as_real(pairs * turn).flatten(-2)
    return out


def test_of_64_pairs_22_follow_the_frame_21_the_row_and_21_the_column():
    assert [len(axis) for axis in make_frequencies(128)] == [22, 21, 21]


@pytest.mark.parametrize("head_dim", [8, 12, 16, 40, 64, 128])
def test_all_pairs_of_any_head_are_shared_out(head_dim):
    by_frame, by_row, by_column = make_frequencies(head_dim)
    assert len(by_frame) + len(by_row) + len(by_column) == head_dim // 2
    assert torch.equal(by_row, by_column)
    assert all(axis[0] == 1 and (axis.diff() < 0).all() and axis.dtype is torch.float64 for axis in (by_frame, by_row))


@pytest.mark.parametrize("head_dim", [16, 128])
@pytest.mark.parametrize("start", [0, 7, 1021])
def test_a_rotation_is_what_one_gets_by_hand(head_dim, start):
    x = torch.randn(2, 3 * 6, 2, head_dim, generator=torch.Generator().manual_seed(0))
    turned = rotate(x, make_table(start, 3, GRID, head_dim, "cpu"))
    assert turned.dtype is torch.float32
    torch.testing.assert_close(turned.double(), rotate_by_hand(x, start, 3), rtol=0, atol=2e-6)


def test_angles_are_float64_so_that_far_positions_stay_exact():
    far = 3_000_001
    turn = make_table(far, 1, (1, 1), 128, "cpu")[0, 0]
    assert turn.dtype is torch.float32
    angles = [far * 10000.0 ** (-2 * i / 44) for i in range(22)]
    torch.testing.assert_close(turn[:22, 0, 0].double(), torch.tensor([math.cos(a) for a in angles]).double())
    torch.testing.assert_close(turn[:22, 1, 0].double(), torch.tensor([math.sin(a) for a in angles]).double())
    narrow = torch.tensor(far, dtype=torch.float32) * make_frequencies(128)[0].float()
    assert (turn[:22, 0, 0] - narrow.cos()).abs().max() > 1e-2  # what float32 angles would have given


@pytest.mark.parametrize("moved", [1, 500, 100_000])
def test_attention_feels_only_the_difference_of_positions(moved):
    q, k = (torch.randn(1, 4 * 6, 1, 128, generator=torch.Generator().manual_seed(n)) for n in (1, 2))

    def scores(start: int) -> torch.Tensor:
        q_turned = rotate(q, make_table(start + 5, 4, GRID, 128, "cpu"))
        return torch.einsum("btnh,bsnh->bts", q_turned, rotate(k, make_table(start, 4, GRID, 128, "cpu")))

    torch.testing.assert_close(scores(moved), scores(0), rtol=0, atol=1e-4)
    apart = torch.einsum("btnh,bsnh->bts", rotate(q, make_table(0, 4, GRID, 128, "cpu")), k)
    assert (scores(0) - apart).abs().max() > 1


def test_a_rotation_keeps_lengths_and_its_transpose_undoes_it():
    x, turn = torch.randn(1, 12, 3, 16), make_table(9, 2, GRID, 16, "cpu")
    turned = rotate(x, turn)
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))
    torch.testing.assert_close(rotate(turned, turn.transpose(-1, -2)), x, rtol=1e-5, atol=1e-5)


def test_a_table_continues_where_another_ends():
    whole = make_table(4, 5, GRID, 16, "cpu")
    assert whole.shape == (5 * 6, 1, 8, 2, 2)
    assert torch.equal(whole, torch.cat([make_table(4, 2, GRID, 16, "cpu"), make_table(6, 3, GRID, 16, "cpu")]))


def test_half_precision_is_turned_in_float32_and_rounded_once():
    x, turn = torch.randn(1, 6, 2, 16).bfloat16(), make_table(700, 1, GRID, 16, "cpu")
    assert torch.equal(rotate(x, turn), rotate(x.float(), turn).bfloat16())


def test_the_sink_is_rotated_separately():
    own, sink = make_table(10, 1, GRID, 16, "cpu"), make_table(3, 2, GRID, 16, "cpu")
    x, y = torch.randn(1, 6, 2, 16), torch.randn(1, 12, 2, 16)
    rotation = Rotation(own, sink)
    assert torch.equal(rotation.rotate_pass(x), rotate(x, own))
    assert torch.equal(rotation.rotate_sink(y), rotate(y, sink))
    with pytest.raises(AssertionError):
        Rotation(own).rotate_sink(y)
