"""One process of each ComfyUI for the whole session, started when a test first asks for it.

Tests share a host and its cache of outputs, so a test that counts executed nodes needs a seed or a text that no other
test uses.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from host_process import ComfyUI
from hosts import HOSTS, NEWEST, Host

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker("host")


@pytest.fixture(scope="session")
def boot(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., ComfyUI]]:
    """Return the running host of a version with extra flags, such as `boot(NEWEST, "--cache-none")`."""
    with ExitStack() as hosts:

        @functools.cache
        def boot(host: Host, *flags: str) -> ComfyUI:
            if not host.is_ready:
                raise RuntimeError(f"ComfyUI {host.version} is missing; run: python tests/host/hosts.py setup")
            return hosts.enter_context(ComfyUI(host, tmp_path_factory.mktemp(f"comfyui-{host.version}-"), flags=flags))

        yield boot


@pytest.fixture(scope="session", params=HOSTS, ids=lambda host: host.version)
def host(request: pytest.FixtureRequest, boot: Callable[..., ComfyUI]) -> ComfyUI:
    """Each ComfyUI in turn."""
    return boot(request.param)


@pytest.fixture(scope="session")
def newest(boot: Callable[..., ComfyUI]) -> ComfyUI:
    """The newest ComfyUI, where the version makes no difference."""
    return boot(NEWEST)
