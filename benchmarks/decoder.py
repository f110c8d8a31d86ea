"""Compare the VAE on a CPU: PyTorch's own convolutions with oneDNN's, ComfyUI's VAE with ours inside ComfyUI.

python benchmarks/decoder.py [times]
python benchmarks/decoder.py host

One thread, float32, the two in turn. Of convolutions (`longlive/model/convolution.py`): a block of the miniature's VAE,
the demo, workflow 3 in a real ComfyUI. With `host`: 25 pixel frames at the released width with random weights (48 x 32
and 96 x 64) and with the miniature's VAE (64 x 64), through ComfyUI's decode and encode and through ours over the same
weights.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "host")]

from host_process import ComfyUI  # noqa: E402
from hosts import NEWEST  # noqa: E402
from inside import call_inside  # noqa: E402

from longlive.config import RolloutConfig  # noqa: E402
from longlive.miniature.files import VAE  # noqa: E402
from longlive.miniature.world import SIZE  # noqa: E402
from longlive.model.vae import LATENT_CHANNELS  # noqa: E402
from longlive.model.vae_streams import StreamingDecoder  # noqa: E402
from longlive.units import PIXELS_PER_CELL  # noqa: E402
from longlive.weights.load_vae import load_vae  # noqa: E402

WORKFLOW = ROOT / "workflows" / "api" / "3_three_prompts_timeline.json"
# Without oneDNN by what it says of itself, our code leaves convolutions to PyTorch, which takes its own choice.
PLAIN = "import torch; torch.backends.mkldnn.is_available = lambda: False\n"
HOST_SIZES = {
    "width 96, 48 x 32": "measure_small",
    "width 96, 96 x 64": "measure_larger",
    "miniature, 64 x 64": "measure_miniature",
}
DEMO = "from longlive.cli.main import main; raise SystemExit(main(['demo', '-o', {path!r}]))"


def measure_block(is_plain: bool) -> float:
    """Measure the processor seconds of a block in the middle of a video."""
    available = torch.backends.mkldnn.is_available
    if is_plain:
        torch.backends.mkldnn.is_available = lambda: False
    try:
        decoder = StreamingDecoder(load_vae(VAE, device="cpu", dtype=torch.float32))
        side = SIZE // PIXELS_PER_CELL
        block_BFCHW = torch.randn(1, RolloutConfig().block, LATENT_CHANNELS, side, side)
        decoder.push(block_BFCHW)
        began = time.process_time()
        decoder.push(block_BFCHW)
        return time.process_time() - began
    finally:
        torch.backends.mkldnn.is_available = available


def measure_demo(is_plain: bool) -> float:
    """Measure the processor seconds of `longlive demo`, imports included."""
    with tempfile.TemporaryDirectory() as folder:
        code = (PLAIN if is_plain else "") + DEMO.format(path=f"{folder}/demo.mp4")
        began = os.times()
        subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, stderr=subprocess.DEVNULL)  # noqa: S603
        ended = os.times()
    return ended.children_user + ended.children_system - began.children_user - began.children_system


def measure_workflow(is_plain: bool) -> float:
    """Measure the seconds of workflow 3 in the newest ComfyUI, from its queue to its end, with empty stores."""
    graph = json.loads(WORKFLOW.read_text())
    with ComfyUI() as host:
        if is_plain:
            pack = host.base / "custom_nodes" / "plain_convolutions"
            pack.mkdir()
            (pack / "__init__.py").write_text(PLAIN + "NODE_CLASS_MAPPINGS = {}\n")
            host.stop()
            host.start()
        host.run(graph)  # loads everything
        shutil.rmtree(host.base / "user" / "longlive")
        host.free()
        began = time.perf_counter()
        host.run(graph)
        return time.perf_counter() - began


def compare(name: str, measure: Callable[[bool], float], times: int) -> None:
    pairs = [(measure(True), measure(False)) for _ in range(times)]
    plain, ours = (statistics.median(each) for each in zip(*pairs, strict=True))
    ratio = statistics.median(fast / slow for slow, fast in pairs)
    sys.stdout.write(f"| {name} | {plain:.2f} | {ours:.2f} | {ratio:.2f} |\n")
    sys.stdout.flush()


def compare_with_host() -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    sys.stdout.write("| 25 pixel frames | ComfyUI's, s | ours, s | ratio |\n|---|---|---|---|\n")
    for name, measure in HOST_SIZES.items():
        [halves] = call_inside(NEWEST, "vae_speed", measure)
        for half, seconds in zip(("decode", "encode"), halves, strict=True):
            theirs, ours = (statistics.median(each) for each in zip(*seconds, strict=True))
            ratios = [b / a for a, b in seconds]
            ratio = f"{statistics.median(ratios):.2f} [{min(ratios):.2f}-{max(ratios):.2f}]"
            sys.stdout.write(f"| {half}, {name} | {theirs:.2f} | {ours:.2f} | {ratio} |\n")
        sys.stdout.flush()


def main(times: int) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    sys.stdout.write("| seconds | PyTorch's choice | oneDNN | ratio |\n|---|---|---|---|\n")
    compare("decode of a block, 12 pixel frames", measure_block, 3 * times)
    compare("`longlive demo`", measure_demo, times)
    compare("workflow 3 in ComfyUI", measure_workflow, times)


if __name__ == "__main__":
    if sys.argv[1:] == ["host"]:
        compare_with_host()
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
