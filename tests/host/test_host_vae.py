"""The streams over ComfyUI's VAE, in every ComfyUI we claim; the checks run inside its process."""

import pytest
from hosts import HOSTS
from inside import inside


@pytest.mark.parametrize("version", HOSTS, ids=lambda host: host.version)
def test_a_video_in_pieces_is_decoded_and_encoded_as_the_whole_or_refused(version):
    checks = (
        "check_host_vae_of_an_unknown_cut",
        "check_other_vaes_are_refused",
        "check_convolutions_are_fast",
        "check_catching_up",
        "check_out_of_memory",
    )
    decoded, encoded, *_ = inside(version, "check_vae", "check_host_vae", "check_host_vae_encodes", *checks)

    assert decoded
    assert encoded
