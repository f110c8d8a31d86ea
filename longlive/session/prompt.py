"""A prompt as a session holds it, and the mix of several."""

import hashlib
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..digest import hash_tensors
from ..errors import ConditioningError, escape, shorten
from ..model.dtypes import is_finite, name_dtype
from .boundary import Curve

MAX_PARTS = 16  # of a mix of prompts
MIX_WEIGHT = re.compile(r"[0-9]+(?:\.[0-9]*)?|\.[0-9]+")
SMALLEST_SINE = 1e-4  # of the angle between two rows; below it their directions are mixed in a straight line


@dataclass(frozen=True, eq=False)
class Prompt:
    """A prompt embedding without its trailing zero rows, and its text if known."""

    embedding: Tensor  # [1, rows, D] on the CPU
    rows: int  # of the whole embedding: the model attends the zero rows too
    text: str = ""

    @classmethod
    def of(cls, embedding: Tensor, text: str = "") -> "Prompt":
        """Take a prompt embedding [1, rows, D]. Raises ConditioningError for another shape, NaN or infinity."""
        if embedding.ndim != 3 or embedding.shape[0] != 1 or not embedding.numel():
            raise ConditioningError(
                f"the prompt embedding has shape {list(embedding.shape)}; a session takes one prompt, [1, rows, width]"
                f"; encode one text"
            )
        if not embedding.is_floating_point():
            raise ConditioningError(
                f"the prompt embedding holds {name_dtype(embedding.dtype)}, expected floating-point numbers; encode "
                f"the prompt with a text encoder"
            )
        if not is_finite(embedding):
            raise ConditioningError(
                f"the prompt embedding holds NaN or infinity (in {name_dtype(embedding.dtype)}); load the text encoder "
                f"again, or in another precision"
            )
        filled = embedding[0].ne(0).any(-1).nonzero()
        used = int(filled[-1]) + 1 if len(filled) else 1
        return cls(embedding[:, :used].detach().cpu().contiguous().clone(), embedding.shape[1], text)

    @cached_property
    def digest(self) -> str:
        return hashlib.sha256(f"{self.rows} {hash_tensors({'': self.embedding})}".encode()).hexdigest()

    def __str__(self) -> str:
        return escape(self.text) or f"(prompt {self.digest[:8]})"

    def pad(self) -> Tensor:
        """Return the embedding [1, rows, D] with its zero rows."""
        return pad(self.embedding, (0, 0, 0, self.rows - self.embedding.shape[1]))


def mix_prompts(
    prompts: Sequence[Prompt], weights: Sequence[float], curve: Curve = Curve.LINEAR, text: str = ""
) -> Prompt:
    """Mix prompt embeddings in float32; the weights are divided by their sum.

    A shorter prompt counts as zero beyond its last row. With the spherical curve each row turns from one prompt to the
    next and its norm changes linearly; a row that is zero in one of them is mixed linearly. More than two prompts are
    then mixed one after the other. Raises ConditioningError for weights that are not above 0, or for embeddings of
    different widths.
    """
    assert len(prompts) == len(weights) > 0
    if any(not (math.isfinite(weight) and weight > 0) for weight in weights):
        shown = ", ".join(f"{weight:g}" for weight in weights)
        raise ConditioningError(f"the weights of the mixed prompts are {shown}; use numbers above 0")
    widths = sorted({prompt.embedding.shape[2] for prompt in prompts})
    if len(widths) > 1:
        raise ConditioningError(f"the mixed prompts are {widths} wide; encode all of them with one text encoder")
    used = max(prompt.embedding.shape[1] for prompt in prompts)
    rows = [pad(prompt.embedding.float(), (0, 0, 0, used - prompt.embedding.shape[1])) for prompt in prompts]
    mixed, _ = reduce(
        lambda left, right: (_mix_two(left, right, curve), left[1] + right[1]), zip(rows, weights, strict=True)
    )
    dtype = prompts[0].embedding.dtype
    largest = torch.finfo(dtype).max  # a row of float16 may turn beyond it
    return Prompt(mixed.clamp(-largest, largest).to(dtype), max(prompt.rows for prompt in prompts), text)


def _mix_two(left: tuple[Tensor, float], right: tuple[Tensor, float], curve: Curve) -> Tensor:
    """Mix the rows [1, rows, D] of two prompts with weights."""
    (start, start_weight), (end, end_weight) = left, right
    share = end_weight / (start_weight + end_weight)
    straight = start * (1 - share) + end * share
    if curve is Curve.LINEAR:
        return straight
    norms = [rows.norm(dim=-1, keepdim=True) for rows in (start, end)]
    smallest = torch.finfo(straight.dtype).tiny
    directions = [rows / norm.clamp(min=smallest) for rows, norm in zip((start, end), norms, strict=True)]
    angle = (directions[0] * directions[1]).sum(-1, keepdim=True).clamp(-1, 1).acos()
    sine = angle.sin()
    turned = (directions[0] * ((1 - share) * angle).sin() + directions[1] * (share * angle).sin()) / sine
    norm = norms[0] * (1 - share) + norms[1] * share
    is_turned = (norms[0] > 0) & (norms[1] > 0) & (sine > SMALLEST_SINE)
    return torch.where(is_turned, turned * norm, straight)


def encode_prompt_mix(text: str, encode: Callable[[str], Prompt]) -> Prompt:
    """Encode a text: one prompt, or several with weights as in `a red ring :0.7 AND a blue ring :0.3`.

    It is a mix if it has several parts and every one ends in a weight. Raises ConditioningError for a weight of 0 and
    for too many parts.
    """
    parts = [part.strip().rpartition(" :") for part in text.split(" AND ")]
    if len(parts) == 1 or not all(prompt.strip() and MIX_WEIGHT.fullmatch(weight) for prompt, _, weight in parts):
        return encode(text)
    if len(parts) > MAX_PARTS:
        raise ConditioningError(f"the prompt is a mix of {len(parts)}; mix {MAX_PARTS} at most")
    weights = [float(weight) for _, _, weight in parts]
    for (prompt, _, weight), value in zip(parts, weights, strict=True):
        if not 0 < value < math.inf:
            raise ConditioningError(f"the weight of '{shorten(prompt)}' is {shorten(weight)}; use a number above 0")
    return mix_prompts([encode(prompt.strip()) for prompt, _, _ in parts], weights, text=text)
