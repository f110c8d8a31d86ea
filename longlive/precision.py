"""The widest float a device computes in: what the reference does in float64 is done there, or as near as can be."""

import torch


def widest(device: torch.device | str) -> torch.dtype:
    """float64, or float32 on Apple's GPUs, which have no float64."""
    return torch.float32 if torch.device(device).type == "mps" else torch.float64
