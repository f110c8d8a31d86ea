"""How far 8-bit linears are from bf16: a network of the true width with random weights and two layers, on the CPU.

python benchmarks/eight_bit_error.py [blocks]

It needs comfy-kitchen, whose kernels on a CPU are PyTorch's. Errors are relative to bf16 in the Euclidean norm: of the
flow of the first pass, of the first block and of all blocks, five if not given. Random weights have no outliers, so
this says little of a trained network.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))

from longlive.config import RolloutConfig
from longlive.model.causal import CausalWan
from longlive.model.eight_bit import EightBit
from longlive.model.wan import Geometry, WanModel
from longlive.rollout.rollout import Pass
from longlive.rollout.sampler import Sampler
from longlive.session.prompt import Prompt
from longlive.session.session import Session
from longlive.weights.load import build_model, merge_weights
from longlive.weights.weights_file import WeightsFile

GEOMETRY = Geometry(dim=1536, ffn_dim=8960, num_heads=12, num_layers=2, freq_dim=256, text_dim=4096)
WIDTH, HEIGHT, BLOCKS = 64, 48, 5
FILE = WeightsFile(path=Path("random"), tensors={}, layout="bare", parts=(), prefix="", metadata={}, config={})


@dataclass(frozen=True)
class Result:
    """What a network computes: the flow of its first pass, and its latents."""

    flow: Tensor
    latents: Tensor

    def measure_errors(self, exact: "Result") -> tuple[float, float, float]:
        """Measure how far the flow, the first block and all blocks are from others, relative to these."""
        pairs = ((self.flow, exact.flow), (self.latents[:, :3], exact.latents[:, :3]), (self.latents, exact.latents))
        return tuple(measure_error(*pair) for pair in pairs)


def measure_error(found: Tensor, exact: Tensor) -> float:
    found, exact = found.double(), exact.double()
    return float((found - exact).norm() / exact.norm())


def make_weights() -> dict[str, Tensor]:
    """Make random weights that keep the size of activations."""
    generator = torch.Generator().manual_seed(0)
    shapes = {name: tensor.shape for name, tensor in WanModel(GEOMETRY, device="meta").state_dict().items()}
    return {name: make_weight(name, torch.randn(shape, generator=generator)) for name, shape in shapes.items()}


def make_weight(name: str, noise: Tensor) -> Tensor:
    if "norm" in name:
        return float(name.endswith("weight")) + 0.02 * noise
    if name.endswith(("modulation", "bias")):
        return 0.1 * noise
    return noise / noise[0].numel() ** 0.5


def compute(weights: dict[str, Tensor], form: EightBit | None, dtype: torch.dtype, blocks: int) -> Result:
    """Sample blocks with the weights in a form."""
    file = replace(FILE, tensors=weights)
    if form:
        state, _ = merge_weights(file, dtype=dtype, eight_bit=form)
        file = replace(FILE, tensors=state)
    tree, _ = build_model(file, dtype=dtype)
    prompt = Prompt.of(torch.randn(1, 64, GEOMETRY.text_dim, generator=torch.Generator().manual_seed(1)), "a prompt")
    session = Session.start(
        prompt, model="random", config=RolloutConfig(), height=HEIGHT, width=WIDTH, seed=0, dtype=dtype, channels=16
    )
    passes: list[Pass] = []
    with Sampler(CausalWan.of_tree(tree), watch=passes.append) as sampler:
        latents = sampler.sample(session, blocks).latents()
    assert passes[0].flow is not None
    return Result(passes[0].flow, latents)


def measure_forms(blocks: int) -> Iterator[tuple[str, float, float, float]]:
    """Measure the errors of bf16 itself against fp32, then of each form against bf16, each after its name."""
    weights = make_weights()
    wide, exact = (compute(weights, None, dtype, blocks) for dtype in (torch.float32, torch.bfloat16))
    yield "bf16, against fp32", *exact.measure_errors(wide)
    for form in EightBit:
        yield str(form), *compute(weights, form, torch.bfloat16, blocks).measure_errors(exact)


def main(arguments: list[str]) -> None:
    blocks = int(arguments[0]) if arguments else BLOCKS
    torch.set_num_threads(1)
    print(f"| linears | flow | first block | {blocks} blocks |\n|---|---|---|---|")  # noqa: T201
    for name, *errors in measure_forms(blocks):
        print(f"| {name} | {' | '.join(f'{error:.4f}' for error in errors)} |", flush=True)  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1:])
