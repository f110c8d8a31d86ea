"""Seeded random model files of real shape and name, small enough for any test to sample with.

    python tests/host/model_files.py FOLDER

writes them into a ComfyUI models folder.
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from longlive.model.wan import Geometry, WanModel

# A head is 128 wide as in the released weights: ComfyUI divides the width by 128 to count the heads, and finds two.
GEOMETRY = Geometry(dim=256, ffn_dim=512, num_heads=2, num_layers=2, freq_dim=256, text_dim=4096)
LORA_RANK = 4
TEXT_GAIN = 4  # makes a few words count among the 512 text rows that are attended
RECORDED_VAE = Path(__file__).parents[1] / "reference" / "vae.safetensors"

DIT = Path("diffusion_models") / "longlive_tiny.safetensors"
ORIGINAL_DIT = Path("diffusion_models") / "longlive_tiny_base.pt"
VAE = Path("vae") / "wan_tiny_vae.safetensors"
LORA = Path("loras") / "longlive_tiny_lora.safetensors"
ORIGINAL_LORA = Path("loras") / "longlive_tiny_lora.pt"


def write_models(models: Path) -> None:
    """Write every file into a ComfyUI models folder; network and LoRA also in the layout of their release."""
    for path in (DIT, VAE, LORA):
        (models / path).parent.mkdir(parents=True, exist_ok=True)
    dit, adapter = make_dit_weights(), make_lora_weights()
    save_file(dit, models / DIT)
    torch.save({"generator": {f"model.{key}": tensor for key, tensor in dit.items()}}, models / ORIGINAL_DIT)
    save_file(read_vae_weights(), models / VAE)
    save_file(adapter, models / LORA)
    torch.save({"generator_lora": adapter, "step": 1}, models / ORIGINAL_LORA)


def make_dit_weights(geometry: Geometry = GEOMETRY, *, seed: int = 0) -> dict[str, Tensor]:
    """Make a random Wan network whose activations are about as large as its input."""
    generator = torch.Generator().manual_seed(seed)
    with torch.device("meta"):
        shapes = {key: tensor.shape for key, tensor in WanModel(geometry).state_dict().items()}
    return {key: make_weight(key, shape, generator) for key, shape in shapes.items()}


def make_weight(key: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
    noise = torch.randn(shape, generator=generator)
    if "norm" in key:
        return 1 + 0.02 * noise if key.endswith("weight") else 0.02 * noise
    if key.endswith("modulation"):
        return 0.1 * noise
    if key.endswith("bias"):
        return 0.02 * noise
    gain = TEXT_GAIN if "cross_attn.v" in key or "cross_attn.o" in key else 1
    return gain * noise / shape[1:].numel() ** 0.5  # variance in = variance out


def make_lora_weights(geometry: Geometry = GEOMETRY, *, seed: int = 1, strength: float = 0.05) -> dict[str, Tensor]:
    """Make a random adapter in PEFT's names, for every Linear in the layers."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for key, tensor in make_dit_weights(geometry).items():
        if key.startswith("blocks.") and key.endswith(".weight") and tensor.ndim == 2:
            module = "base_model.model." + key.removesuffix(".weight")
            rows, columns = tensor.shape
            weights[f"{module}.lora_A.weight"] = torch.randn(LORA_RANK, columns, generator=generator) / columns**0.5
            weights[f"{module}.lora_B.weight"] = torch.randn(rows, LORA_RANK, generator=generator) * strength
    return weights


def read_vae_weights() -> dict[str, Tensor]:
    """Read the Wan VAE of width 2 whose outputs are recorded in `tests/reference`."""
    recorded = load_file(RECORDED_VAE)
    return {key.removeprefix("sd."): tensor for key, tensor in recorded.items() if key.startswith("sd.")}


if __name__ == "__main__":
    write_models(Path(sys.argv[1]))
