"""Exact, fast and fastest inside each ComfyUI."""

import pytest
from hosts import HOSTS, NEWEST, Host
from inside import call_inside


@pytest.mark.parametrize("release", HOSTS, ids=lambda host: host.version)
def test_exact_is_the_default_and_fast_keeps_the_weights(release: Host):
    call_inside(
        release,
        "speed",
        "check_the_default_is_exact",
        "check_fast_keeps_the_weights",
        "check_a_tuning_says_that_it_ignores_the_speed",
        "check_what_is_not_here_is_left_out_and_said",
    )


def test_fastest_computes_with_8_bit_linears_and_decodes_with_a_tiny_vae():
    call_inside(
        NEWEST,
        "speed",
        "check_fastest_computes_with_8_bit_linears",
        "check_a_model_that_cannot_be_copied_is_computed_as_it_is",
        "check_fastest_decodes_with_a_tiny_vae_that_is_there",
    )
