"""The streams over ComfyUI's VAE, in every ComfyUI that the pack supports."""

import pytest
from hosts import HOSTS, NEWEST
from inside import call_inside

LONG_CHECKS = ("check_catching_up", "check_out_of_memory")


@pytest.mark.parametrize("version", HOSTS, ids=lambda host: host.version)
def test_a_video_in_pieces_is_decoded_and_encoded_as_the_whole_or_refused(version):
    checks = (
        "check_weights_are_shared",
        "check_half_precision",
        "check_the_trial_is_made_once",
        "check_a_refused_network_is_named",
        "check_passes_follow_memory",
        "check_host_vae_of_an_unknown_cut",
        "check_other_vaes_are_refused",
        "check_convolutions_are_fast",
        *(LONG_CHECKS if version is NEWEST else ()),  # no version makes a difference to what they look at
    )
    decoded, encoded, *_ = call_inside(version, "vae", "check_vae_decodes", "check_vae_encodes", *checks)

    assert decoded
    assert encoded


@pytest.mark.slow
@pytest.mark.parametrize("version", [host for host in HOSTS if host is not NEWEST], ids=lambda host: host.version)
def test_decoders_catch_up_and_run_out_of_memory_in_older_hosts_too(version):
    call_inside(version, "vae", *LONG_CHECKS)
