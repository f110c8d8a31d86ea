"""A page of ComfyUI's front end, used by mouse and keyboard; what they cannot reach is read from the page's graph."""

import json
import time
from collections.abc import Callable
from pathlib import Path

from graphs import WORKFLOWS
from host_process import PACK, ComfyUI
from playwright.sync_api import ConsoleMessage, Locator, Page

TIMELINE = WORKFLOWS[2]
PATIENCE_MS = 120_000  # for a busy machine; every wait is for a condition
READY = "window.app?.graph && window.app.extensionManager?.workflow?.activeWorkflow"

# The script of workflow 3 with one block per segment, and another prompt.
HEADER = "# duration, perhaps renew, keep or cut, a bar, the prompt\n"
RED, BLUE, SQUARE = (
    "1b | a red ring moves right at night from the north west\n",
    "1b | a blue ring moves down at dusk\n",
    "1b | a blue square moves left by day\n",
)
SCRIPT = HEADER + RED + BLUE + SQUARE
GREEN = "a green ring stays still"


class Desk:
    """One page. A node is named by its type, because workflow 3 has one of each."""

    def __init__(self, page: Page, host: ComfyUI, *, is_vue: bool) -> None:
        self.page, self.host, self.is_vue = page, host, is_vue
        self.complaints: list[str] = []
        page.set_default_timeout(PATIENCE_MS)
        page.on("console", self._hear)
        page.on("pageerror", lambda error: self.complaints.append(f"{error}\n{error.stack}"))

    def open(self) -> None:
        """Open or reload the page."""
        self.page.goto(self.host.address)
        self.page.wait_for_function(READY)

    def load(self, workflow: dict, name: str) -> None:
        """Open a workflow in a new tab."""
        self.page.evaluate("([graph, name]) => app.loadGraphData(graph, true, true, name)", [workflow, name])
        self.page.wait_for_function("count => app.graph.nodes.length === count", arg=len(workflow["nodes"]))

    def load_timeline(self) -> None:
        text = TIMELINE.read_text().replace("5s |", "1b |")
        self.load(json.loads(text), "timeline")
        self.look_at("LongLiveTimeline")
        self.prompt(0).wait_for()

    def look_at(self, node_type: str) -> None:
        """Bring a node to the upper left of the page, at full size."""
        self.page.evaluate(
            """type => {
                const { ds } = app.canvas, node = app.canvas.graph.nodes.find(node => node.type === type);
                ds.scale = 1;
                ds.offset[0] = 150 - node.pos[0];
                ds.offset[1] = 130 - node.pos[1];
                app.canvas.setDirty(true, true);
            }""",
            node_type,
        )
        self.settle()

    def settle(self) -> None:
        """Let the page draw twice, so that elements lie where the canvas is."""
        self.page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")

    @property
    def editor(self) -> Locator:
        """The visible editors."""
        return self.page.locator(".longlive-timeline:visible")

    def prompt(self, row: int) -> Locator:
        return self.editor.locator(".longlive-prompt").nth(row)

    def duration(self, row: int) -> Locator:
        return self.editor.locator(".longlive-asked").nth(row)

    def prompts(self) -> list[str]:
        return [self.prompt(row).input_value() for row in range(self.editor.locator(".longlive-prompt").count())]

    def script(self) -> str:
        """The script that the page would send if the graph were queued now."""
        prompt = self.page.evaluate("async () => (await app.graphToPrompt()).output")
        [script] = [node["inputs"]["script"] for node in prompt.values() if node["class_type"] == "LongLiveTimeline"]
        return script

    def wait_for_script(self, script: str) -> None:
        self.wait_until(lambda: self.script() == script, lambda: f"the script is {self.script()!r}, not {script!r}")

    def wait_until(self, condition: Callable[[], bool], complaint: Callable[[], str]) -> None:
        deadline = time.monotonic() + 6 * PATIENCE_MS / 1000
        while not condition():
            assert time.monotonic() < deadline, complaint()
            self.settle()

    def command(self, name: str) -> None:
        self.page.evaluate("name => app.extensionManager.command.execute(name)", name)

    def select(self, *types: str) -> None:
        self.page.evaluate(
            """types => {
                app.canvas.deselectAll();
                for (const node of app.canvas.graph.nodes) if (types.includes(node.type)) app.canvas.select(node);
            }""",
            list(types),
        )

    def run(self) -> None:
        """Queue the graph from the page and wait for its end."""
        seen = len(self.host.get("/history"))
        self.command("Comfy.QueuePrompt")
        self.wait_until(lambda: len(self.host.get("/history")) > seen, lambda: "the graph has not run")
        [*_, last] = self.host.get("/history").values()
        assert last["status"]["status_str"] == "success", last["status"]

    def find_saved(self, name: str) -> Path:
        return self.host.base / "user" / "default" / "workflows" / f"{name}.json"

    def _hear(self, message: ConsoleMessage) -> None:
        ours = PACK in message.text or PACK in message.location.get("url", "") or "longlive" in message.text.lower()
        if ours and message.type in {"error", "warning"}:
            self.complaints.append(f"{message.type}: {message.text} ({message.location.get('url')})")
