"""comfy-kitchen, an optional package (Apache-2.0): what computes with 8-bit weights, and whether it is fast here.

ComfyUI brings it along. Its INT8 kernels are in compiled backends; without them it computes in PyTorch, step by step.
"""

import importlib
from types import ModuleType

import torch

from ..errors import ConfigError

KITCHEN = "comfy_kitchen"
IN_PYTORCH = "eager"  # the backend without kernels
INT8_CAPABILITY, FP8_CAPABILITY = (7, 5), (8, 9)  # compute capability of the first GPUs that multiply it


def import_kitchen(part: str = KITCHEN) -> ModuleType:
    """Import comfy-kitchen, or a module of it. Raises ConfigError, with the cure, if it does not load."""
    try:
        return importlib.import_module(part)
    except (ImportError, OSError) as error:
        raise ConfigError(
            f"8-bit weights need comfy-kitchen, which does not load ({error}); pip install 'comfy-kitchen>=0.2.40', "
            f"or use bf16 weights"
        ) from error


def list_fast_backends(device: torch.device) -> list[str]:
    """List the backends whose kernels are switched on for a device, such as `cuda`; none without a GPU."""
    if device.type != "cuda":
        return []
    backends = import_kitchen().list_backends().items()
    return sorted(
        name for name, state in backends if state["available"] and not state["disabled"] and name != IN_PYTORCH
    )


def find_int8_obstacle(device: torch.device) -> str:
    """Find why comfy-kitchen has no INT8 kernels on a device; empty if it has."""
    if device.type != "cuda":
        return f"the device is {device.type}"
    if list_fast_backends(device):
        is_able = torch.version.hip or torch.cuda.get_device_capability(device) >= INT8_CAPABILITY
        return "" if is_able else "the GPU is older than RTX 20"
    state = import_kitchen().list_backends().get("cuda", {})
    return state.get("unavailable_reason") or "its CUDA backend is switched off"


def explain_slow_int8(device: torch.device) -> str:
    """Say in a sentence why INT8 is slow on a device, what it costs and the cure; nothing if it is fast."""
    reason = find_int8_obstacle(device)
    return reason and (
        f"comfy-kitchen has no INT8 kernels here ({reason}): INT8 is computed step by step in PyTorch, which, by "
        f"calculation, moves about 470 GB more per block at 832 x 480 and is slower than bf16; use a PyTorch for "
        f"CUDA 13 (cu130) or newer, or bf16 weights"
    )


def can_multiply_fp8(device: torch.device) -> bool:
    """Whether a device multiplies float8 e4m3: NVIDIA's RTX 40, H100 and newer."""
    is_nvidia = device.type == "cuda" and torch.version.hip is None
    return is_nvidia and torch.cuda.get_device_capability(device) >= FP8_CAPABILITY


def explain_slow_fp8(device: torch.device) -> str:
    """Say in a sentence why float8 is no faster than bf16 on a device; nothing if it is."""
    if can_multiply_fp8(device):
        return ""
    return (
        f"this device ({device.type}) does not multiply float8, which needs an RTX 40, an H100 or newer: the weights "
        f"are widened in every pass, which saves memory but no time; choose int8 or bf16 weights for speed"
    )
