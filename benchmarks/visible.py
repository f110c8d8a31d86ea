"""How soon a block is on the screen: from its decoded frames to its first frame in the panel of LongLive Live.

python benchmarks/visible.py [blocks]

A real ComfyUI and chromium on this machine, the miniature at 64 x 64. The page plays eight times as fast, so that it
waits for every block. Each way of playing a film is measured: MediaSource, and loading the growing file again.
"""

import json
import shutil
import statistics
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), *(str(ROOT / "tests" / name) for name in ("", "host", "browser"))]

from desk import Desk  # noqa: E402
from directing import RED, Panel, open_live  # noqa: E402
from host_process import ComfyUI  # noqa: E402
from hosts import NEWEST  # noqa: E402

QUIET = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking".split()
RATE = 8  # of playing
FIRST = 2  # blocks that are left out: at the beginning the page has yet to load its player

# A pack of custom nodes that writes down when each block of a film was decoded.
CLOCK = """
import json, sys, time
from pathlib import Path

def listen():
    for name, module in list(sys.modules.items()):
        if name.endswith("longlive.video.render") and not hasattr(module.VideoRenderer, "is_timed"):
            decode = module.VideoRenderer._decode
            def timed(self, latents_BFCHW, decode=decode):
                frames_FHWC = decode(self, latents_BFCHW)
                with Path(__file__).with_name("times.jsonl").open("a") as file:
                    file.write(json.dumps([self.writer.num_frames, time.time()]) + "\\n")
                return frames_FHWC
            module.VideoRenderer._decode, module.VideoRenderer.is_timed = timed, True

import threading
def wait():
    while not any(hasattr(module.VideoRenderer, "is_timed") for name, module in list(sys.modules.items())
                  if name.endswith("longlive.video.render")):
        listen()
        time.sleep(0.1)
threading.Thread(target=wait, daemon=True).start()
NODE_CLASS_MAPPINGS = {}
"""

# Write down the time of every frame that the page shows, and where in the film it is.
WATCH = """rate => {
    window.shown = [];
    setInterval(() => {
        for (const video of document.querySelectorAll(".longlive-live video")) {
            video.playbackRate = rate;
            if (video.isTimed) continue;
            video.isTimed = true;
            const see = (now, { mediaTime }) => {
                window.shown.push([mediaTime, (performance.timeOrigin + performance.now()) / 1000]);
                video.requestVideoFrameCallback(see);
            };
            video.requestVideoFrameCallback(see);
        }
    }, 20);
}"""


def measure(folder: Path, blocks: int, *, media_source: bool) -> list[float]:
    """Direct a film of so many blocks; return for each the milliseconds until it was seen."""
    clock = folder / "custom_nodes" / "clock"
    clock.mkdir(parents=True)
    (clock / "__init__.py").write_text(CLOCK)
    with ComfyUI(NEWEST, folder, media_source=media_source) as host, sync_playwright() as playwright:
        host.post("/settings/Comfy.TutorialCompleted", True)
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=QUIET)
        desk = Desk(browser.new_page(viewport={"width": 1100, "height": 1000}), host, is_vue=False)
        desk.open()
        panel = open_live(desk)
        desk.page.evaluate(WATCH, RATE)
        panel.say(RED)
        panel.wait_for_blocks(blocks)
        wait_until_seen(panel, panel.state["pieces"][blocks - 1][2] / 16)
        shown = desk.page.evaluate("() => window.shown")
        panel.press("stop")
        panel.wait_for(lambda state: state["status"] == "stopped")
        browser.close()
    return list(match((clock / "times.jsonl").read_text(), shown))[FIRST:]


def wait_until_seen(panel: Panel, seconds: float) -> None:
    panel.page.wait_for_function("seconds => window.shown.some(([at]) => at >= seconds - 0.01)", arg=seconds)


def match(times: str, shown: list[tuple[float, float]]):
    """Yield for each decoded block the milliseconds until one of its frames was seen."""
    for first_frame, decoded in map(json.loads, times.splitlines()):
        seen = [now for at, now in shown if at >= first_frame / 16 - 0.01 and now > decoded]
        if seen:
            yield 1000 * (min(seen) - decoded)


def main(blocks: int) -> None:
    for media_source in (True, False):
        with tempfile.TemporaryDirectory() as folder:
            delays = measure(Path(folder), blocks, media_source=media_source)
        way = "MediaSource" if media_source else "the file again"
        median, low, high = statistics.median(delays), min(delays), max(delays)
        sys.stdout.write(f"{way}: median {median:.0f} ms ({low:.0f}-{high:.0f}), {len(delays)} blocks\n")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 24)
