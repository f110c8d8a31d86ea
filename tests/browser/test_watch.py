"""A watched Timeline plays its film while it runs: in both renderers, with MediaSource and where it is refused."""

import json
from collections.abc import Iterator

import pytest
from conftest import PINNED
from desk import TIMELINE, Desk
from playwright.sync_api import Browser

BLOCKS = 3 * 3
VIDEO = "document.querySelector('.longlive-film video')"
CONNECT = """seed => {
    const [timeline, miniature, session] = ["Timeline", "Miniature", "Session"].map(
        name => app.graph.nodes.find(node => node.type === `LongLive${name}`));
    miniature.connect(miniature.findOutputSlot("vae"), timeline, "vae");
    session.widgets.find(widget => widget.name === "seed").value = seed;
}"""

pytestmark = pytest.mark.parametrize("server", [PINNED], indirect=True)


@pytest.fixture(params=["classic", pytest.param("vue", marks=pytest.mark.slow), "vue without MediaSource"])
def watched(request: pytest.FixtureRequest, browser: Browser, server) -> Iterator[Desk]:
    """A page with workflow 3, whose Timeline has a VAE. The host of the tests forbids MediaSource by its CSP."""
    is_vue, is_allowed = request.param.startswith("vue"), request.param.endswith(("classic", "vue"))
    server.post("/settings/Comfy.VueNodes.Enabled", is_vue)
    context = browser.new_context(viewport={"width": 1500, "height": 950}, bypass_csp=is_allowed)
    desk = Desk(context.new_page(), server, is_vue=is_vue)
    desk.open()
    desk.load(json.loads(TIMELINE.read_text().replace("5s |", "3b |")), "timeline")
    desk.page.evaluate(CONNECT, 100 + 2 * is_vue + is_allowed)
    desk.look_at("LongLiveTimeline")
    yield desk
    context.close()
    assert desk.complaints == []


def test_the_film_plays_in_the_node_while_it_runs_and_to_its_end_afterwards(watched: Desk, request):
    seen = len(watched.host.get("/history"))
    watched.command("Comfy.QueuePrompt")
    watched.page.wait_for_function(f"() => {VIDEO}?.currentTime > 0.2")
    assert len(watched.host.get("/history")) == seen  # it still runs
    box = watched.page.locator(".longlive-film").bounding_box()
    assert box
    assert min(box["width"], box["height"]) > 100
    source = watched.page.evaluate(VIDEO + ".src")
    assert ("film.mp4?v=" in source) == ("without" in request.node.name), source

    watched.wait_until(lambda: len(watched.host.get("/history")) > seen, lambda: "the graph has not run")
    length = (4 * 3 * BLOCKS - 3) / 16
    watched.page.wait_for_function(f"end => {VIDEO}.currentTime > end - 0.2", arg=length)
    assert abs(watched.page.evaluate(VIDEO + ".duration") - length) < 0.05
