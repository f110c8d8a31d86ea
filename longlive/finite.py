"""Whether a tensor holds numbers alone: neither NaN nor infinity, told in one pass that allocates next to nothing."""

import torch
from torch import Tensor

FIRST_OTHER = {torch.float8_e4m3fn: 0x7F, torch.float8_e5m2: 0x7C}  # bytes from here on, signs aside, are no numbers
CHUNK = 1 << 18  # values that are looked at together where they must be copied


def is_finite(tensor: Tensor) -> bool:
    """Whether every value is finite; whole numbers always are."""
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    if tensor.dtype in FIRST_OTHER:
        bytes_ = tensor.contiguous().view(torch.uint8).view(-1)
        return all(int((part & 0x7F).amax()) < FIRST_OTHER[tensor.dtype] for part in bytes_.split(CHUNK))
    if tensor.itemsize == 1:  # other kinds of float8, which no arithmetic knows
        return all(is_finite(part.float()) for part in tensor.reshape(-1).split(CHUNK))
    low, high = torch.aminmax(tensor.detach())  # a NaN comes through as both
    return bool(torch.isfinite(low) & torch.isfinite(high))
