"""Attention, one function: the fastest kernel of this machine that does not quantise, for a device and dtype.

Inside ComfyUI the host's own attention takes its place.
Dimension key: B batch, T queries, S keys, N heads, H channels per head. No mask: the KV cache decides what is seen.
"""

import importlib
import inspect
import logging
from collections.abc import Callable
from functools import cache
from importlib import metadata

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..errors import ConfigError
from .kitchen import KITCHEN
from .wan import HEAD_DIM

log = logging.getLogger(__name__)

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""From q [B, T, N, H], k and v [B, S, N, H] to [B, T, N, H]."""

HALF = (torch.float16, torch.bfloat16)
AMPERE, HOPPER = 8, 9  # generations of GPUs: the first number of their compute capability
FLASH3, FLASH2, SAGE = "flash_attn_interface", "flash_attn", "sageattention"  # modules


def choose_attention(device: torch.device, dtype: torch.dtype, *, quantised: bool = False) -> tuple[Attend, str]:
    """Choose a kernel; return it and its name with its release.

    It is the newest for the device, else FlashAttention 2 if it is installed and made for the device, else what PyTorch
    chooses.

    Kernels that quantise are used only on request. Raises ConfigError if one is requested and none is available.
    """
    on_gpu = device.type == "cuda" and dtype in HALF
    if quantised:
        return choose_quantised_attention(device, dtype)
    if newest := choose_newest_attention(device, dtype):
        return newest
    if on_gpu and get_generation(device) >= AMPERE and (attend := load_flash2()):
        return attend, name_release("flash2", FLASH2)
    return attend_with_torch, "sdpa"


def choose_quantised_attention(device: torch.device, dtype: torch.dtype) -> tuple[Attend, str]:
    """Choose a kernel that computes in 8 bits: SageAttention if it is installed, else comfy-kitchen's.

    Raises ConfigError if there is none for the device.
    """
    if device.type == "cuda" and dtype in HALF:
        if attend := load_sage():
            return attend, name_release("sage", SAGE)
        if attend := load_int8(device):
            return attend, name_release("int8-attention", KITCHEN)
    raise ConfigError(
        f"8-bit attention cannot run here ({device.type}, {dtype}); install sageattention, or comfy-kitchen 0.2.40 and "
        f"a PyTorch for CUDA 13, and use a CUDA GPU with bf16 or fp16"
    )


def choose_newest_attention(device: torch.device, dtype: torch.dtype) -> tuple[Attend, str] | None:
    """Choose a kernel made for Hopper or Blackwell: FlashAttention 3 if it is installed, else cuDNN's.

    It takes three fifths of the time of FlashAttention 2 on Hopper, which PyTorch and ComfyUI prefer. None if the
    device is older or there is no such kernel.
    """
    if device.type != "cuda" or dtype not in HALF or get_generation(device) < HOPPER:
        return None
    if get_generation(device) == HOPPER and (attend := load_flash3()):
        return attend, name_release("flash3", FLASH3)
    if can_attend_with_cudnn(device, dtype):
        return attend_with_cudnn, f"cudnn {torch.backends.cudnn.version()}"
    return None


def get_generation(device: torch.device) -> int:
    return torch.cuda.get_device_capability(device)[0]


def can_attend_with_cudnn(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether PyTorch has cuDNN's attention for this device and can prefer it, which it can from 2.6 on."""
    if "set_priority" not in inspect.signature(sdpa_kernel).parameters:
        return False
    x = torch.empty(1, 1, 128, HEAD_DIM, device=device, dtype=dtype)
    return torch.backends.cuda.can_use_cudnn_attention(torch.backends.cuda.SDPAParams(x, x, x, None, 0.0, False, False))


def name_release(kernel: str, module: str) -> str:
    """Name a kernel with the installed release it comes from: another one may round differently."""
    return " ".join(filter(None, [kernel, find_release(module)]))


def find_release(module: str) -> str:
    """Find name and version of the installed distribution of a module; empty if it has none."""
    names = {*_read_distributions().get(module.partition(".")[0], ())}
    return " ".join(f"{name} {metadata.version(name)}" for name in sorted(names))


@cache
def _read_distributions() -> dict[str, list[str]]:
    return dict(metadata.packages_distributions())


def attend_with_torch(q_BTNH: Tensor, k_BSNH: Tensor, v_BSNH: Tensor) -> Tensor:
    """Attend by PyTorch's scaled dot product attention: flash, memory-efficient, plain or cuDNN, as PyTorch chooses."""
    q, k, v = (x.transpose(1, 2) for x in (q_BTNH, k_BSNH, v_BSNH))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)


def attend_with_cudnn(q_BTNH: Tensor, k_BSNH: Tensor, v_BSNH: Tensor) -> Tensor:
    """Attend by cuDNN's kernel, or as PyTorch chooses where it does not fit. To prefer it takes 20 µs of the host."""
    backends = [
        SDPBackend.CUDNN_ATTENTION,
        SDPBackend.FLASH_ATTENTION,
        SDPBackend.EFFICIENT_ATTENTION,
        SDPBackend.MATH,
    ]
    with sdpa_kernel(backends, set_priority=True):
        return attend_with_torch(q_BTNH, k_BSNH, v_BSNH)


@cache
def load_flash3() -> Attend | None:
    """Load FlashAttention 3 (arXiv 2407.08608), for Hopper. Some builds return (output, lse), some only the output."""
    kernel = _load_optional(FLASH3, "flash_attn_func")
    if kernel is None:
        return None

    def attend(q_BTNH: Tensor, k_BSNH: Tensor, v_BSNH: Tensor) -> Tensor:
        out = kernel(q_BTNH, k_BSNH, v_BSNH)
        return out[0] if isinstance(out, tuple) else out

    return attend


@cache
def load_flash2() -> Attend | None:
    """Load FlashAttention 2 (arXiv 2307.08691), for Ampere and later."""
    return _load_optional(FLASH2, "flash_attn_func")


@cache
def load_sage() -> Attend | None:
    """Load SageAttention (arXiv 2410.02367): 8-bit, fast on consumer cards, not exact."""
    kernel = _load_optional(SAGE, "sageattn")
    if kernel is None:
        return None
    return lambda q_BTNH, k_BSNH, v_BSNH: kernel(q_BTNH, k_BSNH, v_BSNH, tensor_layout="NHD")


@cache
def load_int8(device: torch.device) -> Attend | None:
    """Load comfy-kitchen's attention: 8-bit, for RTX 20 and newer, not exact. None before its release 0.2.40."""
    kernel, is_available = (_load_optional(KITCHEN, name) for name in ("int8_attention", "int8_attention_is_available"))
    if kernel is None or is_available is None or not is_available(device):
        return None

    def attend(q_BTNH: Tensor, k_BSNH: Tensor, v_BSNH: Tensor) -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in (q_BTNH, k_BSNH, v_BSNH))
        return kernel(q, k, v).transpose(1, 2)

    return attend


def _load_optional(module: str, function: str) -> Callable | None:
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, OSError) as error:
        log.debug("%s.%s is not used: %s", module, function, error)
        return None
