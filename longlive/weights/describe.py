"""What a weights file holds, in words for a user."""

from collections import Counter
from pathlib import Path

from ..errors import WeightsError, list_names, shorten
from ..model.dtypes import name_dtype
from .identify import CONVOLUTION_DIMS, Kind, identify, name_size
from .load import is_trained_causal, read_geometry
from .lora import Lora
from .quantise import FORM, read_forms
from .weights_file import WeightsFile, read_weights_file

VAE_HEAD = "decoder.head.2.weight"


def describe_file(path: str | Path) -> str:
    """Describe a weights file in lines for a user: its kind, sizes and dtypes."""
    file = read_weights_file(path)
    tensors, kind = file.tensors, identify(file.tensors)
    num_bytes = sum(tensor.nbytes for tensor in tensors.values())
    parts = f" (of {list_names(file.parts, 8)})" if file.parts else ""
    prefix = f', names after "{shorten(file.prefix)}"' if file.prefix else ""
    dtypes = sorted({name_dtype(tensor.dtype) for tensor in tensors.values()})
    lines = {
        "kind": str(kind),
        "layout": file.layout + parts + prefix,
        "tensors": f"{len(tensors)}, {sum(t.numel() for t in tensors.values()):,} parameters in {', '.join(dtypes)}",
        "size": f"{num_bytes / 1e6:,.1f} MB",
    }
    if kind is Kind.WAN_T2V:
        lines |= describe_model(file)
    elif kind is Kind.WAN_QUANTISED and any(name.endswith(FORM) for name in tensors):
        lines |= describe_model(file) | {"8 bits": describe_linears(file)}
    elif kind is Kind.LORA:
        lora = Lora.of_weights_file(file)
        lines["modules"] = f"{len(lora.pairs)}, such as {shorten(next(iter(lora.pairs)))}"
        lines["rank"] = f"{list_names(lora.ranks)}, alpha {list_names(f'{alpha:g}' for alpha in lora.alphas)}"
    elif kind is Kind.VAE and (head := tensors.get(VAE_HEAD)) is not None and head.dim() == CONVOLUTION_DIMS:
        lines["width"] = str(head.shape[1])
    else:
        lines["names"] = list_names(tensors, 6)
    return "\n".join([file.name, *(f"  {title:<10}{text}" for title, text in lines.items())])


def describe_model(file: WeightsFile) -> dict[str, str]:
    causal = {True: "causal", False: "bidirectional", None: "not stated (causal and bidirectional look alike)"}
    try:
        g = read_geometry(file)
        sizes = f"{name_size(g)}, feed-forward {g.ffn_dim}, {g.num_heads} heads, {g.num_layers} layers, "
        sizes += f"text {g.text_len} x {g.text_dim}, channels {g.in_dim} in and {g.out_dim} out"
    except WeightsError as error:
        sizes = str(error)
    return {"geometry": sizes, "trained": causal[is_trained_causal(file)]}


def describe_linears(file: WeightsFile) -> str:
    """Say how many linears have 8 bits, in which form."""
    try:
        counts = Counter(read_forms(file.tensors, file.name).values())
    except WeightsError as error:
        return str(error)
    return ", ".join(f"{count} linears in {form}" for form, count in sorted(counts.items()))
