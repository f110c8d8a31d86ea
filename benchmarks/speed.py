"""Measure the time of a block, a switch and a decode, and their memory, on the GPU or else the CPU.

    python benchmarks/speed.py [--blocks 10]

On a GPU: the true 1.3B shapes at 832 x 480, bf16. On a CPU: a small model at 208 x 128, fp32. Random weights, medians.
"""

import argparse
import resource
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn
from true_size import WAN_1_3B

from longlive.config import RolloutConfig
from longlive.model.causal import CausalWan
from longlive.model.vae import LATENT_CHANNELS, WanVAE
from longlive.model.vae_streams import StreamingDecoder
from longlive.model.wan import Geometry, WanModel
from longlive.rollout.noise import seed_noise
from longlive.rollout.rollout import Rollout
from longlive.units import PIXELS_PER_CELL, count_pixel_frames

SMALL = Geometry(dim=256, ffn_dim=1024, num_heads=2, num_layers=4, freq_dim=256, text_dim=4096)


SCALE = 0.03  # of random weights, small enough that the flow stays near the size of noise


def fill(module: nn.Module, seed: int) -> None:
    """Fill a module with seeded random weights: matrices small, convolutions of unit gain, norms one, biases zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in module.named_parameters():
            if name.endswith("bias"):
                weight.zero_()
            elif weight.ndim == 1 or name.endswith("gamma"):
                weight.fill_(1.0)
            else:
                gain = weight[0].numel() ** -0.5 if weight.ndim > 3 else SCALE
                weight.copy_(gain * torch.randn(weight.shape, generator=generator))


class Bench:
    """One model, one VAE, one device, one video."""

    def __init__(self, device: torch.device) -> None:
        self.device, on_gpu = device, device.type == "cuda"
        self.dtype = torch.bfloat16 if on_gpu else torch.float32
        geometry, vae_width, (self.width, self.height) = (
            (WAN_1_3B, 96, (832, 480)) if on_gpu else (SMALL, 16, (208, 128))
        )
        tree, vae = WanModel(geometry), WanVAE(vae_width)
        for module in (tree, vae):
            fill(module, 0)
            module.requires_grad_(False).to(device, self.dtype)
        self.model, self.vae, self.config = CausalWan.of_tree(tree), vae, RolloutConfig()
        self.shape = (1, LATENT_CHANNELS, self.height // PIXELS_PER_CELL, self.width // PIXELS_PER_CELL)
        self.block = (1, self.config.block, *self.shape[1:])
        self.prompt = torch.randn(1, 512, geometry.text_dim)

    def measure_seconds(self, work: Callable[[], object]) -> float:
        self._wait()
        start = time.perf_counter()
        work()
        self._wait()
        return time.perf_counter() - start

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def measure_peak(self) -> float:
        """Measure the peak memory in GB: of the GPU, or of the process."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated() / 1e9
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6

    def measure(self, blocks: int) -> dict[str, float]:
        config, noise = self.config, seed_noise(0, self.block, self.dtype)
        rollout = Rollout(self.model, config, self.shape)
        text, decoder, latents = self.model.read_prompt(self.prompt), StreamingDecoder(self.vae), []
        figures: dict[str, list[float]] = {"block": [], "clean pass": [], "decode": [], "recache": [], "switch": []}

        def make(number: int) -> None:
            latents.append(rollout.denoise(number * config.block, text, noise, number))

        def first() -> None:
            make(0)
            decoder.push(latents[0])

        warm = config.window // config.block
        figures["first frames"] = [self.measure_seconds(first)]
        for number in range(1, warm + blocks):
            clean = self.measure_seconds(lambda n=number: rollout.clean_pass((n - 1) * config.block, latents[-1], text))
            denoise = self.measure_seconds(lambda n=number: make(n))
            decode = self.measure_seconds(lambda: decoder.push(latents[-1]))
            if number >= warm:  # the window is full
                figures["clean pass"].append(clean)
                figures["block"].append(clean + denoise)
                figures["decode"].append(decode)

        end = (warm + blocks) * config.block

        def switch() -> None:
            new = self.model.read_prompt(self.prompt)
            rollout.recache(end, torch.cat(latents, 1), new)
            rollout.denoise(end, new, noise, warm + blocks)

        for _ in range(3):
            figures["recache"].append(
                self.measure_seconds(
                    lambda: rollout.recache(end, torch.cat(latents, 1), self.model.read_prompt(self.prompt))
                )
            )
            figures["switch"].append(self.measure_seconds(switch))
        return {name: statistics.median(values) for name, values in figures.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=10, help="steady blocks to time")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    bench = Bench(torch.device(options.device))
    figures = bench.measure(options.blocks)
    name = torch.cuda.get_device_name() if bench.device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    steady = count_pixel_frames(bench.config.block + 1) - 1
    layers, dim = bench.model.geometry.num_layers, bench.model.geometry.dim
    lines = [
        f"{name}, torch {torch.__version__}, {bench.model.kernel}",
        f"{layers} layers of {dim}, {bench.width} x {bench.height}, {bench.dtype}, VAE of random weights",
        "",
        "| what | ms |",
        "|---|---|",
        f"| a block: clean pass of the one before and four steps | {1e3 * figures['block']:.0f} |",
        f"| of these the clean pass | {1e3 * figures['clean pass']:.0f} |",
        f"| decode of a block, {steady} pixel frames | {1e3 * figures['decode']:.0f} |",
        f"| recache with the sink kept, text keys included | {1e3 * figures['recache']:.0f} |",
        f"| switch to latents: recache and four steps | {1e3 * figures['switch']:.0f} |",
        f"| first frames: four steps and decode | {1e3 * figures['first frames']:.0f} |",
        "",
        f"{steady / figures['block']:.1f} pixel frames per second without, "
        f"{steady / (figures['block'] + figures['decode']):.1f} with decode; peak memory {bench.measure_peak():.2f} GB",
    ]
    print("\n".join(lines))  # noqa: T201


if __name__ == "__main__":
    main()
