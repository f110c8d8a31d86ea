"""The choice of how a device computes what is between matrices and attention."""

import torch

from .fused import PLAIN, Lend, Pointwise, is_onednn_usable, lend_weights, make_onednn_form
from .triton_form import is_triton_usable, make_triton_form


def choose_pointwise(
    device: torch.device, dtype: torch.dtype, *, joined: bool = False, lend: Lend = lend_weights
) -> Pointwise:
    """Choose the form that a device computes with: kernels on NVIDIA's GPUs; on a CPU the plain form unless `joined`.

    `lend` lends the weights of the network's layers.
    """
    if device.type == "cpu" and joined and is_onednn_usable(dtype):
        return make_onednn_form(lend)
    if is_triton_usable(device, dtype):
        return make_triton_form(lend)
    return PLAIN
