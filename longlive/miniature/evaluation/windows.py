"""How long videos hold together in several windows, with and without a sink (LongLive §3.3).

Dimension key: S seeds, A attributes, T marks, F pixel frames.
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ...config import RolloutConfig
from ...evaluation.report import Cell, Figure, Plot, Table, estimate, estimate_curve
from ...rollout.sampler import count_cache_bytes
from ..files import Miniature
from ..grammar import Scene
from ..world import SIZE
from .attributes import ATTRIBUTE_COLUMNS, SHAPE, estimate_shares, stack_attributes
from .measure import correlate_skies, find_right_frames, observe
from .plan import EvaluationPlan, choose_scenes
from .video_sampler import OnBlock, VideoSampler


@dataclass(frozen=True, slots=True)
class SecondObservation:
    """What one second of a long video shows."""

    right_A: np.ndarray  # share of its pixel frames
    likeness: float  # of the thing to its shape
    sky: float  # correlation with the first second's
    area: float  # of the thing, relative to the first second's


Read = Callable[[SecondObservation], float]
READS: Mapping[str, Read] = {
    "likeness": lambda observation: observation.likeness,
    "sky correlation": lambda observation: observation.sky,
    "area": lambda observation: observation.area,
}


@dataclass(frozen=True, slots=True)
class WindowResult:
    """What long videos of one prompt each show in one window."""

    config: RolloutConfig
    seconds: float  # per block, median
    observations: tuple[tuple[SecondObservation, ...], ...]  # by seed and mark

    @classmethod
    def sample(
        cls, miniature: Miniature, window: tuple[int, int], seeds: int, plan: EvaluationPlan, on_block: OnBlock
    ) -> "WindowResult":
        """Sample one long video per seed in a (window, sink) and time its blocks."""
        config = replace(plan.config, window=window[0], sink=window[1])
        observations, block_seconds = [], []
        for seed in range(seeds):
            (scene,) = choose_scenes(seed, 1)
            with VideoSampler(miniature, on_block) as sampler:
                session, ends = sampler.start_session(scene, seed, config), [time.perf_counter()]
                for longer in sampler.extend(session, plan.marks[-1] // config.block):
                    session = longer
                    ends.append(time.perf_counter())
                block_seconds += np.diff(ends)[plan.untimed_blocks :].tolist()
                observations.append(
                    observe_seconds([sampler.decode_second(session, mark) for mark in plan.marks], scene)
                )
        return cls(config, statistics.median(block_seconds), tuple(observations))

    @property
    def name(self) -> str:
        recent, sink = self.config.recent, self.config.sink
        return f"{recent} + {sink} sink" if sink else f"{recent}, no sink"

    def collect(self, read: Read) -> np.ndarray:
        """Read one number of every observation [S, T]."""
        return np.array([[read(observation) for observation in seed] for seed in self.observations])

    def collect_right(self, mark: int) -> np.ndarray:
        """Collect the shares of right frames [S, A] at the mark of this index."""
        return np.stack([seed[mark].right_A for seed in self.observations])


def read_shape(observation: SecondObservation) -> float:
    return observation.right_A[SHAPE]


def observe_seconds(seconds: Sequence[Tensor], scene: Scene) -> tuple[SecondObservation, ...]:
    """Observe seconds of pixels [F, 3, H, W] of one video; the first is the video's first second."""
    observations = [observe(pixels) for pixels in seconds]
    first_sky, first_area = observations[0].sky_FHW[-1], observations[0].area_F.mean().clamp_min(1)
    return tuple(
        SecondObservation(
            right_A=stack_attributes(find_right_frames(observation, [(0, scene)])).mean(1),
            likeness=observation.likeness_F.mean().item(),
            sky=correlate_skies(first_sky, observation.sky_FHW[-1]),
            area=(observation.area_F.mean() / first_area).item(),
        )
        for observation in observations
    )


def tabulate_windows(results: Sequence[WindowResult], miniature: Miniature, plan: EvaluationPlan) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for result in results:
        kibibytes = count_cache_bytes(miniature.model, result.config, SIZE, SIZE) // 1024
        for mark in plan.table_marks:
            at = plan.marks.index(mark)
            shares = estimate_shares(result.collect_right(at)[..., None])
            facts = [estimate(result.collect(read)[:, at]) for read in READS.values()]
            rows.append((result.name, mark, *shares, *facts, 1000 * result.seconds, kibibytes))
    columns = (
        ("window", ""),
        ("latents", "d"),
        *ATTRIBUTE_COLUMNS,
        *((name, ".2f") for name in READS),
        ("ms a block", ".0f"),
        ("KiB of keys and values", "d"),
    )
    note = (
        f"The latest second of one prompt's video; sky and area against its first second. Likeness is intersection "
        f"over union with the shape. The miniature was trained in each of these windows. Time: clean pass and "
        f"{len(plan.config.steps)} steps; threads: {torch.get_num_threads()}."
    )
    return Table("Windows", columns, tuple(rows), note)


def plot_windows(results: Sequence[WindowResult], plan: EvaluationPlan) -> Figure:
    titles: dict[str, Read] = {
        "sky correlation with the first second": READS["sky correlation"],
        "area relative to the first second": READS["area"],
        "likeness to its shape": READS["likeness"],
        "shape right": read_shape,
    }
    plots = [
        Plot(
            title,
            "latents",
            tuple(estimate_curve(result.name, plan.marks, result.collect(read)) for result in results),
        )
        for title, read in titles.items()
    ]
    return Figure("windows", tuple(plots))
