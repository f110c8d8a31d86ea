"""ComfyUI's TorchCompileModel compiles the layers of a session's MODEL, where their weights stay in place."""

import pytest
from hosts import HOSTS, NEWEST, Host
from inside import call_inside


def test_a_model_is_compiled_as_its_node_asks_and_has_its_own_keys():
    call_inside(NEWEST, "compiling", "check_the_node_compiles_the_miniature", "check_an_8_bit_copy_is_compiled_too")


@pytest.mark.parametrize("release", HOSTS, ids=lambda host: host.version)
def test_what_cannot_be_compiled_says_why(release: Host):
    call_inside(
        release,
        "compiling",
        "check_what_cannot_be_compiled_says_why",
        "check_weights_that_move_after_the_key_end_the_video",
    )


@pytest.mark.slow
def test_inductor_compiles_a_model():
    call_inside(NEWEST, "compiling", "check_inductor_by_the_node_itself")
