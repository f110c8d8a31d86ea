"""Adapters: low-rank pairs beside every Linear of the layers, by `peft` (LongLive §3.2; released: rank and alpha 256).

Knows trees and names; what a file of them means, `model/lora.py` knows.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..errors import TuningError
from ..files import atomic_write
from ..model.lora import ALPHA, Lora, Pair
from ..model.wan import WanModel
from ..store import write_atomically

if TYPE_CHECKING:
    from peft import LoraConfig

TARGETS = r"blocks\.\d+\.(self_attn|cross_attn)\.[qkvo]|blocks\.\d+\.ffn\.[02]"  # ten a layer, 300 at 1.3B
MODULE_PREFIX = "base_model.model."  # of the reference's names


def adapt(tree: WanModel, rank: int, alpha: float, *, seed: int) -> None:
    """Put adapters beside the tree's Linears; they alone learn, in float32. Rank 0 lets all weights learn instead.

    Raises TuningError for a rank that does not fit, or where `peft` is missing.
    """
    if not rank:
        tree.float().requires_grad_(True)
        return
    narrowest = min(min(module.weight.shape) for module in linears(tree))
    if rank > narrowest:
        raise TuningError(
            f"rank is {rank}, but the narrowest Linear of this network is {narrowest} wide; use at most {narrowest}"
        )
    tree.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # peft draws from the global generator
        peft().inject_adapter_in_model(config_of(rank, alpha), tree)
    for parameter in tree.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def linears(tree: WanModel) -> list[nn.Linear]:
    return [module for block in tree.blocks for module in block.modules() if isinstance(module, nn.Linear)]


def config_of(rank: int, alpha: float) -> "LoraConfig":
    return peft().LoraConfig(
        r=rank,
        lora_alpha=alpha,  # pyright: ignore[reportArgumentType]: a fraction is as good
        lora_dropout=0.0,
        target_modules=TARGETS,
    )


def peft():
    try:
        import peft
    except ImportError as error:
        raise TuningError(f"adapters need peft, which does not load ({error}); pip install peft accelerate") from error
    return peft


def learning(module: nn.Module) -> dict[str, nn.Parameter]:
    """The weights that learn, by name."""
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}


def lora_of(weights: dict[str, Tensor], alpha: float) -> Lora:
    """The adapter in `weights`, named as those of `learning`."""
    halves: dict[str, dict[str, Tensor]] = {}
    for name, weight in weights.items():
        module, _, half = name.partition(".lora_")
        halves.setdefault(module, {})[half[0]] = weight.detach().cpu()
    return Lora(source="tuning", pairs={name: Pair(half["A"], half["B"], alpha) for name, half in halves.items()})


def export(lora: Lora, path: Path, about: dict[str, str]) -> None:
    """Write an adapter in bf16, for our loader and ComfyUI's, and beside it, as `.pt`, in the reference's form."""
    halved = {
        name: weight if name.endswith(ALPHA) else weight.to(torch.bfloat16).contiguous()
        for name, weight in lora.comfy_keys().items()
    }
    write_atomically(path, halved, about)
    reference = {}
    for module, pair in lora.pairs.items():
        reference[f"{MODULE_PREFIX}{module}.lora_A.weight"] = pair.down.to(torch.bfloat16)
        scaled = pair.up * (pair.alpha / pair.rank)  # that form states no alpha: its scale is 1
        reference[f"{MODULE_PREFIX}{module}.lora_B.weight"] = scaled.to(torch.bfloat16)
    with atomic_write(path.with_suffix(".pt")) as part:
        torch.save({"generator_lora": reference}, part)
