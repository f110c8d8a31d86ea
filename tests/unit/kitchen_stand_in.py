"""A stand-in for comfy-kitchen: it computes with the widened weights, and its backends are what a test says."""

import sys
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

from longlive.weights.quantise import make_hadamard

NO_GPU = {"available": False, "disabled": False, "unavailable_reason": "CUDA not available on this system"}
READY = {"available": True, "disabled": False, "unavailable_reason": None}


def install_kitchen(monkeypatch, **backends: dict) -> ModuleType:
    """Put the stand-in where comfy-kitchen would be. The backend `eager` is there, and those that are given."""
    kitchen = ModuleType("comfy_kitchen")

    def int8_linear(
        x: Tensor, weight: Tensor, scale: Tensor, bias, out_dtype, *, convrot: bool, convrot_groupsize: int
    ) -> Tensor:
        if convrot:
            x = (x.unflatten(-1, (-1, convrot_groupsize)) @ make_hadamard().to(x)).flatten(-2)
        return F.linear(x, weight.to(x) * scale.to(x), bias).to(out_dtype)

    def dequantize_per_tensor_fp8(x: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
        return x.to(dtype) * scale.to(dtype)

    kitchen.list_backends = lambda: {"eager": READY} | backends
    kitchen.int8_linear, kitchen.dequantize_per_tensor_fp8 = int8_linear, dequantize_per_tensor_fp8
    monkeypatch.setitem(sys.modules, "comfy_kitchen", kitchen)
    return kitchen
