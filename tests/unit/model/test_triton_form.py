"""The kernels of NVIDIA's GPUs, run by Triton's interpreter on the CPU: near float64, and writing nothing beside."""

import logging

import pytest
import torch
from torch import nn

if torch.cuda.is_available():
    pytest.skip("test_gpu.py runs the compiled kernels", allow_module_level=True)
pytest.importorskip("triton")

from longlive.model import triton_form
from longlive.model.fused import PLAIN, Addend, Loan, Modulation, Piece, lend_weights
from longlive.model.rope import make_table
from longlive.model.triton_form import TRITON, TritonForm, is_triton_usable

BATCH, FRAMES, GRID, HEADS, CHANNELS = 2, 3, (1, 2), 3, 12  # neither heads, pairs nor width is a power of two
TOKENS, WIDTH = FRAMES * GRID[0] * GRID[1], HEADS * CHANNELS
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
TABLE = make_table(7, FRAMES, GRID, CHANNELS, "cpu")


def make_random(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return (1 + 2 * torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))).to(dtype)


def make_rows(rows: int, dtype: torch.dtype) -> torch.Tensor:
    """Rows [B, F, D] that are not contiguous, as those of a modulation are not."""
    return make_random(BATCH, FRAMES, rows, WIDTH, dtype=dtype)[:, :, rows - 1]


def check(found: torch.Tensor, exact: torch.Tensor) -> None:
    """Check that a result is as near the exact one as one rounding to its dtype."""
    assert (found.double() - exact).norm() < torch.finfo(found.dtype).eps * exact.norm()


def rotate_exactly(x_BTD: torch.Tensor) -> torch.Tensor:
    pairs = x_BTD.double().view(BATCH, TOKENS, HEADS, -1, 1, 2)
    return (TABLE.double() * pairs).sum(-1).flatten(-2)


def give_random_weights(norm: nn.Module, dtype: torch.dtype) -> nn.Module:
    for i, weight in enumerate(norm.parameters()):
        weight.data = make_random(WIDTH, dtype=dtype) + i
    return norm.requires_grad_(False)


@pytest.mark.parametrize("dtype", DTYPES)
def test_queries_and_keys_are_normalised_over_all_heads_and_rotated(dtype):
    norm, x = give_random_weights(nn.RMSNorm(WIDTH, 1e-6), dtype), make_random(BATCH, TOKENS, WIDTH, dtype=dtype)
    ring = torch.zeros(BATCH, 2 * TOKENS, HEADS, CHANNELS, dtype=dtype)
    pieces = [Piece(slice(0, 2), ring[:, TOKENS + 3 : TOKENS + 5]), Piece(slice(2, TOKENS), ring[:, 3 : TOKENS + 1])]
    TRITON.normalise_and_write(norm, x, TABLE, pieces)
    found = TRITON.normalise_and_rotate(norm, x, TABLE, HEADS)
    check(found, rotate_exactly(give_random_weights(nn.RMSNorm(WIDTH, 1e-6), dtype).double()(x.double())))
    assert all(torch.equal(piece.room_BTNH, found[:, piece.tokens]) for piece in pieces)
    assert not torch.cat([ring[:, :3], ring[:, TOKENS + 1 : TOKENS + 3], ring[:, TOKENS + 5 :]], 1).any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_heads_are_rotated_wherever_they_are(dtype):
    x = make_random(BATCH, TOKENS, 3 * HEADS, CHANNELS, dtype=dtype)
    for part in (x[:, :, :HEADS], x[:, :, ::3]):
        check(TRITON.rotate(part, TABLE), rotate_exactly(part.flatten(2)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("added", [True, False])
@pytest.mark.parametrize("then", ["modulation", "weights", "nothing"])
def test_a_residual_is_added_and_the_sum_is_normalised(added, gated, then, dtype):
    x, y = (make_random(BATCH, TOKENS + i, WIDTH, dtype=dtype)[:, i:] for i in (0, 1))
    residual = Addend(y, make_rows(3, dtype) if gated else None) if added else None
    norm = give_random_weights(nn.LayerNorm(WIDTH, 1e-6, elementwise_affine=then == "weights"), dtype)
    modulation = Modulation(make_rows(2, dtype), make_rows(4, dtype)) if then == "modulation" else None
    total, normal = TRITON.add_and_normalise(x, residual, norm, modulation)

    wide = residual and Addend(y.double(), residual.gate_BFD.double() if gated else None)
    exact, _ = PLAIN.add_and_normalise(x.double(), wide, norm.double())
    check(total, exact)
    assert torch.equal(total, x) or added
    rows = modulation and Modulation(*(row.double() for row in modulation))
    check(normal, PLAIN.add_and_normalise(total.double(), None, norm, rows)[1])  # of the sum as it was written


def test_a_layer_that_is_not_plain_is_called_as_it_is():
    x, calls = make_random(BATCH, TOKENS, WIDTH, dtype=torch.float32), []
    for norm, compute in [
        (nn.RMSNorm(WIDTH, 1e-6), lambda form, norm: form.normalise_and_rotate(norm, x, TABLE, HEADS)),
        (nn.LayerNorm(WIDTH, 1e-6), lambda form, norm: form.add_and_normalise(x, Addend(x), norm)[1]),
    ]:
        norm.requires_grad_(False).register_forward_hook(lambda *_: calls.append("hook") or x**2)
        torch.testing.assert_close(compute(TRITON, norm), compute(PLAIN, norm))
        replaced = nn.Sequential(norm)
        torch.testing.assert_close(compute(TRITON, replaced), compute(PLAIN, replaced))
    assert len(calls) == 8


def test_weights_that_are_lent_are_used_and_given_back():
    """As ComfyUI lends them: cast, patched, on the device for one layer only."""
    given_back = []

    def lend(layer, kind, x):
        loan = lend_weights(layer, kind, x)
        half = [weight if weight is None else weight / 2 for weight in loan[:2]]
        return Loan(*half, loan.eps, lambda: given_back.append(kind))

    form, x = TritonForm("lent", lend), make_random(BATCH, TOKENS, WIDTH, dtype=torch.float32)
    norm, layer_norm = nn.RMSNorm(WIDTH, 1e-6), nn.LayerNorm(WIDTH, 1e-6)
    linear, ring = nn.Linear(WIDTH, WIDTH).requires_grad_(False), torch.zeros(BATCH, TOKENS, HEADS, CHANNELS)
    with torch.no_grad():
        half = TRITON.normalise_and_rotate(norm, x, TABLE, HEADS) / 2
        torch.testing.assert_close(form.normalise_and_rotate(norm, x, TABLE, HEADS), half)
        half = TRITON.add_and_normalise(x, None, layer_norm)[1] / 2
        torch.testing.assert_close(form.add_and_normalise(x, None, layer_norm)[1], half)
        form.project_and_write(linear, x, [Piece(slice(0, TOKENS), ring)])
        torch.testing.assert_close(ring.flatten(2), linear(x) / 2)
    assert given_back == [nn.RMSNorm, nn.LayerNorm, nn.Linear]


@pytest.mark.parametrize("dtype", DTYPES)
def test_kernels_are_compared_with_the_plain_form_before_they_are_used(dtype, monkeypatch):
    monkeypatch.setattr(triton_form.TritonForm, "feed_forward", PLAIN.feed_forward)  # GELU is another one on a CPU
    triton_form.try_kernels(torch.device("cpu"), dtype)
    for kernel, what in (("add_and_normalise", "norm"), ("normalise_and_rotate", "rotation")):
        launch = getattr(triton_form, kernel)

        def launch_wrong(*args, launch=launch, **out):
            launch(*args, **out)
            out["out"].mul_(1.2)

        with monkeypatch.context() as patch:
            patch.setattr(triton_form, kernel, launch_wrong)
            with pytest.raises(ArithmeticError, match=what):
                triton_form.try_kernels(torch.device("cpu"), dtype)


def test_another_gelu_is_noticed():
    with pytest.raises(ArithmeticError, match="GELU"):  # on a CPU, the epilogue is not the tanh form
        triton_form.try_kernels(torch.device("cpu"), torch.float32)


def test_kernels_that_do_not_compile_are_not_used(monkeypatch, caplog):
    def fail():
        raise RuntimeError("no C compiler\nand more")

    monkeypatch.setattr(triton_form, "load_kernels", fail)
    monkeypatch.setattr(triton_form, "get_generation", lambda _: 9)
    try_kernels = triton_form.try_kernels
    monkeypatch.setattr(triton_form, "try_kernels", lambda _, dtype: try_kernels(torch.device("cpu"), dtype))
    is_triton_usable.cache_clear()
    with caplog.at_level(logging.WARNING):
        assert not is_triton_usable(torch.device("cuda"), torch.bfloat16)
        assert not is_triton_usable(torch.device("cuda"), torch.bfloat16)
    assert [record.message.count("no C compiler") for record in caplog.records] == [1]
    monkeypatch.undo()
    is_triton_usable.cache_clear()
    assert not is_triton_usable(torch.device("cpu"), torch.bfloat16)
