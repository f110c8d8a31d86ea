"""On cards where encoding a prompt evicts the network, it is loaded again before the next block."""

import pytest
from hosts import HOSTS, Host
from inside import call_inside


@pytest.mark.parametrize("release", HOSTS, ids=lambda host: host.version)
def test_the_network_is_on_its_device_whenever_it_computes(release: Host):
    call_inside(
        release,
        "eviction",
        "check_the_network_is_loaded_before_every_block",
        "check_nothing_is_loaded_again_where_nothing_moved",
    )
