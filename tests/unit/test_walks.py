"""A reader follows a video from the node to attention, and from its text to the recache, in few stops."""

import pytest
from house import PACKAGES, ROOT
from walks import MAX_STOPS, WALKS, find_detours, list_stops


@pytest.mark.parametrize("walk", WALKS.values(), ids=["attention", "recache"])
def test_a_walk_leads_downwards_in_few_stops(walk):
    assert not find_detours(ROOT, walk, PACKAGES)
    assert len(list_stops(walk)) <= MAX_STOPS


@pytest.mark.parametrize(
    ("stop", "problem"),
    [
        ("longlive.rollout.sampler Sampler.missing", "longlive.rollout.sampler has no Sampler.missing"),
        ("longlive.video.render render_video", "no earlier stop names render_video"),
    ],
)
def test_a_stop_that_nothing_leads_to_is_found(stop, problem):
    assert find_detours(ROOT, f"nodes.sampling Timeline.execute\n{stop}", PACKAGES) == [problem]


def test_a_stop_above_its_caller_is_found():
    walk = "longlive.model.causal CausalWan.write_keys\nlonglive.rollout.kv_cache WindowLayerKVCache.write"
    assert find_detours(ROOT, walk, PACKAGES) == ["write is above its caller"]
