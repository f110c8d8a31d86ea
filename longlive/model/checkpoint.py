"""From a file to a Wan tree: every name matched, every shape checked, a LoRA merged on the way (LongLive §3).

Knows nothing of ComfyUI: the command line and the nodes read the same files by the same code.
"""

import logging
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..errors import CheckpointError, ConfigError
from ..finite import is_finite
from ..untrusted import brief, conform
from .kinds import SIZES, Kind, expect, identify, size_name
from .lora import Lora, MergeReport
from .wan import Geometry, WanModel
from .weights import EMA, FLOATS, Weights, listed, normalised, read, stated

__all__ = [
    "Kind",
    "LoadReport",
    "Lora",
    "Weights",
    "describe",
    "identify",
    "load_model",
    "merged_weights",
    "model_of",
    "normalised",
    "read",
]

EXPECTED = "LongLive or Wan2.1 text-to-video weights"
CURE = "download models/longlive_base.pt from huggingface.co/Efficient-Large-Model/LongLive-1.3B"
COMPUTE_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
TEXT_LEN = 512  # of every released model

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadReport:
    """What was loaded, for the log and for the user."""

    source: str
    layout: str
    geometry: Geometry
    num_tensors: int
    num_parameters: int
    dtype: torch.dtype
    lora: MergeReport | None
    warnings: tuple[str, ...]

    @property
    def summary(self) -> str:
        lora = f" with {self.lora.source} on {self.lora.matched} modules" if self.lora else ""
        return (
            f"{self.source} ({self.layout}, {size_name(self.geometry)}): {self.num_tensors} tensors, "
            f"{self.num_parameters:,} parameters in {dtype_name(self.dtype)}{lora}"
        )

    def __str__(self) -> str:
        return "\n".join((self.summary, *self.warnings))


def load_model(
    path: str | Path,
    *,
    lora: str | Path | Lora | None = None,
    strength: float = 1.0,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    num_heads: int | None = None,
    text_len: int | None = None,
    ema: bool | None = None,
) -> tuple[WanModel, LoadReport]:
    """Load a LongLive or Wan2.1 text-to-video model, frozen, in `dtype` or that of most of the file.

    Without `num_heads` and `text_len`, as the file states them, else heads of 128 channels and 512 rows of text.
    Raises CheckpointError for anything that does not fit exactly.
    """
    weights = read(path, ema=ema)
    if lora is not None and not isinstance(lora, Lora):
        lora = Lora.read(lora)
    return model_of(
        weights, lora=lora, strength=strength, dtype=dtype, device=device, num_heads=num_heads, text_len=text_len
    )


def model_of(
    weights: Weights,
    *,
    lora: Lora | None = None,
    strength: float = 1.0,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    num_heads: int | None = None,
    text_len: int | None = None,
) -> tuple[WanModel, LoadReport]:
    """Build the tree of `load_model` from weights already read."""
    state, report = merged_weights(
        weights,
        lora=lora,
        strength=strength,
        dtype=dtype or usual_dtype(weights),
        device=device,
        num_heads=num_heads,
        text_len=text_len,
    )
    model = WanModel(report.geometry, device="meta")
    model.load_state_dict(state, assign=True)
    return model.requires_grad_(False).eval(), report


def merged_weights(
    weights: Weights,
    *,
    lora: Lora | None = None,
    strength: float = 1.0,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    num_heads: int | None = None,
    text_len: int | None = None,
) -> tuple[dict[str, Tensor], LoadReport]:
    """A text-to-video state dict under released names, checked to the last tensor, with a LoRA summed in fp32.

    `dtype` None keeps each tensor's own. Every tensor is a copy: a mapped file that is later overwritten would
    change it or kill the process. Raises CheckpointError, also for NaN and infinity, and ConfigError for a `strength`
    that is no number.
    """
    if not math.isfinite(strength):
        raise ConfigError(f"the strength of the LoRA is {strength}; give a number, 1 for all of it")
    expect(Kind.WAN_T2V, weights.tensors, source=weights.name, expected=EXPECTED, otherwise=CURE)
    geometry = geometry_of(weights, num_heads=num_heads, text_len=text_len)
    expected = WanModel(geometry, device="meta").state_dict()
    refuse_misfits(weights, expected)
    merge_report = lora.matched_to(expected) if lora else None

    state = {}
    for name, tensor in weights.tensors.items():
        merged = lora.merged(name, tensor.to(device), strength) if lora else tensor
        state[name] = merged.to(device, dtype or tensor.dtype, copy=merged is tensor)
        if not is_finite(state[name]):
            raise CheckpointError(not_finite(name, tensor, merged, weights, lora, state[name].dtype))

    warnings = (
        merge_report.warning if merge_report else "",
        causality_warning(weights, lora),
        depth_warning(weights, geometry),
    )
    report = LoadReport(
        source=weights.name,
        layout=weights.layout,
        geometry=geometry,
        num_tensors=len(state),
        num_parameters=sum(tensor.numel() for tensor in state.values()),
        dtype=dtype or usual_dtype(weights),
        lora=merge_report,
        warnings=tuple(filter(None, warnings)),
    )
    log.info("loaded %s", report.summary)
    for warning in report.warnings:
        log.warning(warning)
    return state, report


def geometry_of(weights: Weights, *, num_heads: int | None = None, text_len: int | None = None) -> Geometry:
    """Every size the weights and what is stated beside them give. Raises CheckpointError where these disagree."""
    source, known = weights.name, weights.config
    num_heads = known.get("num_heads") if num_heads is None else num_heads
    text_len = known.get("text_len", TEXT_LEN) if text_len is None else text_len
    try:
        geometry = Geometry.of_weights(
            weights.tensors,
            num_heads=None if num_heads is None else conform(num_heads, int, "num_heads"),
            text_len=conform(text_len, int, "text_len"),
        )
    except KeyError as error:
        raise CheckpointError(f"{source} lacks {error.args[0]}; {CURE}") from error
    except ValueError as error:
        raise CheckpointError(f"{source} has sizes that no Wan2.1 network has: {error}; {CURE}") from error
    if geometry.out_dim != geometry.in_dim:
        raise CheckpointError(f"{source} takes {geometry.in_dim} channels and makes {geometry.out_dim}; {CURE}")
    for name in ("dim", "ffn_dim", "num_layers", "freq_dim", "text_dim", "in_dim", "out_dim"):
        found = getattr(geometry, name)
        if known.get(name, found) != found:
            raise CheckpointError(f"{source} states {name} {brief(known[name])} but has {found}; download it again")
    return geometry


def refuse_misfits(weights: Weights, expected: dict[str, Tensor]) -> None:
    """Raise CheckpointError unless names and shapes are exactly those of the tree."""
    tensors = weights.tensors
    misfits = {
        "missing": [name for name in expected if name not in tensors],
        "left over": [name for name in tensors if name not in expected],
        "of another shape": [
            f"{name} {list(tensors[name].shape)} for {list(tensor.shape)}"
            for name, tensor in expected.items()
            if name in tensors and tensors[name].shape != tensor.shape
        ],
        "of no dtype that computes": [
            f"{name} {dtype_name(tensor.dtype)}" for name, tensor in tensors.items() if tensor.dtype not in FLOATS
        ],
    }
    found = "; ".join(f"{len(names)} {what} ({listed(names)})" for what, names in misfits.items() if names)
    if found:
        raise CheckpointError(f"{weights.name} does not fit a Wan2.1 text-to-video network: {found}; {CURE}")


def not_finite(
    name: str, tensor: Tensor, merged: Tensor, weights: Weights, lora: Lora | None, dtype: torch.dtype
) -> str:
    """Where in the making of a weight NaN or infinity came in, as a sentence."""
    if not is_finite(tensor):
        return f"{weights.name} holds NaN or infinity in {name}; download it again"
    if lora and not is_finite(merged):
        return f"{lora.source} makes NaN or infinity of {name}; use a smaller strength or another LoRA"
    return f"{weights.name} holds numbers too large for {dtype_name(dtype)} in {name}; use bfloat16 or float32"


def usual_dtype(weights: Weights) -> torch.dtype:
    """The dtype of most parameters; bfloat16 where that is one to store, not to compute in."""
    counts: dict[torch.dtype, int] = {}
    for tensor in weights.tensors.values():
        counts[tensor.dtype] = counts.get(tensor.dtype, 0) + tensor.numel()
    usual = max(counts, key=counts.__getitem__)
    return usual if usual in COMPUTE_DTYPES else torch.bfloat16


def trained_causal(weights: Weights) -> bool | None:
    """Whether the surroundings of the weights say that they roll out causally; the weights themselves cannot."""
    host = stated(weights.metadata.get("config"), f"the metadata `config` of {weights.name}").get("transformer")
    if weights.layout in ("generator", EMA) or (isinstance(host, dict) and host.get("causal_ar")):
        return True
    name = weights.config.get("_class_name")
    return name.startswith("Causal") if isinstance(name, str) else None


def causality_warning(weights: Weights, lora: Lora | None) -> str:
    if lora or trained_causal(weights) is not False:
        return ""
    return f"{weights.name} is the bidirectional base model and was not trained to roll out; {CURE}"


def depth_warning(weights: Weights, geometry: Geometry) -> str:
    name, layers = SIZES.get(geometry.dim, (None, geometry.num_layers))
    if layers == geometry.num_layers:
        return ""
    return (
        f"{weights.name} has {geometry.num_layers} layers where Wan2.1 {name} has {layers}; was it pruned or cut off?"
    )


def describe(path: str | Path) -> str:
    """What a file is, in lines for a reader."""
    weights = read(path)
    tensors, kind = weights.tensors, identify(weights.tensors)
    num_bytes = sum(tensor.nbytes for tensor in tensors.values())
    parts = f" (of {listed(weights.parts, 8)})" if weights.parts else ""
    prefix = f', names after "{brief(weights.prefix)}"' if weights.prefix else ""
    dtypes = sorted({dtype_name(tensor.dtype) for tensor in tensors.values()})
    lines = {
        "kind": str(kind),
        "layout": weights.layout + parts + prefix,
        "tensors": f"{len(tensors)}, {sum(t.numel() for t in tensors.values()):,} parameters in {', '.join(dtypes)}",
        "size": f"{num_bytes / 1e6:,.1f} MB",
    }
    if kind is Kind.WAN_T2V:
        lines |= described_model(weights)
    elif kind is Kind.LORA:
        lora = Lora.of(weights)
        lines["modules"] = f"{len(lora.pairs)}, such as {brief(next(iter(lora.pairs)))}"
        lines["rank"] = f"{listed(lora.ranks)}, alpha {listed(f'{alpha:g}' for alpha in lora.alphas)}"
    elif kind is Kind.VAE and "decoder.head.2.weight" in tensors:
        lines["width"] = str(tensors["decoder.head.2.weight"].shape[1])
    else:
        lines["names"] = listed(tensors, 6)
    return "\n".join([weights.name, *(f"  {title:<10}{text}" for title, text in lines.items())])


def described_model(weights: Weights) -> dict[str, str]:
    causal = {True: "causal", False: "bidirectional", None: "not stated (causal and bidirectional look alike)"}
    try:
        g = geometry_of(weights)
        sizes = f"{size_name(g)}, feed-forward {g.ffn_dim}, {g.num_heads} heads, {g.num_layers} layers, "
        sizes += f"text {g.text_len} x {g.text_dim}, channels {g.in_dim} in and {g.out_dim} out"
    except CheckpointError as error:
        sizes = str(error)
    return {"geometry": sizes, "trained": causal[trained_causal(weights)]}


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
