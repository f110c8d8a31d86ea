"""One browser for the session, one ComfyUI for each front end, one page for each of its two renderers."""

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright

sys.path.insert(0, str(Path(__file__).parents[1] / "host"))

from desk import Desk
from frontends import NEWEST_ROOT
from host_process import ComfyUI
from hosts import NEWEST

HERE = Path(__file__).parent
CHROMIUM = shutil.which("chromium")
QUIET = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking".split()
QUIET += ["--disable-component-update", "--disable-sync"]
# Frames that a test does not look at cost a third of the processor time of a page.
SETTINGS = {"Comfy.TutorialCompleted": True, "LiteGraph.Canvas.MaximumFps": 15}
PINNED, LATEST = "pinned", "newest"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker("browser")
            if not CHROMIUM:
                item.add_marker(pytest.mark.skip(reason="there is no chromium"))


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield browser
        browser.close()


@pytest.fixture(scope="session", params=[PINNED, LATEST])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyUI]:
    """The newest ComfyUI with each front end in turn."""
    if request.param == LATEST and not NEWEST_ROOT.exists():
        pytest.skip("the newest front end was not fetched")
    flags = ("--front-end-root", str(NEWEST_ROOT)) if request.param == LATEST else ()
    with ComfyUI(NEWEST, tmp_path_factory.mktemp(f"browser-{request.param}-"), flags=flags) as host:
        for name, value in SETTINGS.items():
            host.post(f"/settings/{name}", value)
        yield host


@pytest.fixture(scope="module", params=["classic", "vue"])
def shared_desk(request: pytest.FixtureRequest, browser: Browser, server: ComfyUI) -> Iterator[Desk]:
    """One page for each renderer, which the tests share."""
    server.post("/settings/Comfy.VueNodes.Enabled", request.param == "vue")
    context = browser.new_context(viewport={"width": 1500, "height": 950})
    desk = Desk(context.new_page(), server, is_vue=request.param == "vue")
    desk.open()
    yield desk
    context.close()


@pytest.fixture
def any_desk(shared_desk: Desk) -> Iterator[Desk]:
    """The page as the test before left it. A test fails if the pack wrote an error or a warning."""
    shared_desk.complaints.clear()
    yield shared_desk
    assert shared_desk.complaints == [], json.dumps(shared_desk.complaints, indent=1)


@pytest.fixture
def desk(any_desk: Desk) -> Desk:
    """The page with workflow 3, one block per segment."""
    any_desk.load_timeline()
    return any_desk
