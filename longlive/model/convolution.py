"""Small convolutions on a CPU, computed with oneDNN.

For a float32 convolution of one small picture or video (a batch of 1 with N C T H <= 20480), PyTorch uses a kernel of
its own that is several times slower (`use_mkldnn` in ATen's Convolution.cpp). All those of a streaming VAE are such.
"""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch.overrides import TorchFunctionMode


def use_fast_convolutions(device: torch.device) -> AbstractContextManager:
    """Run the convolutions of a `with` block with oneDNN, if they are on a CPU, in float32 and need no gradient."""
    return OneDNN() if device.type == "cpu" and torch.backends.mkldnn.is_available() else nullcontext()


class OneDNN(TorchFunctionMode):
    """Replaces `conv2d` and `conv3d`, in our network and in a host's."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in (torch.conv2d, torch.conv3d) and can_take(*args, **kwargs):
            return convolve(*args, **kwargs)
        return func(*args, **kwargs)


def can_take(input, weight, bias=None, stride=1, padding=0, *_, **__) -> bool:
    return (
        input.dtype == weight.dtype == torch.float32
        and input.dim() == weight.dim()
        and not isinstance(padding, str)
        and not torch.is_grad_enabled()
    )


def convolve(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    axes = weight.dim() - 2
    stride, padding, dilation = (
        each if isinstance(each, (tuple, list)) else (each,) * axes for each in (stride, padding, dilation)
    )
    return torch.mkldnn_convolution(input, weight, bias, padding, stride, dilation, groups)
