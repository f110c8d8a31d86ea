"""Measure the time and memory of a step of streaming long tuning, of the student and of its critic.

    python benchmarks/tuning.py [--steps 3]

On a GPU: student, critic and teacher of the true 1.3B shapes at 832 x 480, adapters of rank 256, bf16, checkpointing,
one video. On a CPU: a small model at 208 x 128, fp32. Random weights, medians; the first step of each kind is left out.
"""

import argparse
import statistics
import sys
import time

import torch
from accelerate import Accelerator
from contenders import fill
from true_size import WAN_1_3B

from longlive.model.vae import LATENT_CHANNELS, WanVAE
from longlive.model.wan import Geometry, WanModel
from longlive.tuning.config import LearnConfig, ModelConfig, RunConfig, TuneConfig
from longlive.tuning.parts import EmbeddedPair, TuningParts
from longlive.tuning.streaming import Codec
from longlive.tuning.trainer import Trainer
from longlive.units import PIXELS_PER_CELL

SMALL = Geometry(dim=256, ffn_dim=1024, num_heads=2, num_layers=4, freq_dim=256, text_dim=4096)


def prepare() -> Trainer:
    on_gpu = torch.cuda.is_available()
    geometry, vae_width, (width, height) = (WAN_1_3B, 96, (832, 480)) if on_gpu else (SMALL, 16, (208, 128))
    dtype = torch.bfloat16 if on_gpu else torch.float32
    trees = [WanModel(geometry, dtype=dtype) for _ in range(3)]
    vae = WanVAE(vae_width).to("cuda" if on_gpu else "cpu", dtype).requires_grad_(False)
    for seed, module in enumerate([*trees, vae]):
        fill(module, seed)
    rows = torch.randn(512, geometry.text_dim)
    config = TuneConfig(
        model=ModelConfig(miniature=True),  # only names files, of which there are none here
        learn=LearnConfig(rank=256 if on_gpu else 32, ratio=1, precision="bf16" if on_gpu else "fp32"),
        run=RunConfig(offload=False),
    )
    parts = TuningParts(
        student=trees[0],
        critic=trees[1],
        teacher=trees[2],
        codec=Codec.of_vae(vae),
        pairs=(EmbeddedPair(rows, rows.flip(0)),),
        unprompted=rows[:1],
        shape_CHW=(LATENT_CHANNELS, height // PIXELS_PER_CELL, width // PIXELS_PER_CELL),
    )
    return Trainer(parts, config, Accelerator(mixed_precision="bf16" if on_gpu else "no", cpu=not on_gpu))


def main(steps: int) -> None:
    tuning, on_gpu = prepare(), torch.cuda.is_available()
    took: dict[str, list[float]] = {"student": [], "critic": []}
    peaks = dict.fromkeys(took, 0.0)
    optimize = tuning._optimize

    def time_step(name: str, *rest) -> dict[str, float]:
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        figures = optimize(name, *rest)
        if on_gpu:
            torch.cuda.synchronize()
            peaks[name] = max(peaks[name], torch.cuda.max_memory_allocated() / 1e9)
        took[name].append(time.perf_counter() - start)
        return figures

    tuning._optimize = time_step  # type: ignore[method-assign]
    for _ in range(steps + 1):
        tuning.step()
    sys.stdout.write("| step | seconds | peak GB |\n|---|---|---|\n")
    for name, seconds in took.items():
        peak = f"{peaks[name]:.1f}" if on_gpu else "-"
        sys.stdout.write(f"| {name} | {statistics.median(seconds[1:]):.2f} | {peak} |\n")


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--steps", type=int, default=3)
    main(options.parse_args().steps)
