"""Float64 where a device has it: what the reference computes so is computed so, or as near as can be."""

import torch

WITH_FLOAT64 = ("cpu", "cuda", "meta")  # Apple's, Intel's and DirectML's GPUs have none


def widest(device: torch.device | str) -> torch.dtype:
    """float64, or float32 on devices that have no float64."""
    return torch.float64 if torch.device(device).type in WITH_FLOAT64 else torch.float32


def exact_device(device: torch.device | str) -> torch.device:
    """Where to compute in float64 for `device`: there, so that it waits for no copy, or on the CPU if it cannot."""
    device = torch.device(device)
    return device if device.type in WITH_FLOAT64 else torch.device("cpu")
