"""Low-rank adapters: what a file adds to the Linears of a Wan tree, W + strength · alpha/rank · B A (LongLive §3.2).

Released: rank and alpha 256 on the ten Linears of each block, 600 tensors. The reference keeps them apart at run time,
which costs 600 multiplications a pass; merged in fp32 they cost none and differ by one rounding.

Knows names and shapes of a state dict, no module tree.
"""

import contextlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..errors import CheckpointError
from ..finite import is_finite
from ..untrusted import brief
from .kinds import Kind, expect
from .weights import FLOATS, Weights, listed, read

DOWN = (".lora_A.weight", ".lora_A.default.weight", ".lora_down.weight", ".lora_A", ".lora.down.weight")
UP = (".lora_B.weight", ".lora_B.default.weight", ".lora_up.weight", ".lora_B", ".lora.up.weight")
ALPHA = ".alpha"
LARGEST = torch.finfo(torch.float32).max
OTHER_FORMULA = re.compile(r"dora_scale|lora_magnitude_vector|hada_|lokr_|lora_mid|reshape_weight")
KOHYA = re.compile(
    r"lora_unet__?(?:(blocks)_(\d+)_(self_attn|cross_attn|ffn)|(text_embedding|time_embedding|time_projection|head))_(\w+)"
)
CURE = "download models/lora.pt from huggingface.co/Efficient-Large-Model/LongLive-1.3B"


@dataclass(frozen=True, slots=True)
class Pair:
    """The two factors of one module."""

    down: Tensor  # A [rank, inputs]
    up: Tensor  # B [outputs, rank]
    alpha: float

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.up.shape[0], *self.down.shape[1:])

    def added_to(self, weight: Tensor, strength: float = 1.0) -> Tensor:
        """weight + strength · alpha/rank · B A in fp32, on the device of `weight`."""
        up, down = (factor.to(weight.device, torch.float32).flatten(1) for factor in (self.up, self.down))
        scale = strength * self.alpha / self.rank
        scale = scale if abs(scale) <= LARGEST else math.inf  # addmm takes infinity, but nothing between
        return torch.addmm(weight.float().flatten(1), up, down, alpha=scale).view(weight.shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeReport:
    """What of a LoRA reached a model."""

    source: str
    matched: int  # modules
    unmatched: tuple[str, ...]  # modules the model lacks
    unread: tuple[str, ...]  # tensors that are no part of a pair

    @property
    def warning(self) -> str:
        """One sentence where a part of the LoRA is left aside, else nothing."""
        left = [
            f"{len(names)} {what} ({listed(names, 2)})"
            for names, what in (
                (self.unmatched, "modules that the model lacks"),
                (self.unread, "tensors of another form"),
            )
            if names
        ]
        return f"{self.source} is used in part: {self.matched} modules, without {' and '.join(left)}" if left else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lora:
    """An adapter by module name, `blocks.0.self_attn.q`."""

    source: str
    pairs: Mapping[str, Pair]
    unread: tuple[str, ...] = ()

    @classmethod
    def read(cls, path: str | Path, *, alpha: float | None = None) -> "Lora":
        """Open an adapter in PEFT's, ComfyUI's or kohya's spelling; of a training checkpoint, its `generator_lora`."""
        return cls.of(read(path), alpha=alpha)

    @classmethod
    def of(cls, weights: Weights, *, alpha: float | None = None) -> "Lora":
        """The adapter in a file; alpha as given, else as its tensors or metadata state, else the rank (scale 1)."""
        source = weights.name
        expect(Kind.LORA, weights.tensors, source=source, expected=Kind.LORA, otherwise=CURE)
        other = [name for name in weights.tensors if OTHER_FORMULA.search(name)]
        other += [option for option in ("use_dora", "use_rslora") if weights.config.get(option)]
        if other:
            raise CheckpointError(
                f"{source} is no plain LoRA ({listed(other, 2)}); merge it with the tool that made it"
            )

        stated_alpha = stated_number(weights)
        downs, ups, alphas, unread = {}, {}, {}, []
        for name, tensor in weights.tensors.items():
            for factors, suffixes in ((downs, DOWN), (ups, UP), (alphas, (ALPHA,))):
                suffix = next((suffix for suffix in suffixes if name.endswith(suffix)), None)
                if suffix:
                    # a copy: a mapped file that is later overwritten, as tuning does, would change or kill the process
                    factors[module_name(name.removesuffix(suffix))] = tensor.clone()
                    break
            else:
                unread.append(name)
        if halves := sorted(downs.keys() ^ ups.keys()):
            raise CheckpointError(f"{source} has one factor of two for {listed(halves)}; download it again")

        pairs = {}
        for module, down in downs.items():
            refuse_misfit(down, ups[module], source, module)
            own = number_of(alphas[module], source, module) if module in alphas else stated_alpha
            value = alpha if alpha is not None else own if own is not None else down.shape[0]
            pairs[module] = Pair(down, ups[module], float(value))
        return cls(source=source, pairs=pairs, unread=tuple(unread))

    @property
    def ranks(self) -> tuple[int, ...]:
        """Every rank that occurs; one in most files."""
        return tuple(sorted({pair.rank for pair in self.pairs.values()}))

    @property
    def alphas(self) -> tuple[float, ...]:
        return tuple(sorted({pair.alpha for pair in self.pairs.values()}))

    def matched_to(self, weights: Mapping[str, Tensor]) -> MergeReport:
        """Which modules of a state dict (released names, any device, meta too) the LoRA changes.

        Raises CheckpointError if there is none, or if one has another shape.
        """
        matched = [module for module in self.pairs if f"{module}.weight" in weights]
        unmatched = tuple(module for module in self.pairs if f"{module}.weight" not in weights)
        if not matched:
            raise CheckpointError(
                f"{self.source} matches no module of the model (it has {listed(unmatched, 2)}); {CURE}"
            )
        for module in matched:
            expected, found = tuple(weights[f"{module}.weight"].shape), self.pairs[module].shape
            if expected[0] != found[0] or math.prod(expected[1:]) != math.prod(found[1:]):
                raise CheckpointError(
                    f"{self.source} was made for another model: its {module} is {list(found)}, the model's "
                    f"{list(expected)}; use a LoRA and a model of the same size"
                )
        return MergeReport(source=self.source, matched=len(matched), unmatched=unmatched, unread=self.unread)

    def merged(self, name: str, weight: Tensor, strength: float = 1.0) -> Tensor:
        """The weight of that released name with the LoRA in it, in fp32; the very `weight` where it has no part."""
        pair = self.pairs.get(name.removesuffix(".weight")) if name.endswith(".weight") else None
        return pair.added_to(weight, strength) if pair and strength else weight

    def comfy_keys(self) -> dict[str, Tensor]:
        """The same adapter under the names that ComfyUI's `load_lora_for_models` takes."""
        state = {}
        for module, pair in self.pairs.items():
            name = f"diffusion_model.{module}"
            state[f"{name}.lora_A.weight"], state[f"{name}.lora_B.weight"] = pair.down, pair.up
            state[f"{name}.alpha"] = torch.tensor(pair.alpha)
        return state


def module_name(name: str) -> str:
    """A module's released name from its own or kohya's spelling (`lora_unet_blocks_0_self_attn_q`)."""
    match = KOHYA.fullmatch(name)
    return ".".join(filter(None, match.groups())) if match else name


def refuse_misfit(down: Tensor, up: Tensor, source: str, module: str) -> None:
    """Raise CheckpointError unless two factors share a rank and hold finite numbers."""
    shares_rank = down.dim() >= 2 and up.dim() >= 2 and 0 < down.shape[0] == math.prod(up.shape[1:])
    if not shares_rank or not down.numel() or not up.numel():
        shapes = f"{list(down.shape)} and {list(up.shape)}"
        raise CheckpointError(f"{source} has factors {shapes} for {brief(module)}, which share no rank; {CURE}")
    for factor in (down, up):
        if factor.dtype not in FLOATS or not is_finite(factor):
            raise CheckpointError(
                f"{source} holds NaN, infinity or numbers of {factor.dtype} in {brief(module)}; {CURE}"
            )


def number_of(alpha: Tensor, source: str, module: str) -> float:
    """The alpha that a tensor states. Raises CheckpointError unless it is one finite number."""
    if alpha.numel() != 1 or alpha.is_complex() or not is_finite(alpha):
        raise CheckpointError(f"{source} states an alpha for {brief(module)} that is no number; give `alpha`")
    return float(alpha)


def stated_number(weights: Weights) -> float | None:
    """The alpha that stands in the metadata or in a PEFT folder's adapter_config.json."""
    value = weights.metadata.get("alpha", weights.config.get("lora_alpha"))
    with contextlib.suppress(TypeError, ValueError):
        number = None if value is None else float(value)
        if number is None or math.isfinite(number):
            return number
    raise CheckpointError(f"{weights.name} states alpha {brief(repr(value))}, which is no number; give `alpha`")
