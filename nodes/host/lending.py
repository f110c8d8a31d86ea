"""The weights of ComfyUI's layers, lent to kernels of ours as the layers would use them."""

from functools import partial

import comfy.ops
from torch import Tensor, nn

from ...longlive.model.fused import NOTHING, Loan, is_cast, is_untouched, lend_weights


def lend_host_weights(layer: object, kind: type[nn.Module], x: Tensor) -> Loan:
    """Lend the weights of a layer of PyTorch or ComfyUI that does what PyTorch's `kind` does.

    ComfyUI's casts them, moves them to the device and applies the functions of LoRAs first. A layer of another class
    (quantised, of another pack) or with a hook is not lent.
    """
    own = [
        getattr(operations, kind.__name__, None)
        for operations in (comfy.ops.disable_weight_init, comfy.ops.manual_cast)
    ]
    if type(layer) not in own:
        return lend_weights(layer, kind, x)
    assert isinstance(layer, kind)
    if not is_untouched(layer) or is_cast(x):
        return NOTHING
    weight, bias, eps = (getattr(layer, name, None) for name in ("weight", "bias", "eps"))
    is_changed = layer.comfy_cast_weights or layer.weight_function or layer.bias_function
    if weight is None or not is_changed:
        return Loan(weight, bias, eps)
    weight, bias, stream = comfy.ops.cast_bias_weight(layer, x, offloadable=True)
    return Loan(weight, bias, eps, partial(comfy.ops.uncast_bias_weight, layer, weight, bias, stream))
