"""The miniature's report: perfect for the world's own clips, and different where the clips differ."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from longlive.config import Positions, RolloutConfig
from longlive.errors import ConfigError
from longlive.evaluation.report import Estimate
from longlive.miniature.clips import choose_sky, seed_random
from longlive.miniature.evaluation.miniature_report import report_miniature
from longlive.miniature.evaluation.plan import EvaluationPlan, SwitchCase, choose_scenes
from longlive.miniature.evaluation.seed_variety import SeedVariety
from longlive.miniature.evaluation.switches import (
    SeedResult,
    tabulate_adherence,
    tabulate_continuity,
    tabulate_recaches,
)
from longlive.miniature.evaluation.targets import tabulate_targets
from longlive.miniature.evaluation.video_sampler import VideoSampler
from longlive.miniature.evaluation.windows import WindowResult, observe_seconds
from longlive.miniature.grammar import ATTRIBUTES
from longlive.miniature.world import Clip, render_clips
from longlive.model.vae import Past
from longlive.model.vae_streams import decode
from longlive.session.boundary import Boundary
from longlive.units import count_pixel_frames

PLAN = EvaluationPlan()
SEGMENT, SEGMENTS = PLAN.segment_frames, PLAN.num_segments


def render_scenes(seed: int, begins: dict[int, int], latents: int) -> torch.Tensor:
    """Render the clip of a seed's scenes, {scene: latent it begins at}."""
    scenes = choose_scenes(seed, SEGMENTS)
    clip = Clip(
        tuple((count_pixel_frames(at), scenes[i]) for i, at in begins.items()), choose_sky(seed_random("sky", seed))
    )
    return render_clips([clip], count_pixel_frames(latents))[0][0]


def make_true_result(seed: int) -> SeedResult:
    """Render what each boundary should do: a cut begins another clip, a kept cache continues the old one."""
    videos = {}
    for opening, boundary in PLAN.switch_cases:
        whole = opening + SEGMENT
        if boundary is Boundary.KEEP:
            videos[SwitchCase(opening, boundary)] = render_scenes(seed, {0: 0}, whole)
        elif boundary is Boundary.CUT:
            other = render_clips(
                [Clip(((0, choose_scenes(seed, SEGMENTS)[1]),), choose_sky(seed_random("other", seed)))], 4 * SEGMENT
            )[0][0]
            videos[SwitchCase(opening, boundary)] = torch.cat([render_scenes(seed, {0: 0}, opening), other])
        else:
            videos[SwitchCase(opening, boundary)] = render_scenes(seed, {0: 0, 1: opening}, whole)
    series = render_scenes(seed, {i: SEGMENT * i for i in range(SEGMENTS)}, SEGMENT * SEGMENTS)
    return SeedResult.of_pixels(choose_scenes(seed, SEGMENTS), videos, series, PLAN)


@pytest.fixture(scope="module")
def results() -> list[SeedResult]:
    return [make_true_result(seed) for seed in range(3)]


def rows(table) -> list[dict]:
    return table.as_dict()["rows"]


def test_neighbouring_prompts_differ_in_all_but_the_background_and_depend_on_the_seed_alone():
    for seed in range(20):
        scenes = choose_scenes(seed, SEGMENTS)
        assert len(scenes) == SEGMENTS
        for one, other in pairwise(scenes):
            assert [name for name in ATTRIBUTES if getattr(one, name) is getattr(other, name)] in ([], ["background"])
    assert choose_scenes(3, SEGMENTS) == choose_scenes(3, SEGMENTS) != choose_scenes(4, SEGMENTS)
    assert len({choose_scenes(seed, SEGMENTS)[0].start for seed in range(40)}) == 9


def test_renewing_the_sink_is_a_separate_case_only_when_the_window_has_rolled():
    assert [(opening, str(boundary)) for opening, boundary in PLAN.switch_cases] == [
        *((12, word) for word in ("discard", "keep", "recache")),
        *((24, word) for word in ("discard", "keep", "recache", "renew")),
    ]


def test_a_true_recache_is_right_a_second_later_and_a_kept_cache_never(results):
    for row in rows(tabulate_adherence(results, PLAN)):
        later = row["span"] == "after a second"
        if row["memory"] == "discard" or (row["memory"].startswith("recache") and later):
            assert row["colour"] == row["shape"] == {"value": 1.0, "low": 1.0, "high": 1.0}
        if row["memory"] == "keep":
            assert [row[name]["value"] for name in ("colour", "shape", "motion")] == [0, 0, 0]


def test_only_a_true_cut_jumps_and_changes_the_sky(results):
    for row in rows(tabulate_continuity(results, PLAN)):
        is_cut = row["memory"] == "discard"
        assert (row["median jump, px"]["value"] > 6) == is_cut
        assert (row["median leap, px"]["value"] > 3) == is_cut
        assert (row["sky correlation"]["value"] < 0.7) == is_cut


def test_a_true_video_is_right_in_every_segment(results):
    table = rows(tabulate_recaches(results, PLAN))
    assert len(table) == SEGMENTS
    assert all(row[name]["value"] == 1 for row in table for name in ATTRIBUTES)
    assert table[0]["median jump, px"] is None
    assert all(row["median jump, px"]["value"] < 1.8 for row in table[1:])


def test_the_world_itself_meets_every_target(results):
    second = render_scenes(0, {0: 0}, 6)[-16:]
    assert {row["met"] for row in list_targets(results, [second, second])} == {"yes"}


def test_a_thing_that_is_gone_after_a_long_time_misses_its_targets(results):
    second = render_scenes(0, {0: 0}, 6)[-16:]
    missed = {row["target"] for row in list_targets(results, [second, -second]) if row["met"] == "no"}
    assert missed >= {"colour, lost over 240 latents", "background, lost over 240 latents"}
    missed = {row["target"] for row in list_targets(results, [second, torch.zeros_like(second)]) if row["met"] == "no"}
    assert missed >= {f"{name}, lost over 240 latents" for name in ("colour", "shape", "motion")}
    assert {"area after 240 latents", "shape after 240 latents", "likeness after 240 latents"} <= missed
    assert not any("switch" in target for target in missed)


def list_targets(results: list[SeedResult], seconds: list[torch.Tensor]) -> list[dict]:
    """List the targets for true results and a long video with these seconds."""
    observations = observe_seconds(seconds, choose_scenes(0, SEGMENTS)[0])
    variety = SeedVariety(
        *[Estimate(10, 9, 11), Estimate(0, 0, 0)], Estimate(1, 1, 1), Estimate(20, 19, 21), Estimate(0, 0, 0)
    )
    released = WindowResult(RolloutConfig(), 0.1, (observations,) * len(results))
    return rows(tabulate_targets(results, released, variety, PLAN))


def test_a_video_continued_in_two_ways_gives_the_videos_of_two_runs(miniature):
    one, other, *_ = choose_scenes(0, SEGMENTS)
    config = RolloutConfig(positions=Positions.UNBOUNDED)
    with VideoSampler(miniature) as sampler:
        begun = sampler.start_video(one, 5, config, 6)
        ends = [sampler.switch_video(begun, other, boundary, 3) for boundary in (Boundary.KEEP, Boundary.RECACHE)]
    assert begun.session.num_frames == 6
    for end, boundary in zip(ends, (Boundary.KEEP, Boundary.RECACHE), strict=True):
        with VideoSampler(miniature) as sampler:
            alone = sampler.sample(sampler.start_session(one, 5, config), 2)
            alone = sampler.sample(alone.switched_to(sampler.make_prompt(other), boundary), 1)
            torch.testing.assert_close(sampler.decode_second(end.session, 9), end.pixels_FCHW[-16:], atol=1e-5, rtol=0)
        assert torch.equal(end.session.latents(), alone.latents())
        torch.testing.assert_close(end.pixels_FCHW, decode(miniature.vae, alone.latents())[0], atol=1e-5, rtol=0)


class Blocks:
    """A stand-in for a VAE: a cell is a square of its latent's first three channels."""

    device = torch.device("cpu")

    def decode_next(self, latents_BFCHW: torch.Tensor, past: Past) -> torch.Tensor:
        frames_BFCHW = latents_BFCHW[:, :, :3].repeat_interleave(8, 3).repeat_interleave(8, 4)
        frames_BFCHW = frames_BFCHW.repeat_interleave(4 if past.has_begun else 1, 1)
        past.has_begun = True
        return frames_BFCHW


def test_every_table_and_figure_is_made_from_prompts_alone_and_twice_the_same(miniature):
    miniature = replace(miniature, vae=Blocks())
    plan = EvaluationPlan(
        openings=(6, 15),
        segment_frames=6,
        num_segments=3,
        marks=(6, 9, 12),
        table_marks=(9, 12),
        untimed_blocks=1,
        windows=((12, 3), (15, 0)),
    )
    reports = [report_miniature(miniature, 2, plan) for _ in range(2)]
    tables = [[table.as_dict() for table in report.tables] for report in reports]
    for table in tables:
        for row in table[4]["rows"]:
            assert row.pop("ms a block") > 0
    assert tables[0] == tables[1]
    assert [table["title"] for table in tables[0]] == [
        "Targets",
        "Adherence after a switch",
        "Continuity at a switch",
        "Five switches",
        "Windows",
        "Different seeds under one prompt",
    ]
    assert [figure.name for figure in reports[0].figures] == ["switch_at_6", "switch_at_15", "windows"]


def test_one_seed_has_no_interval(miniature):
    with pytest.raises(ConfigError, match="seeds is 1; intervals need at least 2"):
        report_miniature(miniature, 1)
