"""What a layer computes between its matrices and attention, in as few passes over memory as the machine allows.

The plain form works anywhere: under autograd, over ComfyUI's sub-modules, on any device. On a CPU, oneDNN joins GELU to
the product before it. What is joined rounds less often, so it has a name, which becomes part of the name of a model's
kernel.
Dimension key: B batch, F frames, T tokens of one pass, D model width, N heads, H channels per head, P = H / 2 pairs.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TypeGuard, cast

import torch
from torch import Tensor, nn

from .rope import rotate_pairs
from .wan import Layer

AUTOCAST_DEVICES = ("cpu", "cuda")  # where a context may change the dtype of a product


@dataclass(frozen=True, slots=True)
class Pointwise:
    """The operations between matrices and attention, as one kind of machine does them best."""

    name: str  # empty for the plain form
    rotate: Callable[[Tensor, Tensor], Tensor]  # as `rotate_pairs`
    feed_forward: Callable[[Layer, Tensor], Tensor]  # from the layers of a feed-forward and x [B, T, D] to [B, T, D]


PLAIN = Pointwise("", rotate_pairs, lambda layers, x_BTD: layers(x_BTD))


def choose_pointwise(device: torch.device, dtype: torch.dtype) -> Pointwise:
    """Choose the operations that pass over memory least often on a device, if they work there."""
    return ONEDNN if device.type == "cpu" and is_onednn_usable(dtype) else PLAIN


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


def project_into(layer: Layer, x_BTD: Tensor, out_BTNH: Tensor) -> None:
    """Write what a linear layer makes of `x` to `out`, without a copy if the layer is plain."""
    if is_plain(layer) and layer.weight.dtype == x_BTD.dtype == out_BTNH.dtype and out_BTNH.is_contiguous():
        torch.addmm(layer.bias, x_BTD.flatten(0, 1), layer.weight.t(), out=out_BTNH.view(-1, layer.out_features))
    else:
        out_BTNH.copy_(layer(x_BTD).view_as(out_BTNH))


def is_plain(layer: object) -> TypeGuard[nn.Linear]:
    """Whether a layer is a linear one of PyTorch, which nothing changes, so that another kernel may do its work."""
    if type(layer) is nn.Linear and layer.bias is not None and is_untouched(layer):
        device = layer.weight.device.type
        return device not in AUTOCAST_DEVICES or not torch.is_autocast_enabled(device)
    return False


def is_untouched(layer: nn.Module) -> bool:
    """Whether calling a layer is calling its class: it has no hook and no `forward` of its own."""
    return not (layer._forward_hooks or layer._forward_pre_hooks or "forward" in vars(layer))


def find_gelu_product(layers: Layer, x: Tensor) -> nn.Linear | None:
    """Find the first layer of a feed-forward, if it is plain and the tanh form of GELU follows."""
    if isinstance(layers, nn.Sequential) and len(layers) == 3 and is_untouched(layers):
        first, gelu, _ = layers
        if is_plain(first) and type(gelu) is nn.GELU and gelu.approximate == "tanh" and first.weight.dtype == x.dtype:
            return first
    return None


# On a CPU.


def rotate_complex_pairs(x_BTNH: Tensor, table_T1P22: Tensor) -> Tensor:
    """Do what `rotate_pairs` does. A pair of channels is a complex number; a CPU multiplies many of them at once."""
    turns_T1P = torch.view_as_complex(table_T1P22[..., 0].contiguous())
    pairs_BTNP = torch.view_as_complex(x_BTNH.float().unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs_BTNP * turns_T1P).flatten(-2)


def run_feed_forward_by_onednn(layers: Layer, x_BTD: Tensor) -> Tensor:
    """Run a feed-forward whose GELU is computed where the product before it still is in registers."""
    product = find_gelu_product(layers, x_BTD)
    if product is None:
        return layers(x_BTD)
    hidden = torch.ops.mkldnn._linear_pointwise(x_BTD, product.weight, product.bias, "gelu", [], "tanh")
    return cast(nn.Sequential, layers)[2](hidden)


ONEDNN = Pointwise("onednn", rotate_complex_pairs, run_feed_forward_by_onednn)


@cache
def is_onednn_usable(dtype: torch.dtype) -> bool:
    """Whether oneDNN is here and multiplies in this dtype on this CPU."""
    one = torch.ones(1, 1, dtype=dtype)
    try:
        torch.ops.mkldnn._linear_pointwise(one, one, None, "gelu", [], "tanh")
    except (AttributeError, RuntimeError):
        return False
    return True
