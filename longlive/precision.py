"""The widest float a device computes in: what the reference does in float64 is done there, or as near as can be."""

import torch

WITH_FLOAT64 = ("cpu", "cuda", "meta")  # Apple's, Intel's and DirectML's GPUs have none


def widest(device: torch.device | str) -> torch.dtype:
    """float64, or float32 on devices that have no float64."""
    return torch.float64 if torch.device(device).type in WITH_FLOAT64 else torch.float32
