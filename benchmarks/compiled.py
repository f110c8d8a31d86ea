"""Count the graphs of a compiled model, and compare its time with that of the same model as it is.

    python benchmarks/compiled.py [--rounds 5]

Random weights, one thread of the CPU. A small network makes 30 blocks with two switches, and every graph is counted.
Then blocks (four steps and a clean pass) of a window that has rolled are timed in turn: as they are, compiled, and with
our own joined operations. Times are of the processor, so ratios hold on a busy machine.
"""

import argparse
import resource
import statistics
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch._inductor.config
from contenders import Ours, Task
from side_by_side import make_geometry
from speed import SMALL_GEOMETRY
from torch import Tensor
from turns import describe_ratio, format_table

from longlive.config import Positions, RolloutConfig
from longlive.model.causal import CausalWan
from longlive.model.compiled import INDUCTOR, Backend, compile_model
from longlive.model.wan import Geometry

BLOCKS, SWITCHES = 30, (7, 19)  # blocks before each switch
CASES = {
    "256 wide, 2 layers, 208 x 128, fp32": (SMALL_GEOMETRY, (16, 26), torch.float32),
    "1536 wide, 2 layers, 160 x 128, fp32": (make_geometry(2), (16, 20), torch.float32),
    "1536 wide, 2 layers, 160 x 128, bf16": (make_geometry(2), (16, 20), torch.bfloat16),
}


def make_compiled(task: Task, backend: Backend) -> Ours:
    model, said = compile_model(CausalWan.of_tree(task.tree), backend=backend)
    assert said.startswith("compiled"), said
    return Ours(task, model)


def make_block(video: Ours) -> None:
    video.keep(video.denoise())


def count_graphs(geometry: Geometry, positions: Positions) -> dict[int, int]:
    """Count the graphs of a network, by the block at which they were made; the first block is 1."""
    made, counted = 0, Counter[int]()

    def count(graph: torch.fx.GraphModule, inputs: list[Tensor], **options: Any) -> Callable:
        counted[made] += 1
        return graph

    task = replace(Task.make(geometry, (2, 4)), config=RolloutConfig(positions=positions))
    video = make_compiled(task, count)
    video.start_video()
    counted.clear()  # those of the trial
    for made in range(1, BLOCKS + 1):
        if made - 1 in SWITCHES:
            video.recache()
        make_block(video)
    return counted


def count_seconds() -> float:
    """Count the seconds of the processor in this process and in those that it has waited for."""
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def measure_seconds(work: Callable[[], object]) -> float:
    began = count_seconds()
    work()
    return count_seconds() - began


def measure(task: Task, rounds: int) -> list[str]:
    """Measure what the compiler takes and the blocks of a network; return the cells of a row."""
    plain, joined = (Ours(task, CausalWan.of_tree(task.tree, joined=joined)) for joined in (False, True))
    compiled = make_compiled(task, INDUCTOR)
    videos = (plain, compiled, joined)
    for video in videos:
        video.start_video()
        while video.end < task.config.window:
            make_block(video)
    first = [measure_seconds(lambda video=video: make_block(video)) for video in videos]
    switch = [measure_seconds(video.recache) for video in videos]
    times = zip(
        *([measure_seconds(lambda each=each: make_block(each)) for each in videos] for _ in range(rounds)), strict=True
    )
    as_it_is, *others = times
    found, expected = (torch.cat(video.latents, 1).double() for video in (compiled, plain))
    return [
        f"{first[1] - first[0]:.0f}",
        f"{switch[1] - switch[0]:.0f}",
        f"{1e3 * statistics.median(as_it_is):.0f}",
        *(describe_ratio(each, as_it_is) for each in others),
        f"{float((found - expected).norm() / expected.norm()):.0e}",
    ]


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args(arguments).rounds
    torch.set_num_threads(1)
    torch._inductor.config.compile_threads = 1  # in processes that are counted
    torch._inductor.config.force_disable_caches = True
    counted = [(each.value, count_graphs(SMALL_GEOMETRY, each)) for each in Positions]
    rows = [(name, sum(made.values()), ", ".join(map(str, made))) for name, made in counted]
    sys.stdout.write(f"{format_table(['positions', 'graphs', 'made at block'], rows)}\n\n")
    columns = ("network", "compiler, s", "at a switch, s", "a block, ms", "compiled", "joined by us", "difference")
    rows = [(name, *measure(Task.make(*case[:2], dtype=case[2]), rounds)) for name, case in CASES.items()]
    sys.stdout.write(f"{format_table(columns, rows)}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
