"""Measure what a video costs: each mode, each VAE, a long video, and the reference beside them; on a GPU or else a CPU.

    python benchmarks/speed.py [--reference FOLDER] [--minutes 4] [--rounds 3]

On a GPU: the true 1.3B shapes at 832 x 480, bf16, beside the times predicted by cost.py. On a CPU: a small model at
112 x 64, fp32. Random weights, medians; the first round is not counted. One contender after the other, each in the
memory that the one before it freed. The reference is a copy of NVlabs/LongLive, branch v1.0 (e52d9ef), which needs
`diffusers` and `peft`. What cannot be measured is left out with a reason.
"""

import argparse
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from cards import CARDS
from contenders import Contender, Ours, Task, fill
from machine import Machine
from modes import WITH_PIXELS, iter_modes
from predictions import FULL_VAE, LONG, TINY_VAE, predict
from torch import Tensor
from true_size import CELLS, VAE_WIDTH, WAN_1_3B, count_weight_bytes
from turns import PARTS, format_table, measure_in_turn

from longlive.config import Positions
from longlive.model.causal import CausalWan
from longlive.model.tiny_vae import LatentSpace, TinyDecoder, TinyVAE
from longlive.model.vae import WanVAE
from longlive.model.vae_streams import ResumableDecoder, StreamingDecoder
from longlive.model.wan import Geometry
from longlive.units import FPS, PIXEL_FRAMES_PER_FRAME, PIXELS_PER_CELL

REFERENCE = "reference"
QUARTERS = 4  # of a long video


@dataclass(frozen=True, slots=True)
class Size:
    """The sizes of a video and its networks."""

    geometry: Geometry
    vae_width: int
    cells: tuple[int, int]
    dtype: torch.dtype


TRUE = Size(WAN_1_3B, VAE_WIDTH, CELLS, torch.bfloat16)
SMALL_GEOMETRY = Geometry(dim=256, ffn_dim=1024, num_heads=2, num_layers=2, freq_dim=256, text_dim=4096)
SMALL = Size(SMALL_GEOMETRY, 8, (8, 14), torch.float32)

Rows = dict[str, str]  # what was measured, by its name
Note = Callable[[str], object]


class Bench:
    """One machine and one task, and the rows measured so far. `note` takes what is left out."""

    def __init__(self, machine: Machine, size: Size, note: Note) -> None:
        self.machine, self.note = machine, note
        self.task = Task.make(size.geometry, size.cells, device=machine.device, dtype=size.dtype)
        vae, tiny_vae = WanVAE(size.vae_width), TinyVAE(LatentSpace.VAE)
        like = {"device": machine.device, "dtype": size.dtype}
        for each in (vae, tiny_vae):
            fill(each, 0)
        self.vaes = {
            FULL_VAE: WanVAE.of_weights(vae.state_dict(), **like),
            TINY_VAE: TinyVAE.of_weights(tiny_vae.state_dict(), LatentSpace.VAE, **like),
        }
        self.rows: Rows = {}

    def make_decoder(self, vae: str) -> ResumableDecoder:
        return (StreamingDecoder if vae == FULL_VAE else TinyDecoder)(self.vaes[vae])

    def measure(self, rounds: int, minutes: float, reference: Path | None) -> None:
        for vae in self.vaes:
            self.measure_decoder(vae, rounds)
        for name, each in self.iter_contenders(reference):
            if isinstance(each, str):
                self.note(f"Left out: {name}; {each}.")
                continue
            self.measure_network(name, each, rounds)
            if name in WITH_PIXELS:
                for vae in self.vaes:
                    self.measure_latencies(f"{name}, {vae}", each, vae, rounds)
        config = replace(self.task.config, positions=Positions.UNBOUNDED)
        self.measure_long_video(Ours(replace(self.task, config=config), CausalWan.of_tree(self.task.tree)), minutes)

    @property
    def kernel(self) -> str:
        return CausalWan.of_tree(self.task.tree).kernel

    def iter_contenders(self, reference: Path | None) -> Iterator[tuple[str, Contender | str]]:
        yield from iter_modes(self.task)
        if reference is None:
            yield REFERENCE, "give the folder of a copy with --reference"
            return
        from reference_network import Reference

        try:
            yield REFERENCE, Reference(self.task, reference, with_lora=True)
        except ImportError as error:
            yield REFERENCE, str(error)

    def measure_network(self, name: str, each: Contender, rounds: int) -> None:
        self.machine.begin_peak()
        [times] = measure_in_turn([each], 1 + rounds, self.machine.read_clock)
        for part in PARTS:
            self.rows[f"{name}: {part}, ms"] = describe_ms(times[part][1:])
        self.rows[f"{name}: peak memory, GB"] = self.describe_peak(count_weight_bytes(each.weights))

    def measure_decoder(self, vae: str, rounds: int) -> None:
        decoder, latents = self.make_decoder(vae), self.task.noise(0, 0).to(self.task.device)
        self.machine.begin_peak()
        seconds = [self.time(lambda: decoder.push(latents)) for _ in range(2 + rounds)]
        self.rows[f"{vae}: decode of a block, ms"] = describe_ms(seconds[2:])
        self.rows[f"{vae}: peak memory, GB"] = self.describe_peak(count_weight_bytes(self.vaes[vae]))

    def measure_latencies(self, name: str, each: Contender, vae: str, rounds: int) -> None:
        """Measure from a prompt to pixels on the host, at the beginning and after a switch, and a block between."""
        first, block, switch = [], [], []
        window = range(self.task.config.window // self.task.config.block)
        self.machine.begin_peak()
        for _ in range(1 + rounds):
            decoder = self.make_decoder(vae)
            first.append(self.time(lambda decoder=decoder: (each.start_video(), show(each.denoise(), decoder))))
            for _ in window:
                make_block_with_pixels(each, decoder)
            block.append(self.time(lambda decoder=decoder: make_block_with_pixels(each, decoder)))
            switch.append(self.time(lambda decoder=decoder: show(each.switch(), decoder)))
            each.release()
        frames = self.task.config.block * PIXEL_FRAMES_PER_FRAME
        weights = count_weight_bytes(each.weights) + count_weight_bytes(self.vaes[vae])
        self.rows |= {
            f"{name}: first pixels, ms": describe_ms(first[1:]),
            f"{name}: switch to new pixels, ms": describe_ms(switch[1:]),
            f"{name}: frames a second": f"{frames / statistics.median(block[1:]):.1f}",
            f"{name}: peak memory, GB": self.describe_peak(weights),
        }

    def measure_long_video(self, each: Ours, minutes: float) -> None:
        """Measure blocks with their pixels, and memory, in each quarter of a video."""
        frames = self.task.config.block * PIXEL_FRAMES_PER_FRAME
        blocks, decoder = round(60 * minutes * FPS / frames / QUARTERS), self.make_decoder(FULL_VAE)
        weights = count_weight_bytes(each.weights) + count_weight_bytes(self.vaes[FULL_VAE])
        times, peaks = [], []
        self.machine.begin_peak()
        each.start_video()
        for _ in range(QUARTERS):
            self.machine.forget_peak()
            times.append(describe_ms([self.time(lambda: make_block_with_pixels(each, decoder)) for _ in range(blocks)]))
            peaks.append(self.describe_peak(weights))
        each.release()
        self.rows[f"{LONG}: block and its pixels in each quarter, ms"] = ", ".join(times)
        self.rows[f"{LONG}: peak memory in each quarter, GB"] = ", ".join(peaks)

    def time(self, work: Callable[[], object]) -> float:
        began = self.machine.read_clock()
        work()
        return self.machine.read_clock() - began

    def describe_peak(self, weights: int) -> str:
        """Describe the peak since the watch began, with the weights, which were there before; a process has all."""
        return f"{(self.machine.read_peak() + (weights if self.machine.on_gpu else 0)) / 1e9:.2f}"


def describe_ms(seconds: Sequence[float]) -> str:
    return f"{1e3 * statistics.median(seconds):.1f}"


def make_block_with_pixels(each: Contender, decoder: ResumableDecoder) -> None:
    latents = each.denoise()
    show(latents, decoder)
    each.keep(latents)


def show(latents_BFCHW: Tensor, decoder: ResumableDecoder) -> None:
    """Bring the pixels of a block to the host, in bytes."""
    decoder.push(latents_BFCHW).add(1).mul(127.5).byte().cpu()


def describe(rows: Rows, predicted: dict[str, list[str]]) -> str:
    """Return one table: what was measured, and what was predicted of it."""
    columns = ["what", "measured", *(f"{card.name}, predicted" for card in CARDS if predicted)]
    empty = [""] * (len(columns) - 2)
    return format_table(columns, ([what, value, *predicted.get(what, empty)] for what, value in rows.items()))


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", type=Path, help="folder of the reference")
    parser.add_argument("--minutes", type=float, help="length of the long video: 4, or 0.05 on a CPU")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args(arguments)
    machine = Machine(torch.device(options.device))
    size, minutes = (TRUE, 4.0) if machine.on_gpu else (SMALL, 0.05)
    minutes = minutes if options.minutes is None else options.minutes
    bench = Bench(machine, size, lambda note: sys.stdout.write(f"{note}\n"))
    bench.measure(options.rounds, minutes, options.reference)
    height, width = (PIXELS_PER_CELL * cells for cells in size.cells)
    sys.stdout.write(
        f"\n{machine.name}, torch {torch.__version__}; {size.geometry.num_layers} layers of {size.geometry.dim}, "
        f"{width} x {height}, {size.dtype}, {bench.kernel}; random weights; the long video has {minutes:g} minutes\n\n"
        f"{describe(bench.rows, predict() if machine.on_gpu else {})}\n"
    )


if __name__ == "__main__":
    main(sys.argv[1:])
