"""How much videos of one prompt differ between seeds."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ...evaluation.report import Estimate, Table, estimate
from ...units import count_pixel_frames
from ..clips import choose_sky, seed_random
from ..files import Miniature
from ..world import Clip, render_clips
from .attributes import stack_attributes
from .measure import correlate_skies, find_right_frames, observe
from .plan import EvaluationPlan, choose_scenes
from .video_sampler import OnBlock, VideoSampler


@dataclass(frozen=True, slots=True)
class SeedVariety:
    """How much the first blocks of neighbouring seeds differ under one prompt, and clips of the world with them."""

    difference: Estimate  # mean of absolute pixel differences, 0..255
    sky: Estimate  # correlation
    right: Estimate  # share of pixel frames that are right in every attribute
    difference_of_world: Estimate
    sky_of_world: Estimate

    @classmethod
    def sample(cls, miniature: Miniature, seeds: int, plan: EvaluationPlan, on_block: OnBlock) -> "SeedVariety":
        (scene,) = choose_scenes(0, 1)
        block = plan.config.block
        with VideoSampler(miniature, on_block) as sampler:
            sampled = [sampler.start_video(scene, seed, plan.config, block).pixels_FCHW for seed in range(seeds)]
        skies = [choose_sky(seed_random("variety", seed)) for seed in range(seeds)]
        rendered, _ = render_clips([Clip(((0, scene),), sky) for sky in skies], count_pixel_frames(block))
        right = [stack_attributes(find_right_frames(observe(video), [(0, scene)])).min(0).mean() for video in sampled]
        return cls(*compare_neighbours(sampled), estimate(right), *compare_neighbours([*rendered]))


def compare_neighbours(videos_FCHW: Sequence[Tensor]) -> tuple[Estimate, Estimate]:
    """Compare each video with the next: absolute pixel difference, 0..255, and correlation of the skies."""
    others = [*videos_FCHW[1:], videos_FCHW[0]]
    pairs = [*zip(videos_FCHW, others, strict=True)]
    skies = [observe(video_FCHW[:1]).sky_FHW[0] for video_FCHW in videos_FCHW]
    return (
        estimate([(one - other).abs().mean().item() * 255 / 2 for one, other in pairs]),
        estimate([correlate_skies(one, other) for one, other in zip(skies, [*skies[1:], skies[0]], strict=True)]),
    )


def tabulate_variety(varieties: dict[str, SeedVariety]) -> Table:
    """Tabulate varieties by name; the world's own, which are the same for all, come last."""
    rows = [(name, variety.difference, variety.sky) for name, variety in varieties.items()]
    world = next(iter(varieties.values()))
    rows.append(("clips of the world", world.difference_of_world, world.sky_of_world))
    columns = (("first blocks", ""), ("difference, of 255", ".1f"), ("sky correlation", ".2f"))
    (scene,) = choose_scenes(0, 1)
    return Table("Different seeds under one prompt", columns, tuple(rows), f"The prompt: {scene}.")
