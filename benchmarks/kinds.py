"""Compare a rolling video with a block-wise one of the same budget: a window of 21 frames, five steps.

    python benchmarks/kinds.py [--rounds 8] [--cells 16 20] [--dtype bf16]

Counts blocks, recaches, the way to the first block and a whole video at 832 x 480, as `cost.py` does, and predicts
their times. Then a block in the midst of either video is timed in turn: random weights of the true width, two layers,
one thread of the CPU. Times are of the processor, so ratios hold on a busy machine.
"""

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from contenders import Task
from cost import COLUMNS, describe_work
from memory_budget import MemoryBudget
from side_by_side import make_geometry
from true_size import (
    HEIGHT,
    START,
    WIDTH,
    NetworkWork,
    count_network,
    denoise,
    make_latents,
    make_network,
    make_prompt,
    make_rollout,
)
from turns import describe_ms, describe_ratio, format_table
from work_counter import Work, count_work

from longlive.config import Positions, RolloutConfig
from longlive.model.causal import CausalWan, TextKeys
from longlive.model.dtypes import COMPUTE_DTYPES
from longlive.model.vae import LATENT_CHANNELS
from longlive.rollout.rolling_rollout import RollingRollout
from longlive.rollout.rollout import Rollout
from longlive.rollout.sampler import count_cache_bytes

ROLLING = RolloutConfig.roll()
SAME_BUDGET = RolloutConfig(window=ROLLING.window, steps=ROLLING.steps, positions=Positions.UNBOUNDED)
KINDS = {"rolling": ROLLING, "block-wise": SAME_BUDGET}
VIDEO_BLOCKS = 42  # 501 pixel frames
MIDST = START // ROLLING.block  # block that is timed


class VideoPass(NamedTuple):
    """What a video is made by: the steps of a block or a joint pass, or a clean pass."""

    is_clean: bool
    first: int  # block
    blocks: int = 1
    level: int = 0  # of the first block


def list_video_passes(config: RolloutConfig, blocks: int) -> Iterator[VideoPass]:
    """List what makes a video to its end."""
    last_level = config.num_in_flight
    for number in range(blocks + last_level):
        first = max(0, number - last_level)
        yield VideoPass(False, first, min(number, blocks - 1) - first + 1, number - first)
        if number >= last_level and first + 1 < blocks:
            yield VideoPass(True, first)


def iter_work(model: CausalWan, config: RolloutConfig, passes: Sequence[VideoPass]) -> Iterator[Work]:
    """Yield the work of each; what attends as many frames is counted once."""
    rollout, text = make_rollout(model, config), model.read_prompt(make_prompt())
    counted: dict[tuple, Work] = {}

    def count(each: VideoPass) -> Work:
        start, frames = each.first * config.block, each.blocks * config.block
        if each.is_clean:
            return count_work(lambda: rollout.clean_pass(start, make_latents(frames), text))
        return count_work(lambda: denoise(rollout, each.first, text, each.blocks, each.level))

    for each in passes:
        place = rollout.window.place_clean if each.is_clean else rollout.window.place_block
        attended = place(each.first * config.block, each.blocks * config.block).attended_slots
        key = each.is_clean, each.blocks, len(attended)
        if key not in counted:
            counted[key] = count(each)
        yield counted[key]


def count_video(model: CausalWan, config: RolloutConfig) -> tuple[Work, Work]:
    """Count the work until the first block is there, and that of a whole video."""
    works = [*iter_work(model, config, [*list_video_passes(config, VIDEO_BLOCKS)])]
    return sum(works[: config.num_in_flight + 1], Work()), sum(works, Work())


def list_rows(name: str, network: NetworkWork, model: CausalWan, config: RolloutConfig) -> list[tuple]:
    first, video = count_video(model, config)
    return [
        describe_work(f"{name}: steps of a block", network.steps),
        describe_work(f"{name}: clean pass", network.clean_pass),
        describe_work(f"**{name}: block**", network.block),
        describe_work(f"{name}: recache, sink kept", network.recache),
        describe_work(f"{name}: until the first block", first),
        describe_work(f"{name}: {VIDEO_BLOCKS} blocks", video),
    ]


def describe_memory(name: str, network: NetworkWork, model: CausalWan, config: RolloutConfig) -> tuple:
    budget, cache = MemoryBudget.of_sampling(model, network), count_cache_bytes(model, config, HEIGHT, WIDTH)
    return name, *(f"{num_bytes / 1e9:.2f}" for num_bytes in (cache, budget.busy, budget.total))


def make_block(rollout: Rollout, task: Task, text: TextKeys) -> None:
    """Finish a block in the midst of a video, its clean pass included. What it attends are zeros."""
    start = MIDST * rollout.config.block
    if isinstance(rollout, RollingRollout):
        levels = len(rollout.steps)
        begun = [task.noise(MIDST + behind, 0) for behind in range(levels)]
        finished, *_ = rollout.roll(start, begun, levels - 1, text, task.noise, MIDST)
    else:
        finished = rollout.denoise(start, text, task.noise, MIDST)
    rollout.clean_pass(start, finished, text)


def measure(task: Task, rounds: int) -> list[str]:
    """Measure a block of either kind in turn; return the cells of a row: both times, and their ratio."""
    model = CausalWan.of_tree(task.tree, joined=True)
    tasks = [replace(task, config=config) for config in (ROLLING, SAME_BUDGET)]
    shape, text = (1, LATENT_CHANNELS, *task.cells), model.read_prompt(task.prompt_BLD)
    rollouts = [RollingRollout(model, ROLLING, shape), Rollout(model, SAME_BUDGET, shape)]
    times: list[list[float]] = [[], []]
    for number in range(rounds + 1):
        for kind in (0, 1) if number % 2 else (1, 0):
            began = time.thread_time()
            make_block(rollouts[kind], tasks[kind], text)
            if number:  # the first one draws the noise
                times[kind].append(time.thread_time() - began)
    return [*map(describe_ms, times), describe_ratio(*times)]


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--cells", type=int, nargs=2, default=(16, 20), help="rows and columns of latents")
    parser.add_argument("--dtype", choices=("bf16", "fp32"), default="bf16")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    model = make_network()
    networks = {name: count_network(model, config) for name, config in KINDS.items()}
    rows = [row for name, config in KINDS.items() for row in list_rows(name, networks[name], model, config)]
    sys.stdout.write(f"{format_table(['what', *COLUMNS], rows)}\n\n")
    memory = [describe_memory(name, networks[name], model, config) for name, config in KINDS.items()]
    sys.stdout.write(f"{format_table(['what', 'K/V GB', 'a pass GB', 'with weights GB'], memory)}\n\n")
    task = Task.make(make_geometry(2), tuple(options.cells), dtype=COMPUTE_DTYPES[options.dtype])
    columns = ("rolling, ms", "block-wise, ms", "ratio")
    sys.stdout.write(f"{format_table(columns, [measure(task, options.rounds)])}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
