"""Adapters for the tests of this folder: saved, renamed and merged."""

from collections.abc import Mapping

import torch
from safetensors.torch import save_file

from longlive.weights.lora import Lora, MergeReport

TOLERANCE = 1e-5
PEFT = "base_model.model."


def merge(
    weights: Mapping[str, torch.Tensor], lora: Lora, strength: float = 1.0
) -> tuple[dict[str, torch.Tensor], MergeReport]:
    """Merge a LoRA into a state dict; each weight keeps its dtype."""
    report, scaled = lora.match(weights), lora.scaled_by(strength)
    merged = {name: scaled.merge_into(name, weight).to(weight.dtype) for name, weight in weights.items()}
    return merged, report


def cut_prefix(prefix, tensors):
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def save_tensors(folder, content, name="lora.pt", **options):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(content, path, **options) if name.endswith(".safetensors") else torch.save(content, path)
    return path


def assert_same(merged, expected):
    assert merged.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(merged[name], tensor, rtol=0, atol=0, msg=name)


def rename_tensors(adapter, rename):
    return {rename(name): tensor for name, tensor in adapter.items()}


def name_as_kohya(name):
    module, _, factor = name.removeprefix(PEFT).partition(".lora_")
    factor = {"A.weight": "lora_down.weight", "B.weight": "lora_up.weight"}[factor]
    return f"lora_unet_{module.replace('.', '_')}.{factor}"
