"""What the miniature claims: perfect on the world's own films, and told apart where the films are."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from longlive.config import Positions, RolloutConfig, pixel_frames
from longlive.errors import ConfigError
from longlive.miniature import claims
from longlive.miniature.claims import SEGMENT, SEGMENTS, Endurance, Story, Variety, glances_at, scenes_of, targets, ways
from longlive.miniature.films import numbered, random_sky
from longlive.miniature.grammar import ATTRIBUTES
from longlive.miniature.stage import Stage, Take
from longlive.miniature.world import Film, render
from longlive.model.vae import Past, decode
from longlive.report import Estimate
from longlive.timeline import Boundary


def rendered(seed: int, begins: dict[int, int], latents: int) -> torch.Tensor:
    """The film of a seed's scenes, {scene: latent it begins at}."""
    scenes = scenes_of(seed)
    film = Film(tuple((pixel_frames(at), scenes[i]) for i, at in begins.items()), random_sky(numbered("sky", seed)))
    return render([film], pixel_frames(latents))[0][0]


def truth(seed: int) -> Story:
    """What the strategies are said to do: a cut begins another film, a kept memory goes on with the old one."""
    videos = {}
    for opening, boundary in ways():
        whole = opening + SEGMENT
        if boundary is Boundary.KEEP:
            videos[opening, boundary] = rendered(seed, {0: 0}, whole)
        elif boundary is Boundary.DISCARD:
            other = render([Film(((0, scenes_of(seed)[1]),), random_sky(numbered("other", seed)))], 4 * SEGMENT)[0][0]
            videos[opening, boundary] = torch.cat([rendered(seed, {0: 0}, opening), other])
        else:
            videos[opening, boundary] = rendered(seed, {0: 0, 1: opening}, whole)
    return Story.of(
        scenes_of(seed), videos, rendered(seed, {i: SEGMENT * i for i in range(SEGMENTS)}, SEGMENT * SEGMENTS)
    )


@pytest.fixture(scope="module")
def stories() -> list[Story]:
    return [truth(seed) for seed in range(3)]


def rows(table) -> list[dict]:
    return table.as_dict()["rows"]


def test_of_neighbouring_prompts_all_but_the_background_differ_and_seeds_count_them():
    for seed in range(20):
        scenes = scenes_of(seed)
        assert len(scenes) == SEGMENTS
        for one, other in pairwise(scenes):
            assert [name for name in ATTRIBUTES if getattr(one, name) is getattr(other, name)] in ([], ["background"])
    assert scenes_of(3) == scenes_of(3) != scenes_of(4)
    assert len({scenes_of(seed)[0].start for seed in range(40)}) == 9


def test_renewing_the_sink_is_a_way_of_its_own_only_when_the_window_has_rolled():
    assert [(opening, str(boundary)) for opening, boundary in ways()] == [
        *((12, word) for word in ("discard", "keep", "recache")),
        *((24, word) for word in ("discard", "keep", "recache", "renew")),
    ]


def test_a_true_recache_is_right_a_second_later_and_a_memory_kept_never(stories):
    for row in rows(claims.adherence_table(stories)):
        later = row["span"] == "after a second"
        if row["memory"] == "discard" or (row["memory"].startswith("recache") and later):
            assert row["colour"] == row["shape"] == {"value": 1.0, "low": 1.0, "high": 1.0}
        if row["memory"] == "keep":
            assert [row[name]["value"] for name in ("colour", "shape", "motion")] == [0, 0, 0]


def test_only_a_true_cut_jumps_and_changes_the_sky(stories):
    for row in rows(claims.continuity_table(stories)):
        is_cut = row["memory"] == "discard"
        assert (row["median jump, px"]["value"] > 6) == is_cut
        assert (row["median leap, px"]["value"] > 3) == is_cut
        assert (row["sky correlation"]["value"] < 0.7) == is_cut


def test_a_true_story_is_right_in_every_segment(stories):
    table = rows(claims.story_table(stories))
    assert len(table) == SEGMENTS
    assert all(row[name]["value"] == 1 for row in table for name in ATTRIBUTES)
    assert table[0]["median jump, px"] is None
    assert all(row["median jump, px"]["value"] < 1.8 for row in table[1:])


def test_the_world_itself_meets_every_target(stories):
    second = rendered(0, {0: 0}, 6)[-16:]
    assert {row["met"] for row in targets_of(stories, [second, second])} == {"yes"}


def test_a_thing_that_is_gone_after_a_long_time_misses_its_targets(stories):
    second = rendered(0, {0: 0}, 6)[-16:]
    missed = {row["target"] for row in targets_of(stories, [second, -second]) if row["met"] == "no"}
    assert missed >= {"colour, lost over 240 latents", "background, lost over 240 latents"}
    missed = {row["target"] for row in targets_of(stories, [second, torch.zeros_like(second)]) if row["met"] == "no"}
    assert missed >= {f"{name}, lost over 240 latents" for name in ("colour", "shape", "motion")}
    assert "area after 240 latents" in missed
    assert not any("switch" in target for target in missed)


def targets_of(stories: list[Story], seconds: list[torch.Tensor]) -> list[dict]:
    """The targets of true stories and of a long video of which these seconds were looked at."""
    glances = glances_at(seconds, scenes_of(0)[0])
    variety = Variety(*[Estimate(10, 9, 11), Estimate(0, 0, 0)] * 2)
    return rows(targets(stories, Endurance(RolloutConfig(), 0.1, (glances,) * len(stories)), variety))


def test_a_take_that_goes_on_in_two_ways_gives_the_videos_of_two_runs(miniature):
    one, other, *_ = scenes_of(0)
    config = RolloutConfig(positions=Positions.UNBOUNDED)
    with Stage(miniature, lambda: None) as stage:
        begun = stage.longer(Take(stage.begun(one, 5, config)), 6)
        ends = [stage.switched(begun, other, boundary, 3) for boundary in (Boundary.KEEP, Boundary.RECACHE)]
    assert begun.session.num_frames == 6
    for end, boundary in zip(ends, (Boundary.KEEP, Boundary.RECACHE), strict=True):
        with Stage(miniature, lambda: None) as stage:
            alone = stage.extended(stage.begun(one, 5, config), 2)
            alone = stage.extended(alone.switched_to(stage.prompt(other), boundary), 1)
            torch.testing.assert_close(stage.latest_second(end.session, 9), end.pixels_FCHW[-16:], atol=1e-5, rtol=0)
        assert torch.equal(end.session.latents(), alone.latents())
        torch.testing.assert_close(end.pixels_FCHW, decode(miniature.vae, alone.latents())[0], atol=1e-5, rtol=0)


class Blocks:
    """Stands for a VAE: a cell is a square of its latent's first three channels."""

    device = torch.device("cpu")

    def decode_next(self, latents_BFCHW: torch.Tensor, past: Past) -> torch.Tensor:
        frames_BFCHW = latents_BFCHW[:, :, :3].repeat_interleave(8, 3).repeat_interleave(8, 4)
        frames_BFCHW = frames_BFCHW.repeat_interleave(4 if past.begun else 1, 1)
        past.begun = True
        return frames_BFCHW


def test_every_table_and_figure_is_made_from_prompts_alone_and_twice_the_same(miniature, monkeypatch):
    miniature = replace(miniature, vae=Blocks())
    for name, value in {
        "OPENINGS": (6, 15), "SEGMENT": 6, "SEGMENTS": 3, "MARKS": (6, 9, 12), "READ_AT": (9, 12), "STEADY": 1,
        "WINDOWS": ((12, 3), (15, 0)),
    }.items():  # fmt: skip
        monkeypatch.setattr(claims, name, value)
    reports = [claims.report(miniature, 2) for _ in range(2)]
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
        claims.report(miniature, 1)
