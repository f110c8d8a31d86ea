"""Low-rank adapters: what a file adds to the Linears of a Wan tree, W + strength · alpha/rank · B A (LongLive §3.2).

LongLive's LoRA has rank and alpha 256 on the ten Linears of each of 30 layers: 600 tensors. The reference multiplies
with all of them in every pass. Here they are merged into the weights in fp32, which costs a pass nothing and differs by
rounding.

Knows names and shapes of a state dict, no module tree.
"""

import contextlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ..errors import ConfigError, WeightsError, list_names, shorten
from ..model.dtypes import STORED_DTYPES, is_finite
from .identify import Kind, expect_kind
from .weights_file import WeightsFile, read_weights_file

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
class FactorPair:
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

    def add_to(self, weight: Tensor) -> Tensor:
        """Return weight + alpha/rank · B A in fp32, on the device of `weight`."""
        up, down = (factor.to(weight.device, torch.float32).flatten(1) for factor in (self.up, self.down))
        scale = self.alpha / self.rank
        scale = scale if abs(scale) <= LARGEST else math.inf  # addmm takes infinity, but no finite number beyond fp32
        return torch.addmm(weight.float().flatten(1), up, down, alpha=scale).view(weight.shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeReport:
    """What of a LoRA reached a model."""

    source: str
    matched: int  # modules
    unmatched: tuple[str, ...]  # modules the model lacks
    unread: tuple[str, ...]  # tensors that belong to no pair

    @property
    def warning(self) -> str:
        """One sentence if a part of the LoRA is not used, else nothing."""
        left = [
            f"{len(names)} {what} ({list_names(names, 2)})"
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
    pairs: Mapping[str, FactorPair]
    unread: tuple[str, ...] = ()

    @classmethod
    def read(cls, path: str | Path, *, alpha: float | None = None) -> "Lora":
        """Read an adapter with PEFT's, ComfyUI's or kohya's names, or the `generator_lora` of a training checkpoint."""
        return cls.of_weights_file(read_weights_file(path), alpha=alpha)

    @classmethod
    def of_weights_file(cls, weights: WeightsFile, *, alpha: float | None = None) -> "Lora":
        """Take the adapter in a file. Alpha is as given, else from its tensors or metadata, else the rank (scale 1)."""
        source = weights.name
        expect_kind(Kind.LORA, weights.tensors, source=source, expected=Kind.LORA, otherwise=CURE)
        other = [name for name in weights.tensors if OTHER_FORMULA.search(name)]
        other += [option for option in ("use_dora", "use_rslora") if weights.config.get(option)]
        if other:
            raise WeightsError(
                f"{source} is not a plain LoRA ({list_names(other, 2)}); merge it with the tool that made it"
            )

        stated_alpha = read_stated_alpha(weights)
        downs, ups, alphas, unread = {}, {}, {}, []
        for name, tensor in weights.tensors.items():
            for factors, suffixes in ((downs, DOWN), (ups, UP), (alphas, (ALPHA,))):
                suffix = next((suffix for suffix in suffixes if name.endswith(suffix)), None)
                if suffix:
                    # a copy: a mapped file that is later overwritten, as tuning does, would change or kill the process
                    factors[to_module_name(name.removesuffix(suffix))] = tensor.clone()
                    break
            else:
                unread.append(name)
        if halves := sorted(downs.keys() ^ ups.keys()):
            raise WeightsError(f"{source} has one factor of two for {list_names(halves)}; download it again")
        if not downs:
            raise WeightsError(f"{source} has no pair of factors, but {list_names(unread)}; download it again")

        pairs = {}
        for module, down in downs.items():
            refuse_misfit(down, ups[module], source, module)
            own = read_alpha(alphas[module], source, module) if module in alphas else stated_alpha
            value = alpha if alpha is not None else own if own is not None else down.shape[0]
            pairs[module] = FactorPair(down, ups[module], float(value))
        return cls(source=source, pairs=pairs, unread=tuple(unread))

    @property
    def ranks(self) -> tuple[int, ...]:
        """Every rank that occurs; one in most files."""
        return tuple(sorted({pair.rank for pair in self.pairs.values()}))

    @property
    def alphas(self) -> tuple[float, ...]:
        return tuple(sorted({pair.alpha for pair in self.pairs.values()}))

    def match(self, weights: Mapping[str, Tensor]) -> MergeReport:
        """Report which modules of a state dict (released names, any device, also meta) the LoRA changes.

        Raises WeightsError if there is none, or if one has another shape.
        """
        matched = [module for module in self.pairs if f"{module}.weight" in weights]
        unmatched = tuple(module for module in self.pairs if f"{module}.weight" not in weights)
        if not matched:
            raise WeightsError(
                f"{self.source} matches no module of the model (it has {list_names(unmatched, 2)}); {CURE}"
            )
        for module in matched:
            expected, found = tuple(weights[f"{module}.weight"].shape), self.pairs[module].shape
            if expected[0] != found[0] or math.prod(expected[1:]) != math.prod(found[1:]):
                raise WeightsError(
                    f"{self.source} was made for another model: its {module} is {list(found)}, the model's "
                    f"{list(expected)}; use a LoRA and a model of the same size"
                )
        return MergeReport(source=self.source, matched=len(matched), unmatched=unmatched, unread=self.unread)

    def scaled_by(self, strength: float) -> "Lora":
        """Return a LoRA that adds `strength` times as much."""
        pairs = {module: replace(pair, alpha=strength * pair.alpha) for module, pair in self.pairs.items()}
        return replace(self, pairs=pairs)

    def merge_into(self, name: str, weight: Tensor) -> Tensor:
        """Add the LoRA to the weight of that released name, in fp32. Returns `weight` itself if nothing is added."""
        pair = self.pairs.get(name.removesuffix(".weight")) if name.endswith(".weight") else None
        return pair.add_to(weight) if pair and pair.alpha else weight

    def as_comfy_state(self) -> dict[str, Tensor]:
        """Give the adapter the names that ComfyUI's `load_lora_for_models` takes."""
        state = {}
        for module, pair in self.pairs.items():
            name = f"diffusion_model.{module}"
            state[f"{name}.lora_A.weight"], state[f"{name}.lora_B.weight"] = pair.down, pair.up
            state[f"{name}.alpha"] = torch.tensor(pair.alpha)
        return state


def prepare_lora(lora: str | Path | Lora | None, strength: float) -> Lora | None:
    """Read a LoRA, unless it is one already, and scale it; None stays None.

    Raises WeightsError as `Lora.read` does, and ConfigError for a `strength` that is not a number.
    """
    if lora is not None and not isinstance(lora, Lora):
        lora = Lora.read(lora)
    if not math.isfinite(strength):
        raise ConfigError(f"the strength of the LoRA is {strength}; give a number, 1 for all of it")
    return lora and lora.scaled_by(strength)


def to_module_name(name: str) -> str:
    """Convert a module's name to its released one, also from kohya's (`lora_unet_blocks_0_self_attn_q`)."""
    match = KOHYA.fullmatch(name)
    return ".".join(filter(None, match.groups())) if match else name


def refuse_misfit(down: Tensor, up: Tensor, source: str, module: str) -> None:
    """Raise WeightsError unless two factors share a rank and hold finite numbers."""
    shares_rank = down.dim() >= 2 and up.dim() >= 2 and 0 < down.shape[0] == math.prod(up.shape[1:])
    if not shares_rank or not down.numel() or not up.numel():
        shapes = f"{list(down.shape)} and {list(up.shape)}"
        raise WeightsError(f"{source} has factors {shapes} for {shorten(module)}, which share no rank; {CURE}")
    for factor in (down, up):
        if factor.dtype not in STORED_DTYPES or not is_finite(factor):
            raise WeightsError(
                f"{source} holds NaN, infinity or numbers of {factor.dtype} in {shorten(module)}; {CURE}"
            )


def read_alpha(alpha: Tensor, source: str, module: str) -> float:
    """Read alpha from a tensor. Raises WeightsError unless it is one finite number."""
    if alpha.numel() != 1 or alpha.is_complex() or not is_finite(alpha):
        raise WeightsError(f"{source} states an alpha for {shorten(module)} that is not a number; give `alpha`")
    return float(alpha)


def read_stated_alpha(weights: WeightsFile) -> float | None:
    """Read alpha from the metadata or from a PEFT folder's adapter_config.json; None if neither has it."""
    value = weights.metadata.get("alpha", weights.config.get("lora_alpha"))
    with contextlib.suppress(TypeError, ValueError):
        number = None if value is None else float(value)
        if number is None or math.isfinite(number):
            return number
    raise WeightsError(f"{weights.name} states alpha {shorten(repr(value))}, which is not a number; give `alpha`")
