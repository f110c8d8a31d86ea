"""Small convolutions on a CPU go to oneDNN, and give what PyTorch gives."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from longlive.model.convolution import use_fast_convolutions

CPU = torch.device("cpu")


def list_kernels(layer: nn.Module, x: torch.Tensor) -> set[str]:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        layer(x)
    return {event.key for event in profile.key_averages() if "conv" in event.key}


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv3d(4, 6, 3, padding=(0, 1, 1)), (1, 4, 5, 6, 7)),
        (nn.Conv3d(4, 6, (3, 1, 1), stride=(2, 1, 1), bias=False), (1, 4, 5, 6, 7)),
        (nn.Conv3d(4, 6, 1), (2, 4, 1, 3, 5)),
        (nn.Conv2d(4, 6, 3, stride=2, dilation=2, groups=2), (3, 4, 9, 8)),
    ],
    ids=["causal", "strided", "pointwise", "picture"],
)
def test_what_onednn_makes_is_what_pytorch_makes(layer, shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = layer(x)
        with use_fast_convolutions(CPU):
            assert "aten::mkldnn_convolution" in list_kernels(layer, x)
            torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-6)


def test_a_small_convolution_is_slow_without_it():
    """If it did not, the module would not be needed."""
    with torch.no_grad():
        assert "aten::slow_conv3d" in list_kernels(nn.Conv3d(4, 6, 3), torch.zeros(1, 4, 3, 4, 4))


def test_gradients_other_precisions_and_padding_by_name_are_left_to_pytorch():
    weight, x = torch.randn(2, 3, 3, 3, requires_grad=True), torch.randn(1, 3, 5, 5)
    with use_fast_convolutions(CPU):
        F.conv2d(x, weight).sum().backward()
        assert weight.grad is not None
        with torch.no_grad():
            assert F.conv2d(x.double(), weight.double()).dtype == torch.float64
            assert F.conv2d(x, weight, padding="same").shape == (1, 2, 5, 5)
            assert F.conv2d(x[0], weight).shape == (2, 3, 3)


def test_other_devices_are_left_alone():
    with use_fast_convolutions(torch.device("meta")), torch.no_grad():
        assert F.conv2d(torch.zeros(1, 3, 5, 5, device="meta"), torch.zeros(2, 3, 3, 3, device="meta")).is_meta
