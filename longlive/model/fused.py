"""What a layer computes between its matrices and attention, in as few passes over memory as the machine allows.

The plain form works anywhere: under autograd, over ComfyUI's sub-modules, on any device. On a CPU, oneDNN joins GELU to
the product before it; `triton_form.py` is the form of NVIDIA's GPUs. What is joined rounds less often, so a form has a
name, which becomes part of the name of a model's kernel.
Dimension key: B batch, F frames, T tokens of one pass, D model width, N heads, H channels per head, P = H / 2 pairs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .rope import rotate_pairs
from .wan import Layer

AUTOCAST_DEVICES = ("cpu", "cuda")  # where a context may change the dtype of a product


class Loan(NamedTuple):
    """The weights of a layer, as it would use them, until they are given back."""

    weight: Tensor | None = None
    bias: Tensor | None = None
    eps: float | None = None  # of a norm
    give_back: Callable[[], None] = lambda: None


NOTHING = Loan()
Lend = Callable[[object, type[nn.Module], Tensor], Loan]
"""From a layer, the class of PyTorch that it should be, and its input, to its weights.

Lends nothing if calling the layer does more than the class does: then it must be called.
"""


Product = tuple[Tensor, Tensor]
"""Weight and bias."""


class Addend(NamedTuple):
    """What is added to the tokens: y [B, T, D], times a gate [B, F, D] if it has one."""

    y_BTD: Tensor
    gate_BFD: Tensor | None = None


class Modulation(NamedTuple):
    """What follows a norm: one row of factor and shift per frame [B, F, D]."""

    factor_BFD: Tensor
    shift_BFD: Tensor


class Piece(NamedTuple):
    """Where some tokens of a pass go: their places in the pass, and room [B, T, N, H] for them."""

    tokens: slice
    room_BTNH: Tensor


def lend_weights(layer: object, kind: type[nn.Module], x: Tensor) -> Loan:
    """Lend the weights of a layer of PyTorch's own class `kind`, if nothing changes it."""
    if type(layer) is not kind or not is_untouched(layer) or is_cast(x):
        return NOTHING
    weight, bias, eps = (getattr(layer, name, None) for name in ("weight", "bias", "eps"))
    return Loan(weight, bias, eps)


def is_untouched(layer: nn.Module) -> bool:
    """Whether calling a layer is calling its class: it has no hook and no `forward` of its own."""
    return not (layer._forward_hooks or layer._forward_pre_hooks or "forward" in vars(layer))


def is_cast(x: Tensor) -> bool:
    """Whether a context changes the dtype of what is computed from `x`."""
    return x.device.type in AUTOCAST_DEVICES and torch.is_autocast_enabled(x.device.type)


@dataclass(frozen=True)
class Pointwise:
    """The operations between matrices and attention, as one kind of machine does them best. This is the plain form."""

    name: str = ""
    lend: Lend = lend_weights

    def rotate(self, x_BTNH: Tensor, table_T1P22: Tensor) -> Tensor:
        """Rotate the channel pairs of every token; the dtype of the result is that of `x` or float32."""
        return rotate_pairs(x_BTNH, table_T1P22)

    def normalise_and_rotate(self, norm: Layer, x_BTD: Tensor, table_T1P22: Tensor, heads: int) -> Tensor:
        """Normalise tokens, split them into heads [B, T, N, H] and rotate these."""
        y_BTNH = norm(x_BTD).unflatten(-1, (heads, -1))
        return self.rotate(y_BTNH, table_T1P22).to(y_BTNH.dtype)

    def normalise_and_write(self, norm: Layer, x_BTD: Tensor, table_T1P22: Tensor, pieces: Sequence[Piece]) -> None:
        """Normalise tokens and rotate their heads into `pieces`."""
        rotated_BTNH = self.rotate(norm(x_BTD).unflatten(-1, pieces[0].room_BTNH.shape[2:]), table_T1P22)
        for piece in pieces:
            piece.room_BTNH.copy_(rotated_BTNH[:, piece.tokens])

    def project_and_write(self, layer: Layer, x_BTD: Tensor, pieces: Sequence[Piece]) -> None:
        """Write what a linear layer makes of `x` to `pieces`; to a single one without a copy if the layer is plain."""
        room_BTNH, loan = pieces[0].room_BTNH, self.lend(layer, nn.Linear, x_BTD) if len(pieces) == 1 else NOTHING
        product = find_product(loan, x_BTD)
        if product and room_BTNH.dtype == x_BTD.dtype and room_BTNH.is_contiguous():
            weight, bias = product
            torch.addmm(bias, x_BTD.flatten(0, 1), weight.t(), out=room_BTNH.flatten(2).flatten(0, 1))
            loan.give_back()
            return
        loan.give_back()
        y_BTNH = layer(x_BTD).unflatten(-1, room_BTNH.shape[2:])
        for piece in pieces:
            piece.room_BTNH.copy_(y_BTNH[:, piece.tokens])

    def add_and_normalise(
        self, x_BTD: Tensor, residual: Addend | None, norm: Layer, modulation: Modulation | None = None
    ) -> tuple[Tensor, Tensor]:
        """Add a residual to the tokens; return them and what a norm and its modulation make of them."""
        if residual:
            y_BTD, gate_BFD = residual
            x_BTD = x_BTD + y_BTD if gate_BFD is None else add_gated(x_BTD, y_BTD, gate_BFD)
        y_BTD = norm(x_BTD)
        return x_BTD, scale_and_shift(y_BTD, *modulation) if modulation else y_BTD

    def feed_forward(self, layers: Layer, x_BTD: Tensor) -> Tensor:
        """Compute the layers of a feed-forward."""
        return layers(x_BTD)

    def borrow_before_gelu(self, layers: Layer, x_BTD: Tensor) -> tuple[Product, Loan, nn.Module] | None:
        """Borrow the product before the GELU of a feed-forward; return it, its loan and the layer after GELU.

        None if there is no such GELU, or the product is not lent in the dtype of its input.
        """
        ends = find_ends_around_gelu(layers)
        loan = self.lend(ends[0], nn.Linear, x_BTD) if ends else NOTHING
        product = find_product(loan, x_BTD)
        if ends and product:
            return product, loan, ends[1]
        loan.give_back()
        return None


PLAIN = Pointwise()


def modulate(x_BTD: Tensor, shift_BFD: Tensor, scale_BFD: Tensor) -> Tensor:
    """Return x (1 + scale) + shift, with one row of scale and shift per frame."""
    return scale_and_shift(x_BTD, 1 + scale_BFD, shift_BFD)


def scale_and_shift(x_BTD: Tensor, factor_BFD: Tensor, shift_BFD: Tensor) -> Tensor:
    """Return x factor + shift, with one row of factor and shift per frame."""
    x_BFTD = x_BTD.unflatten(1, (shift_BFD.shape[1], -1))
    return torch.addcmul(shift_BFD.unsqueeze(2), x_BFTD, factor_BFD.unsqueeze(2)).flatten(1, 2)


def add_gated(x_BTD: Tensor, y_BTD: Tensor, gate_BFD: Tensor) -> Tensor:
    """Return x + gate y, with one row of the gate per frame."""
    frames = gate_BFD.shape[1]
    x_BFTD, y_BFTD = (z.unflatten(1, (frames, -1)) for z in (x_BTD, y_BTD))
    return torch.addcmul(x_BFTD, y_BFTD, gate_BFD.unsqueeze(2)).flatten(1, 2)


def find_product(loan: Loan, x: Tensor) -> Product | None:
    """Find weight and bias of a product, if both are there and in the dtype of its input."""
    weight, bias = loan.weight, loan.bias
    if weight is None or bias is None or not weight.dtype == bias.dtype == x.dtype:
        return None
    return weight, bias


def find_ends_around_gelu(layers: Layer) -> tuple[nn.Module, nn.Module] | None:
    """Find the first and the last layer of a feed-forward, if the tanh form of GELU is between them."""
    if isinstance(layers, nn.Sequential) and len(layers) == 3 and is_untouched(layers):
        first, gelu, last = layers
        if type(gelu) is nn.GELU and gelu.approximate == "tanh" and is_untouched(gelu):
            return first, last
    return None


class OneDNNForm(Pointwise):
    """The form of a CPU."""

    def rotate(self, x_BTNH: Tensor, table_T1P22: Tensor) -> Tensor:
        """Rotate pairs as complex numbers, many of which a CPU multiplies at once."""
        turns_T1P = torch.view_as_complex(table_T1P22[..., 0].contiguous())
        pairs_BTNP = torch.view_as_complex(x_BTNH.float().unflatten(-1, (-1, 2)).contiguous())
        return torch.view_as_real(pairs_BTNP * turns_T1P).flatten(-2)

    def feed_forward(self, layers: Layer, x_BTD: Tensor) -> Tensor:
        """Compute GELU where the product before it still is in registers."""
        borrowed = self.borrow_before_gelu(layers, x_BTD)
        if borrowed is None:
            return layers(x_BTD)
        product, loan, last = borrowed
        hidden_BTD = torch.ops.mkldnn._linear_pointwise(x_BTD, *product, "gelu", [], "tanh")
        loan.give_back()
        return last(hidden_BTD)


@cache
def make_onednn_form(lend: Lend = lend_weights) -> OneDNNForm:
    return OneDNNForm("onednn", lend)


@cache
def is_onednn_usable(dtype: torch.dtype) -> bool:
    """Whether oneDNN is here and multiplies in this dtype on this CPU."""
    one = torch.ones(1, 1, dtype=dtype)
    try:
        torch.ops.mkldnn._linear_pointwise(one, one, None, "gelu", [], "tanh")
    except (AttributeError, RuntimeError):
        return False
    return True
