"""The benchmark that compares our network with the host's."""

from hosts import NEWEST
from inside import call_inside


def test_the_core_of_the_host_makes_our_video_in_the_benchmark():
    [[difference, parts]] = call_inside(NEWEST, "core_network", "compare")
    assert 0 < difference < 1e-5
    assert parts == ["first block", "12 frames", "block", "four steps", "clean pass"]
