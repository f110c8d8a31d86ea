"""From a weights file to a Wan tree: every name matched, every shape checked, a LoRA merged in (LongLive §3).

Knows nothing of ComfyUI: the command line and the nodes load the same files with the same code.
"""

import logging
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ..errors import WeightsError, list_names, shorten
from ..model.dtypes import COMPUTE_DTYPES, STORED_DTYPES, is_finite, name_dtype
from ..model.eight_bit import EightBit
from ..model.kitchen import import_kitchen
from ..model.wan import TEXT_LEN, Geometry, WanModel
from ..untrusted import conform
from .identify import SIZES, Kind, expect_kind, identify, name_size
from .lora import Lora, MergeReport, prepare_lora
from .quantise import FORM, SCALE, is_linear_of_layer, make_empty_model, quantise_linear, read_forms
from .trained_rollout import write_rollout_warning
from .weights_file import EMA, WeightsFile, read_weights_file
from .weights_folder import parse_object

EXPECTED = "LongLive or Wan2.1 text-to-video weights"
CURE = "download models/longlive_base.pt from huggingface.co/Efficient-Large-Model/LongLive-1.3B"

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
    forms: tuple[EightBit, ...]  # of the linears that have 8 bits
    lora: MergeReport | None
    warnings: tuple[str, ...]

    @property
    def summary(self) -> str:
        lora = f" with {self.lora.source} on {self.lora.matched} modules" if self.lora else ""
        linears = f", the linears of its layers in {' and '.join(self.forms)}" if self.forms else ""
        return (
            f"{self.source} ({self.layout}, {name_size(self.geometry)}): {self.num_tensors} tensors, "
            f"{self.num_parameters:,} parameters in {name_dtype(self.dtype)}{linears}{lora}"
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
    """Load a LongLive or Wan2.1 text-to-video model, frozen.

    `dtype` defaults to that of most parameters in the file. `num_heads` and `text_len` default to what the file
    states; if it states nothing, to heads of 128 channels and 512 rows of text.
    Raises WeightsError for anything that does not fit exactly, ConfigError for a `strength` that is not a number.
    """
    file = read_weights_file(path, ema=ema).stating(num_heads=num_heads, text_len=text_len)
    return build_model(file, lora=prepare_lora(lora, strength), dtype=dtype, device=device)


def build_model(
    file: WeightsFile,
    *,
    lora: Lora | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    eight_bit: EightBit | None = None,
) -> tuple[WanModel, LoadReport]:
    """Build the tree as `load_model` does, from a weights file already read.

    With `eight_bit`, the linears of the layers are rounded to it. Raises ConfigError if there are linears in 8 bits and
    comfy-kitchen is missing.
    """
    dtype = dtype or choose_dtype(file)
    state, report = merge_weights(file, lora=lora, dtype=dtype, device=device, eight_bit=eight_bit)
    if report.forms:
        import_kitchen()
    for warning in filter(None, (form.explain_slow(torch.device(device)) for form in report.forms)):
        log.warning(warning)
        report = replace(report, warnings=(*report.warnings, warning))
    model = make_empty_model(report.geometry, state, file.name)
    model.load_state_dict({name: tensor for name, tensor in state.items() if not name.endswith(FORM)}, assign=True)
    return model.requires_grad_(False).eval(), report


def merge_weights(
    file: WeightsFile,
    *,
    lora: Lora | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    eight_bit: EightBit | None = None,
) -> tuple[dict[str, Tensor], LoadReport]:
    """Build a text-to-video state dict under released names, every tensor checked, with a LoRA added in fp32.

    Without `dtype` each tensor keeps its own. With `eight_bit`, the linears of the layers are then rounded to it, from
    fp32; `quantise.py` says which tensors they become. Linears that have 8 bits in the file keep them. Every tensor is
    a copy, because a file that is memory-mapped may be overwritten later: its tensors would change, or the process
    would die. Raises WeightsError, also for NaN and infinity.
    """
    forms = read_forms(file.tensors, file.name) if identify(file.tensors) is Kind.WAN_QUANTISED else {}
    if forms:
        refuse_changes(file, lora, eight_bit)
    else:
        expect_kind(Kind.WAN_T2V, file.tensors, source=file.name, expected=EXPECTED, otherwise=CURE)
    geometry = read_geometry(file)
    expected = make_empty_model(geometry, file.tensors, file.name).state_dict()
    refuse_misfits(file, expected, forms)
    merge_report = lora.match(expected) if lora else None

    state = {}
    for name, tensor in file.tensors.items():
        merged = lora.merge_into(name, tensor.to(device)) if lora else tensor
        form = eight_bit if is_linear_of_layer(name) else None
        is_whole = name.rpartition(".")[0] not in forms or name.endswith(".bias")
        wanted = (torch.float32 if form else dtype) if is_whole else None
        kept = merged.to(device, wanted or tensor.dtype, copy=merged is tensor)
        if not is_finite(kept):
            raise WeightsError(explain_not_finite(name, tensor, merged, file, lora, kept.dtype))
        state |= quantise_linear(name, kept, form) if form else {name: kept}

    warnings = (
        merge_report.warning if merge_report else "",
        write_base_model_warning(file, lora),
        write_missing_layers_warning(file, geometry),
        write_rollout_warning(file.name),
    )
    report = LoadReport(
        source=file.name,
        layout=file.layout,
        geometry=geometry,
        num_tensors=len(expected),
        num_parameters=sum(tensor.numel() for name, tensor in expected.items() if not name.endswith(SCALE)),
        dtype=dtype or choose_dtype(file),
        forms=tuple(sorted({*forms.values(), *([eight_bit] if eight_bit else [])})),
        lora=merge_report,
        warnings=tuple(filter(None, warnings)),
    )
    log.info("loaded %s", report.summary)
    for warning in report.warnings:
        log.warning(warning)
    return state, report


def read_geometry(file: WeightsFile) -> Geometry:
    """Read all sizes from the tensors and from what the file states. Raises WeightsError where these disagree."""
    source, known = file.name, file.config
    num_heads = known.get("num_heads")
    try:
        geometry = Geometry.of_weights(
            file.tensors,
            num_heads=None if num_heads is None else conform(num_heads, int, "num_heads"),
            text_len=conform(known.get("text_len", TEXT_LEN), int, "text_len"),
        )
    except KeyError as error:
        raise WeightsError(f"{source} lacks {error.args[0]}; {CURE}") from error
    except ValueError as error:
        raise WeightsError(f"{source} has sizes that no Wan2.1 network has: {error}; {CURE}") from error
    if geometry.out_dim != geometry.in_dim:
        raise WeightsError(f"{source} takes {geometry.in_dim} channels and makes {geometry.out_dim}; {CURE}")
    for name in ("dim", "ffn_dim", "num_layers", "freq_dim", "text_dim", "in_dim", "out_dim"):
        found = getattr(geometry, name)
        if known.get(name, found) != found:
            raise WeightsError(f"{source} states {name} {shorten(known[name])} but has {found}; download it again")
    return geometry


def refuse_changes(file: WeightsFile, lora: Lora | None, eight_bit: EightBit | None) -> None:
    """Raise WeightsError if linears that have 8 bits would be changed: a second rounding loses more than the first."""
    if lora or eight_bit:
        raise WeightsError(
            f"{file.name} has linears in 8 bits, which cannot be changed; give the whole weights"
            + (f", and merge {lora.source} by `longlive quantize --lora`" if lora else "")
        )


def refuse_misfits(file: WeightsFile, expected: dict[str, Tensor], forms: Collection[str] = ()) -> None:
    """Raise WeightsError unless names, shapes and dtypes are those of the tree; `forms` names its 8-bit linears."""
    tensors = {name: tensor for name, tensor in file.tensors.items() if name.removesuffix(FORM) not in forms}
    misfits = {
        "missing": [name for name in expected if name not in tensors],
        "left over": [name for name in tensors if name not in expected],
        "of another shape": [
            f"{name} {list(tensors[name].shape)} for {list(tensor.shape)}"
            for name, tensor in expected.items()
            if name in tensors and tensors[name].shape != tensor.shape
        ],
        "of an unknown dtype": [
            f"{name} {name_dtype(tensor.dtype)}"
            for name, tensor in tensors.items()
            if not is_stored_as(tensor.dtype, expected.get(name, tensor).dtype)
        ],
    }
    found = "; ".join(f"{len(names)} {what} ({list_names(names)})" for what, names in misfits.items() if names)
    if found:
        raise WeightsError(f"{file.name} does not fit a Wan2.1 text-to-video network: {found}; {CURE}")


def is_stored_as(dtype: torch.dtype, expected: torch.dtype) -> bool:
    """Whether a file may hold a tensor in that dtype; 8-bit weights have one dtype, others may have any float."""
    return dtype == expected if expected.itemsize == 1 else dtype in STORED_DTYPES


def explain_not_finite(
    name: str, tensor: Tensor, merged: Tensor, file: WeightsFile, lora: Lora | None, dtype: torch.dtype
) -> str:
    """Say in one sentence where NaN or infinity in a weight comes from: the file, the LoRA or the dtype."""
    if not is_finite(tensor):
        return f"{file.name} holds NaN or infinity in {name}; download it again"
    if lora and not is_finite(merged):
        return f"{lora.source} makes NaN or infinity of {name}; use a smaller strength or another LoRA"
    return f"{file.name} holds numbers too large for {name_dtype(dtype)} in {name}; use bfloat16 or float32"


def choose_dtype(file: WeightsFile) -> torch.dtype:
    """Choose the dtype of most parameters, or bfloat16 if that one is only for storage."""
    counts: dict[torch.dtype, int] = {}
    for tensor in file.tensors.values():
        counts[tensor.dtype] = counts.get(tensor.dtype, 0) + tensor.numel()
    usual = max(counts, key=counts.__getitem__)
    return usual if usual in COMPUTE_DTYPES.values() else torch.bfloat16


def is_trained_causal(file: WeightsFile) -> bool | None:
    """Whether the file says that its weights roll out causally, or None; the tensors themselves do not show it."""
    host = parse_object(file.metadata.get("config"), f"the metadata `config` of {file.name}").get("transformer")
    if file.layout in ("generator", EMA) or (isinstance(host, dict) and host.get("causal_ar")):
        return True
    name = file.config.get("_class_name")
    return name.startswith("Causal") if isinstance(name, str) else None


def write_base_model_warning(file: WeightsFile, lora: Lora | None) -> str:
    if lora or is_trained_causal(file) is not False:
        return ""
    return f"{file.name} is the bidirectional base model and was not trained to roll out; {CURE}"


def write_missing_layers_warning(file: WeightsFile, geometry: Geometry) -> str:
    name, layers = SIZES.get(geometry.dim, (None, geometry.num_layers))
    if layers == geometry.num_layers:
        return ""
    return f"{file.name} has {geometry.num_layers} layers where Wan2.1 {name} has {layers}; was it pruned or cut off?"
