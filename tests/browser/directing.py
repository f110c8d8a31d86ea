"""The steps of a user who directs a film in the panel of LongLive Live."""

import json
from collections.abc import Callable

from desk import PATIENCE_MS, Desk
from graphs import WORKFLOWS
from host_messages import HostError
from playwright.sync_api import Locator, Page

LIVE = WORKFLOWS[6]
RED, BLUE, SQUARE = (
    "a red ring moves right at night from the north west",
    "a blue ring moves down at dusk",
    "a blue square moves left by day",
)


class Panel:
    """The panel on a page. What it shows is read from the page, what the host knows from the host."""

    def __init__(self, desk: Desk, page: Page | None = None) -> None:
        self.desk, self.page = desk, page or desk.page

    @property
    def element(self) -> Locator:
        return self.page.locator(".longlive-live:visible")

    def find(self, name: str) -> Locator:
        return self.element.locator(f".longlive-live-{name}")

    @property
    def take(self) -> str:
        return self.page.evaluate(f"() => {FIND_NODE}.widgets.find(widget => widget.name === 'take').value")

    @property
    def script(self) -> str:
        """The script that the node would begin with now."""
        return self.page.evaluate(f"() => {FIND_NODE}.widgets.find(widget => widget.name === 'script').value")

    @property
    def state(self) -> dict:
        """What the host says of the run; empty before it begins."""
        try:
            return self.desk.host.get(f"/longlive/live/{self.take}") if self.take else {}
        except HostError:
            return {}

    def say(self, text: str, boundary: str = "recache") -> None:
        self.element.get_by_label("How the prompt begins").select_option(boundary)
        self.find("prompt").fill(text)
        self.find("prompt").press("Enter")

    def press(self, name: str) -> None:
        self.find(name).click()

    def choose(self, share: float) -> None:
        """Click on the ruler at a share of its width."""
        box = self.find("track").bounding_box()
        assert box
        self.find("track").click(position={"x": share * box["width"], "y": 8})

    def wait_for(self, condition: Callable[[dict], bool]) -> dict:
        """Wait until the host's state of the run fulfils a condition."""
        state: dict = {}

        def look() -> bool:
            nonlocal state
            state = self.state
            return bool(state) and condition(state)

        self.desk.wait_until(look, lambda: json.dumps(state, indent=1))
        return state

    def wait_for_blocks(self, count: int) -> dict:
        return self.wait_for(lambda state: len(state["pieces"]) >= count)

    def wait_until_seen(self, seconds: float) -> None:
        """Wait until the film on the page shows a picture from a time on."""
        self.page.wait_for_function(
            "seconds => [...document.querySelectorAll('.longlive-live video')]"
            ".some(v => v.currentTime >= seconds && v.readyState >= v.HAVE_CURRENT_DATA)",
            arg=seconds,
            timeout=PATIENCE_MS,
        )


FIND_NODE = """(() => {
    const graphs = [app.rootGraph ?? app.graph, ...((app.rootGraph ?? app.graph).subgraphs?.values() ?? [])];
    return graphs.flatMap(graph => graph.nodes).find(node => node.type === "LongLiveLive");
})()"""


def open_live(desk: Desk, script: str = "") -> Panel:
    """Open workflow 7 with a script, and bring its panel into view."""
    workflow = json.loads(LIVE.read_text())
    for node in workflow["nodes"]:
        if node["type"] == "LongLiveLive":
            node["widgets_values"][:2] = [script, ""]
    desk.load(workflow, "live")
    desk.look_at("LongLiveLive")
    panel = Panel(desk)
    panel.find("prompt").wait_for()
    return panel


def direct_a_film(panel: Panel, look: Callable[[str], object] = lambda stage: None) -> dict:
    """Direct a film with every control of the panel; return the last state. `look` is called at each stage."""
    panel.say(RED)
    panel.wait_for_blocks(3)
    panel.wait_until_seen(0.5)
    look("1 a first prompt")
    panel.say(BLUE, "blend")
    panel.wait_for(lambda state: any(switch["blend"] for switch in state["switches"]))
    panel.wait_for_blocks(6)
    look("2 a blend")
    panel.say(SQUARE, "cut")
    state = panel.wait_for(lambda state: state["switches"][-1]["boundary"] == "cut")
    cut = state["switches"][-1]["block"]
    panel.wait_for_blocks(cut + 2)
    look("3 a cut")
    panel.find("cheap").last.click()
    look("4 a place is chosen")
    count = panel.state["pieces"][-1][1]
    panel.press("rewind")
    panel.wait_for(lambda state: state["pieces"] and state["pieces"][-1][1] > count)
    panel.press("reseed")
    panel.wait_for(lambda state: state["switches"][-1]["seed"] is not None)
    look("5 rewound, with a new seed")
    panel.press("main")
    panel.wait_for(lambda state: state["status"] == "paused")
    look("6 a pause")
    blocks = len(panel.state["pieces"])
    panel.press("main")
    panel.wait_for_blocks(blocks + 1)
    panel.press("stop")
    state = panel.wait_for(lambda state: state["status"] == "stopped")
    panel.desk.wait_until(lambda: panel.script == state["script"], lambda: f"the script is {panel.script!r}")
    look("7 stopped")
    return state
