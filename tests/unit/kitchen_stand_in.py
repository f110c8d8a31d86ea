"""A stand-in for comfy-kitchen: it computes with the widened weights, and its backends are what a test says."""

import sys
from types import ModuleType, SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor

from longlive.model.eight_bit import DTYPE_CODES
from longlive.weights.quantise import make_hadamard

NO_GPU = {"available": False, "disabled": False, "unavailable_reason": "CUDA not available on this system"}
READY = {"available": True, "disabled": False, "unavailable_reason": None}


def install_kitchen(monkeypatch, **backends: dict) -> None:
    """Put the stand-in where comfy-kitchen would be. The backend `eager` is there, and those that are given."""
    kitchen = ModuleType("comfy_kitchen")

    def int8_linear(
        x: Tensor, weight: Tensor, scale: Tensor, bias, dtype_code: int, convrot: bool, group: int
    ) -> Tensor:
        assert DTYPE_CODES[x.dtype] == dtype_code
        if convrot:
            x = (x.unflatten(-1, (-1, group)) @ make_hadamard().to(x)).flatten(-2)
        return F.linear(x, weight.to(x) * scale.to(x), bias)

    def dequantize_fp8(x: Tensor, scale: Tensor, dtype_code: int) -> Tensor:
        [dtype] = [dtype for dtype, code in DTYPE_CODES.items() if code == dtype_code]
        return x.to(dtype) * scale.to(dtype)

    kitchen.list_backends = lambda: {"eager": READY} | backends
    monkeypatch.setitem(sys.modules, "comfy_kitchen", kitchen)
    operators = SimpleNamespace(int8_linear=int8_linear, dequantize_fp8=dequantize_fp8)
    monkeypatch.setattr(torch.ops, "comfy_kitchen", operators, raising=False)
