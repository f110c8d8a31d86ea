"""Directs a film in each renderer of each front end, with and without MediaSource, and writes a picture of each stage.

    python tests/browser/tour.py FOLDER

In mid-film every tour reloads the page and opens a second one. It takes about five minutes.
"""

import itertools
import logging
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "host"))

from desk import Desk
from directing import Panel, direct_a_film, open_live
from frontends import NEWEST_ROOT
from host_process import ComfyUI
from hosts import NEWEST
from playwright.sync_api import Browser, sync_playwright

log = logging.getLogger(__name__)

QUIET = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking".split()
RELOADED = "3 a cut"  # the stage after which the page is loaded again
FRONT_ENDS = {"pinned": (), "newest": ("--front-end-root", str(NEWEST_ROOT))}


def visit(host: ComfyUI, browser: Browser, folder: Path, *, is_vue: bool) -> None:
    """Direct a film on one host in one renderer."""
    host.post("/settings/Comfy.TutorialCompleted", True)
    host.post("/settings/Comfy.VueNodes.Enabled", is_vue)
    context = browser.new_context(viewport={"width": 1100, "height": 1000})
    desk = Desk(context.new_page(), host, is_vue=is_vue)
    desk.open()
    folder.mkdir(parents=True, exist_ok=True)

    def look(stage: str) -> None:
        desk.page.screenshot(path=folder / f"{stage}.png")
        log.info("%s: %s", folder.name, stage)
        if stage == RELOADED:
            look_again(desk, folder)

    state = direct_a_film(open_live(desk), look)
    log.info("%s", state["script"])
    assert desk.complaints == [], desk.complaints
    context.close()


def look_again(desk: Desk, folder: Path) -> None:
    """Reload the page and open a second one, in the middle of a film."""
    desk.open()
    panel = Panel(desk)
    panel.wait_until_seen(0.1)
    desk.page.screenshot(path=folder / "3a reloaded.png")
    second = Panel(desk, desk.page.context.new_page())
    second.page.goto(desk.host.address)
    second.wait_until_seen(0.1)
    second.page.screenshot(path=folder / "3b a second page.png")
    second.page.close()


def main(folder: Path) -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=QUIET)
        for (name, flags), media_source in itertools.product(FRONT_ENDS.items(), (False, True)):
            with tempfile.TemporaryDirectory() as base:
                with ComfyUI(NEWEST, Path(base), flags=flags, media_source=media_source) as host:
                    for is_vue in (False, True):
                        renderer = "nodes 2.0" if is_vue else "classic"
                        source = "media source" if media_source else "file"
                        visit(host, browser, folder / f"{name}, {renderer}, {source}", is_vue=is_vue)
        browser.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
