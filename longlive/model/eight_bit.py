"""Linear layers in 8 bits: what forms there are."""

from enum import StrEnum

GROUP = 256  # inputs that a rotation mixes: the one size that comfy-kitchen has a fast kernel for
LARGEST_INT8, LARGEST_FP8 = 127, 448  # numbers of an 8-bit weight


class EightBit(StrEnum):
    """A form of an 8-bit weight, by the name a user chooses."""

    INT8 = "int8"  # whole numbers, with one scale for each output
    INT8_ROTATED = "int8 rotated"  # the same after a rotation of the inputs (ConvRot, arXiv 2512.03673)
    FP8_SCALED = "fp8 scaled"  # float8 e4m3, with one scale
