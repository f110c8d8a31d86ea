"""The four attributes of a scene as numbers and columns, in the order of `ATTRIBUTES`.

Dimension key: S seeds, A attributes, F pixel frames.
"""

import numpy as np
import torch
from torch import Tensor

from ...evaluation.report import Estimate, estimate
from ..grammar import ATTRIBUTES

ATTRIBUTE_COLUMNS = tuple((name, ".1%") for name in ATTRIBUTES)
SHAPE = [*ATTRIBUTES].index("shape")


def stack_attributes(is_right: dict[str, Tensor]) -> np.ndarray:
    """Stack the frames of each attribute to rows of 0 and 1 [A, F]."""
    return torch.stack([is_right[name] for name in ATTRIBUTES]).double().numpy()


def estimate_shares(right_SAF: np.ndarray) -> list[Estimate]:
    """Estimate the share of right frames for each attribute."""
    return [estimate(right_SF.mean(1)) for right_SF in right_SAF.transpose(1, 0, 2)]
