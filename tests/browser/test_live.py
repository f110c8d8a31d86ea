"""Directing a film in a real browser: each renderer and each front end once for the steering, once for all that may
happen to the page meanwhile. These hosts refuse MediaSource; `tour.py` also directs where it is allowed."""

import pytest
from desk import Desk
from directing import BLUE, RED, SQUARE, Panel, direct_a_film, open_live
from subgraphs import fold

CROSSED = [("pinned", "classic"), ("newest", "vue")]
STRAIGHT = [("pinned", "vue"), ("newest", "classic")]


@pytest.mark.parametrize(("server", "shared_desk"), CROSSED, indirect=True)
def test_a_film_is_directed(any_desk: Desk):
    panel = open_live(any_desk)

    state = direct_a_film(panel)

    texts = [switch["text"] for switch in state["switches"]]
    assert texts == [RED, BLUE, SQUARE, SQUARE]
    assert panel.script == state["script"]
    assert " blend 3b |" in panel.script
    assert " keep seed " in panel.script
    assert panel.find("delay").inner_text().startswith("made in ")


@pytest.mark.parametrize(("server", "shared_desk"), STRAIGHT, indirect=True)
def test_whatever_happens_to_the_page_the_panel_finds_its_run(any_desk: Desk):
    panel = open_live(any_desk)
    panel.say(RED)
    panel.wait_for_blocks(2)
    take = panel.take
    film = panel.element.element_handle()

    any_desk.page.evaluate("() => { app.graph.nodes[0].title = 'another'; }")
    any_desk.page.evaluate(SNAPSHOT)
    any_desk.command("Comfy.Undo")
    any_desk.page.wait_for_function("film => film.isConnected && film.clientHeight > 0", arg=film)
    any_desk.command("Comfy.NewBlankWorkflow")
    any_desk.page.wait_for_function("() => app.graph.nodes.length === 0")
    any_desk.command("Workspace.PreviousOpenedWorkflow")
    any_desk.page.wait_for_function("film => film.isConnected && film.clientHeight > 0", arg=film)
    blocks = len(panel.state["pieces"])
    panel.wait_until_seen(blocks * 0.75 - 0.5)

    any_desk.open()
    panel.wait_for_blocks(blocks + 1)
    assert panel.take == take
    panel.wait_until_seen(0.1)
    second = Panel(any_desk, any_desk.page.context.new_page())
    second.page.goto(any_desk.host.address)
    second.find("prompt").wait_for()
    second.say(BLUE)
    panel.wait_for(lambda state: state["switches"][-1]["text"] == BLUE)
    assert second.take == take
    second.page.close()

    fold(any_desk, "LongLiveLive")
    any_desk.page.evaluate("() => app.canvas.openSubgraph(app.graph.nodes.find(n => n.isSubgraphNode?.()).subgraph)")
    any_desk.look_at("LongLiveLive")
    panel.wait_until_seen(0.1)
    panel.press("stop")
    state = panel.wait_for(lambda state: state["status"] == "stopped")
    any_desk.wait_until(lambda: panel.script == state["script"], lambda: f"the script is {panel.script!r}")


SNAPSHOT = """() => {
    const tracker = app.extensionManager.workflow.activeWorkflow.changeTracker;
    (tracker.captureCanvasState ?? tracker.checkState).call(tracker);
}"""
