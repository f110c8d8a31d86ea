"""Floating-point types: their names, where float64 exists, and whether a tensor holds finite numbers only."""

import torch
from torch import Tensor

COMPUTE_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}  # of a network, by short name
STORED_DTYPES = {*COMPUTE_DTYPES.values(), torch.float64, torch.float8_e4m3fn, torch.float8_e5m2}  # of a weights file
DEVICES_WITH_FLOAT64 = ("cpu", "cuda", "meta")  # Apple's, Intel's and DirectML's GPUs have none
FIRST_NOT_FINITE = {torch.float8_e4m3fn: 0x7F, torch.float8_e5m2: 0x7C}  # least byte, without its sign bit
CHUNK = 1 << 18  # values that are checked together where they must be copied


def name_dtype(dtype: torch.dtype) -> str:
    """Name a dtype without its module: `bfloat16`."""
    return str(dtype).removeprefix("torch.")


def name_precision(dtype: torch.dtype) -> str:
    """Name a dtype as a user chooses it: `bf16`; by `name_dtype` if no network computes in it."""
    return next((name for name, choice in COMPUTE_DTYPES.items() if choice == dtype), name_dtype(dtype))


def choose_float(device: torch.device | str) -> torch.dtype:
    """Choose float64, the reference's choice, or float32 on devices that have no float64."""
    return torch.float64 if torch.device(device).type in DEVICES_WITH_FLOAT64 else torch.float32


def choose_exact_device(device: torch.device | str) -> torch.device:
    """Choose where to compute in float64: on `device`, which then waits for no copy, or on the CPU if it has none."""
    device = torch.device(device)
    return device if device.type in DEVICES_WITH_FLOAT64 else torch.device("cpu")


def is_finite(tensor: Tensor) -> bool:
    """Whether no value is NaN or infinity, in one pass that allocates next to nothing; integers always are finite."""
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    if tensor.dtype in FIRST_NOT_FINITE:
        bytes_ = tensor.contiguous().view(torch.uint8).view(-1)
        return all(int((part & 0x7F).amax()) < FIRST_NOT_FINITE[tensor.dtype] for part in bytes_.split(CHUNK))
    if tensor.itemsize == 1:  # other kinds of float8, which support no arithmetic
        return all(is_finite(part.float()) for part in tensor.reshape(-1).split(CHUNK))
    low, high = torch.aminmax(tensor.detach())  # both are NaN if any value is
    return bool(torch.isfinite(low) & torch.isfinite(high))
