"""The streams over ComfyUI's VAE, in every ComfyUI that the pack supports."""

import pytest
from hosts import HOSTS
from inside import call_inside


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
        "check_catching_up",
        "check_out_of_memory",
    )
    decoded, encoded, *_ = call_inside(version, "vae", "check_vae_decodes", "check_vae_encodes", *checks)

    assert decoded
    assert encoded
