"""Law 5 of `docs/architecture.md`: the rollout is ComfyUI's own `ar_video` sampler where the two can be compared."""

import pytest
from hosts import NEWEST
from inside import call_inside

TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def differences() -> dict[str, float]:
    return call_inside(NEWEST, "law5", "check_law5")[0]


def test_law_5_rollout_equals_the_sampler_of_the_host(differences):
    assert differences["size"] > 1
    assert 0 < differences["as they are"] <= TOLERANCE


def test_law_5_rollout_is_the_sampler_of_the_host_in_one_precision(differences):
    assert differences["in one precision"] == 0
