"""Numbers of single pictures: traits that stay constant in a video that does not drift, steps and thumbnails.

Dimension key: F pixel frames, H rows, W columns, T traits, N numbers of a thumbnail.
"""

import torch
import torch.nn.functional as nnf
from torch import Tensor

TRAITS = ("brightness", "contrast", "saturation", "sharpness", "redness", "blueness")
LUMA = (0.299, 0.587, 0.114)  # of red, green and blue (ITU-R BT.601)
THUMBNAIL = 16  # rows and columns
STEP_SIZE = 64  # rows and columns of the pictures whose steps are measured


def measure_traits(bytes_FHW3: Tensor) -> Tensor:
    """Measure the TRAITS of each frame [F, T], of 255.

    They are the mean and the standard deviation of luma, the range of red, green and blue in a pixel, the step of luma
    between neighbouring pixels, and how much red and blue exceed luma. Large pictures are measured on pairs of rows, a
    few rows apart.
    """
    rows = bytes_FHW3.shape[1]
    apart = 2 * max(1, rows // STEP_SIZE)
    pairs_FHPW3 = bytes_FHW3[:, : rows // apart * apart].unflatten(1, (-1, apart))[:, :, :2].float()
    luma_FHPW = pairs_FHPW3 @ torch.tensor(LUMA)
    saturation_FHPW = pairs_FHPW3.amax(-1) - pairs_FHPW3.amin(-1)
    down_F, across_F = (luma_FHPW.diff(dim=axis).abs().mean((1, 2, 3)) for axis in (2, 3))
    light_FN = luma_FHPW.flatten(1)
    brightness_F = light_FN.mean(1)
    red_F, _, blue_F = pairs_FHPW3.mean((1, 2, 3)).unbind(1)
    return torch.stack(
        [
            brightness_F,
            light_FN.std(1),
            saturation_FHPW.mean((1, 2, 3)),
            (down_F + across_F) / 2,
            red_F - brightness_F,
            blue_F - brightness_F,
        ],
        dim=1,
    )


def shrink_roughly(bytes_FHW3: Tensor) -> Tensor:
    """Shrink pictures to STEP_SIZE rows and columns [F, 3, H, W], whole numbers, from some pixels of large ones."""
    step = max(1, min(bytes_FHW3.shape[1:3]) // (2 * STEP_SIZE))
    return shrink(bytes_FHW3[:, ::step, ::step], STEP_SIZE).round_()


def measure_steps(small_F3HW: Tensor, before_13HW: Tensor | None) -> Tensor:
    """Measure the mean absolute difference of each picture from the one before [F]; 0 for the first of all."""
    first = small_F3HW[:1] if before_13HW is None else before_13HW
    return torch.cat([first, small_F3HW]).diff(dim=0).abs().mean((1, 2, 3))


def make_thumbnails(bytes_FHW3: Tensor) -> Tensor:
    """Make small pictures [F, N] of mean 0 and length 1, so that a product is a correlation."""
    small_FN = shrink(bytes_FHW3, THUMBNAIL).flatten(1)
    return nnf.normalize(small_FN - small_FN.mean(1, keepdim=True), dim=1)


def shrink(bytes_FHW3: Tensor, size: int) -> Tensor:
    """Shrink pictures to [F, 3, size, size], 0..255; each pixel is the mean of those it replaces."""
    return nnf.interpolate(bytes_FHW3.permute(0, 3, 1, 2).float(), (size, size), mode="area")
