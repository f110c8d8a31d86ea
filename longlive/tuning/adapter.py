"""Adapters: low-rank pairs beside every Linear of the layers, by `peft` (LongLive §3.2; released: rank and alpha 256).

Knows networks and tensor names. `weights/lora.py` knows the file formats.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..errors import TuningError
from ..files import atomic_write
from ..model.wan import WanModel
from ..weights.lora import ALPHA, FactorPair, Lora
from ..weights.tensor_file import write_tensor_file

if TYPE_CHECKING:
    from peft import LoraConfig

TARGETS = r"blocks\.\d+\.(self_attn|cross_attn)\.[qkvo]|blocks\.\d+\.ffn\.[02]"  # ten per layer, 300 at 1.3B
MODULE_PREFIX = "base_model.model."  # of the reference's tensor names


def add_adapters(tree: WanModel, rank: int, alpha: float, *, seed: int) -> None:
    """Add adapters to the layers of a network and freeze all else. They are float32.

    With rank 0 add none and make all weights trainable, in float32. Raises TuningError for a rank that does not fit,
    or if `peft` is missing.
    """
    if not rank:
        tree.float().requires_grad_(True)
        return
    narrowest = min(min(module.weight.shape) for module in list_linears(tree))
    if rank > narrowest:
        raise TuningError(
            f"rank is {rank}, but the narrowest Linear of this network is {narrowest} wide; use at most {narrowest}"
        )
    tree.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # peft draws from the global generator
        import_peft().inject_adapter_in_model(make_lora_config(rank, alpha), tree)
    for parameter in tree.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def list_linears(tree: WanModel) -> list[nn.Linear]:
    return [module for block in tree.blocks for module in block.modules() if isinstance(module, nn.Linear)]


def make_lora_config(rank: int, alpha: float) -> "LoraConfig":
    return import_peft().LoraConfig(
        r=rank,
        lora_alpha=alpha,  # pyright: ignore[reportArgumentType]: a fraction works too
        lora_dropout=0.0,
        target_modules=TARGETS,
    )


def import_peft():
    try:
        import peft
    except ImportError as error:
        raise TuningError(f"adapters need peft, which does not load ({error}); pip install peft accelerate") from error
    return peft


def find_trainable(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return the trainable weights by name."""
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}


def make_lora(weights: dict[str, Tensor], alpha: float) -> Lora:
    """Make a LoRA of the weights that `find_trainable` returns."""
    halves: dict[str, dict[str, Tensor]] = {}
    for name, weight in weights.items():
        module, _, half = name.partition(".lora_")
        halves.setdefault(module, {})[half[0]] = weight.detach().cpu()
    return Lora(source="tuning", pairs={name: FactorPair(half["A"], half["B"], alpha) for name, half in halves.items()})


def export_lora(lora: Lora, path: Path, metadata: dict[str, str]) -> None:
    """Write an adapter in bf16, for our loader and ComfyUI's, and next to it a `.pt` file in the reference's format."""
    tensors = {
        name: weight if name.endswith(ALPHA) else weight.to(torch.bfloat16).contiguous()
        for name, weight in lora.as_comfy_state().items()
    }
    write_tensor_file(path, tensors, metadata)
    reference = {}
    for module, pair in lora.pairs.items():
        reference[f"{MODULE_PREFIX}{module}.lora_A.weight"] = pair.down.to(torch.bfloat16)
        scaled = pair.up * (pair.alpha / pair.rank)  # the reference's format has no alpha and scales by 1
        reference[f"{MODULE_PREFIX}{module}.lora_B.weight"] = scaled.to(torch.bfloat16)
    with atomic_write(path.with_suffix(".pt")) as part:
        torch.save({"generator_lora": reference}, part)
