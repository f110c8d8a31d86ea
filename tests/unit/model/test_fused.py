"""The operations between matrices and attention: what is joined is what the plain form computes, and rounds less."""

import pytest
import tiny
import torch
from torch import nn

from longlive.config import RolloutConfig
from longlive.model.causal import CausalWan
from longlive.model.forms import choose_pointwise
from longlive.model.fused import PLAIN, Piece, Pointwise, is_onednn_usable, make_onednn_form
from longlive.model.rope import Rotation, make_table
from longlive.model.wan import WanModel
from longlive.rollout.rollout import Rollout

BATCH, FRAMES, GRID, HEADS, CHANNELS = 2, 3, (2, 5), 2, 12
TOKENS, WIDTH, HIDDEN = FRAMES * GRID[0] * GRID[1], HEADS * CHANNELS, 40
CPU = torch.device("cpu")
DTYPES = [torch.float32, torch.bfloat16]
ONEDNN = make_onednn_form()
WITH_ONEDNN = pytest.mark.skipif(not is_onednn_usable(torch.bfloat16), reason="oneDNN does not run here")
CHOICES = [PLAIN, pytest.param(ONEDNN, marks=WITH_ONEDNN)]


def make_random(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


def make_feed_forward(dtype: torch.dtype, approximate: str = "tanh") -> nn.Sequential:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(WIDTH, HIDDEN), nn.GELU(approximate), nn.Linear(HIDDEN, WIDTH))
    return layers.to(dtype).requires_grad_(False)


def measure_error(found: torch.Tensor, exact: torch.Tensor) -> float:
    return float((found.double() - exact).norm() / exact.norm())


def check_precision(compute, compute_exactly, dtype: torch.dtype) -> None:
    """Check that a result is as near the exact one as a few roundings of its dtype are."""
    assert measure_error(compute(), compute_exactly()) < 1.5 * torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("do", CHOICES, ids=lambda choice: choice.name or "plain")
def test_keys_are_normalised_rotated_and_written_where_they_belong(do, dtype):
    norm, x = nn.RMSNorm(WIDTH, 1e-6, dtype=dtype), make_random(BATCH, TOKENS, WIDTH, dtype=dtype)
    table = make_table(7, FRAMES, GRID, CHANNELS, CPU)
    ring = torch.zeros(BATCH, 2 * TOKENS, HEADS, CHANNELS, dtype=dtype)
    first, rest = slice(0, 4), slice(4, TOKENS)
    with torch.no_grad():
        pieces = [Piece(first, ring[:, TOKENS + 5 : TOKENS + 9]), Piece(rest, ring[:, 5 : TOKENS + 1])]
        do.normalise_and_write(norm, x, table, pieces)
        whole = do.normalise_and_rotate(norm, x, table, HEADS)

    def rotate_exactly() -> torch.Tensor:
        pairs = nn.RMSNorm(WIDTH, 1e-6).double()(x.double()).detach().view(BATCH, TOKENS, HEADS, -1, 1, 2)
        return (table.double() * pairs).sum(-1).flatten(-2)

    check_precision(lambda: whole, rotate_exactly, dtype)
    assert all(torch.equal(piece.room_BTNH, whole[:, piece.tokens]) for piece in pieces)
    assert not torch.cat([ring[:, :5], ring[:, TOKENS + 1 : TOKENS + 5], ring[:, TOKENS + 9 :]], 1).any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("do", CHOICES, ids=lambda choice: choice.name or "plain")
def test_a_rotation_takes_heads_that_are_not_together(do, dtype):
    x = make_random(BATCH, TOKENS, 3 * HEADS, CHANNELS, dtype=dtype)[:, :, HEADS : 2 * HEADS]
    table = make_table(7, FRAMES, GRID, CHANNELS, CPU)
    rotation = Rotation(table, rotate=do.rotate)

    def rotate_exactly() -> torch.Tensor:
        return (table.double() * x.double().unflatten(-1, (-1, 1, 2))).sum(-1).flatten(-2)

    check_precision(lambda: rotation.rotate_pass(x), rotate_exactly, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("do", CHOICES, ids=lambda choice: choice.name or "plain")
def test_feed_forward(do, dtype):
    layers, x = make_feed_forward(dtype), make_random(BATCH, TOKENS, WIDTH, dtype=dtype)
    exact = make_feed_forward(dtype).double()
    check_precision(lambda: do.feed_forward(layers, x), lambda: exact(x.double()), dtype)


@WITH_ONEDNN
@pytest.mark.parametrize("change", ["hook", "forward", "activation", "layer"])
def test_a_changed_feed_forward_is_called_as_it_is(change):
    """Hooks, patched methods and other layers are somebody's wish: LoRAs, quantised layers, monitors."""
    layers, x = make_feed_forward(torch.float32), make_random(1, TOKENS, WIDTH)
    plain, ones = layers(x), torch.ones(1, TOKENS, HIDDEN)
    match change:
        case "hook":
            layers[0].register_forward_hook(lambda *_: ones)
        case "forward":
            layers[0].forward = lambda _: ones
        case "activation":
            layers[1] = nn.GELU()
        case "layer":
            layers[0] = nn.Sequential(layers[0])
    assert torch.equal(ONEDNN.feed_forward(layers, x), layers(x))
    assert torch.equal(layers(x), plain) == (change == "layer")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch", [1, BATCH])
def test_a_product_is_written_where_it_belongs(batch, dtype):
    layer, x = nn.Linear(WIDTH, WIDTH).to(dtype).requires_grad_(False), make_random(batch, TOKENS, WIDTH, dtype=dtype)
    ring = torch.zeros(batch, 2 * TOKENS, HEADS, CHANNELS, dtype=dtype)
    with torch.no_grad():
        PLAIN.project_and_write(layer, x, [Piece(slice(0, TOKENS), ring[:, TOKENS:])])
    assert torch.equal(ring[:, TOKENS:].flatten(2), layer(x))
    assert not ring[:, :TOKENS].any()


def test_what_does_not_run_here_is_not_chosen():
    assert choose_pointwise(CPU, torch.float64, joined=True) is PLAIN
    assert choose_pointwise(torch.device("meta"), torch.bfloat16, joined=True) is PLAIN
    assert choose_pointwise(CPU, torch.float32) is PLAIN
    assert choose_pointwise(CPU, torch.float32, joined=True) == (ONEDNN if is_onednn_usable(torch.float32) else PLAIN)


@WITH_ONEDNN
def test_a_model_names_the_operations_that_it_chose():
    """Another choice rounds differently, so the blocks of one are not found under the key of the other."""
    tree = WanModel(tiny.GEOMETRY, dtype=torch.float32)
    assert CausalWan.of_tree(tree, joined=True).kernel == "cpu sdpa onednn"
    assert CausalWan.of_tree(tree).kernel == "cpu sdpa"
    assert CausalWan.of_tree(tree.to(torch.float64), joined=True).kernel == "cpu sdpa"


def test_a_pass_with_gradients_takes_the_plain_form(monkeypatch):
    model, config = tiny.model(), RolloutConfig()
    rollout = Rollout(model, config, (1, 16, 2, 4))
    text, x = model.read_prompt(tiny.prompt(0).pad()), make_random(1, 3, 16, 2, 4)
    place = rollout.window.place_block(0, 3)

    def forbid(*_):
        raise AssertionError("no graph passes through this")

    class Forbidden(Pointwise):
        feed_forward = forbid

    object.__setattr__(model, "pointwise", Forbidden())
    rollout._pass(x, (625.0,), text, place)
    with torch.no_grad(), pytest.raises(AssertionError, match="no graph"):
        rollout._pass(x, (625.0,), text, place)
