"""The example workflows in the real ComfyUI (laws 3 and 4 of `docs/architecture.md`).

Two results of the host must be equal to the bit. The layers of `longlive` round differently from the host's, so results
of `longlive` alone may differ by `TOLERANCE`.
"""

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import av
import graphs
import pytest
import torch
from graphs import (
    CLASSIC,
    STEPS,
    TOLERANCE,
    WORKFLOWS,
    read_example,
    save_latents,
    to_vae_space,
)
from host_messages import Graph, History
from host_process import PACK, ComfyUI
from host_state import forget, read_latents, remake
from hosts import HOSTS, NEWEST

from longlive.miniature.world import SIZE
from longlive.units import FPS, count_pixel_frames

CHUNK_BLOCKS = 7  # of 5 seconds
SHORT_BLOCKS = 2  # in their place: three chunks still are longer than the window
IN_NO_WORKFLOW = {"LongLiveSessionToLatent"}  # it leads to other nodes; all latents compared here come from it
ONE, CHAIN, TIMELINE, ENDINGS, CONTINUED, TUNED, LIVE, ROLLING = WORKFLOWS
each_workflow = pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
each_short_workflow = pytest.mark.parametrize(  # the tuning takes minutes; test_tuner.py cuts it short
    "workflow", [path for path in WORKFLOWS if path != TUNED], ids=lambda path: path.stem
)


@functools.cache
def compute_directly(workflow: Path, chunk_blocks: int, node_id: str) -> torch.Tensor:
    """Compute the latents of a session of a workflow with `longlive` alone."""
    return to_vae_space(graphs.compute_expected(read_with_chunks_of(workflow, chunk_blocks), node_id))


def read_with_chunks_of(workflow: Path, blocks: int) -> dict:
    """Read an example workflow, shortened unless its chunks have so many blocks as they are."""
    graph = read_example(workflow)
    return graph if blocks == CHUNK_BLOCKS else graphs.shorten(graph, blocks)


@dataclass(frozen=True, slots=True)
class WorkflowResult:
    """What a workflow made: the video file and the latents of each Decode node."""

    chunk_blocks: int
    graph: dict
    history: History
    videos: dict[str, Path]
    latents: dict[str, torch.Tensor]


@pytest.fixture(scope="session")
def run_example(host: ComfyUI) -> Callable[[Path], WorkflowResult]:
    """Run an example workflow once per host, with empty stores and an empty cache; in older hosts a short one."""
    chunk_blocks = CHUNK_BLOCKS if host.host is NEWEST else SHORT_BLOCKS

    @functools.cache
    def run_example(workflow: Path) -> WorkflowResult:
        if workflow == ROLLING and host.host is not NEWEST:
            pytest.skip("test_rolling.py runs its nodes in every host, in half the time")
        graph = read_with_chunks_of(workflow, chunk_blocks)
        sources = graphs.list_decodes(graph)
        for session in sources.values():
            graph = save_latents(graph, session, f"{workflow.stem}_{session}")
        forget(host)
        extra = {"extra_pnginfo": {"workflow": json.loads(workflow.read_text())}}
        answer = host.post("/prompt", {"prompt": graph, "client_id": host.client_id, "extra_data": extra})
        history = host.wait(answer["prompt_id"])
        return WorkflowResult(
            chunk_blocks,
            graph,
            history,
            {id: find_shown_file(host, history, id) for id in sources},
            {id: read_latents(host, f"{workflow.stem}_{session}") for id, session in sources.items()},
        )

    return run_example


def find_shown_file(host: ComfyUI, history: History, node_id: str) -> Path:
    output = history.outputs[node_id]
    [file] = output.get("images") or output["longlive_video"]
    assert file["type"] == "output"
    return host.output / file["subfolder"] / file["filename"]


@each_workflow
def test_interface_format_is_the_api_file(host, workflow):
    converted = graphs.to_api(json.loads(workflow.read_text()), host.object_info())

    assert converted == drop_key(read_example(workflow), "_meta")


def drop_key(graph: Graph, key: str) -> dict:
    return {id: {name: part for name, part in item.items() if name != key} for id, item in graph.items()}


def test_every_node_is_shown_in_a_workflow(host):
    ours = {id for id in host.object_info() if id.startswith("LongLive")}
    shown = {item["type"] for path in WORKFLOWS for item in json.loads(path.read_text())["nodes"]}

    assert ours - shown == IN_NO_WORKFLOW


@each_workflow
def test_workflow_is_a_template_with_a_thumbnail(host, workflow):
    assert workflow.stem in host.get("/workflow_templates")[PACK]
    thumbnail = host.get(f"/api/workflow_templates/{PACK}/{workflow.stem}.jpg")
    assert thumbnail.startswith(b"\xff\xd8")


@each_short_workflow
def test_workflow_ends_in_a_playable_video(run_example, workflow):
    result = run_example(workflow)

    for id, path in result.videos.items():
        with av.open(path) as file:
            stream = file.streams.video[0]
            assert (stream.codec_context.name, stream.average_rate) == ("h264", FPS)
            assert (stream.width, stream.height) == (SIZE, SIZE)
            prompt = json.loads(file.metadata["prompt"])  # where the host has noted the fingerprints
            assert drop_key(prompt, "is_changed") == result.graph
            assert json.loads(file.metadata["workflow"]) == json.loads(workflow.read_text())
            assert sum(1 for _ in file.decode(stream)) == count_pixel_frames(result.latents[id].shape[2])


@each_short_workflow
def test_workflow_makes_what_longlive_makes_alone(run_example, workflow):
    result = run_example(workflow)

    for id, session in graphs.list_decodes(result.graph).items():
        expected = compute_directly(workflow, result.chunk_blocks, session)
        torch.testing.assert_close(result.latents[id], expected, rtol=0, atol=TOLERANCE)


@each_short_workflow
def test_every_denoising_pass_shows_a_preview(run_example, workflow):
    result = run_example(workflow)

    assert len(result.history.previews) == count_passes(workflow, result.chunk_blocks)
    assert all(image.startswith(b"\xff\xd8") for image in result.history.previews)


def count_passes(workflow: Path, chunk_blocks: int) -> int:
    """Count the denoising passes that are shown. A rolling video begins and ends with 4 more."""
    if workflow == ROLLING:
        return 4 + 2 * chunk_blocks + 4
    chunks = {ONE: 1, CHAIN: 3, TIMELINE: 3, ENDINGS: 3, LIVE: 0}  # a film grows in place of its previews
    return STEPS * (6 + 6 if workflow == CONTINUED else chunk_blocks * chunks[workflow])


def test_law_3_timeline_is_the_chain(run_example):
    [chain], [timeline] = run_example(CHAIN).latents.values(), run_example(TIMELINE).latents.values()

    assert torch.equal(chain, timeline)


def test_law_4_each_of_two_endings_is_as_if_made_alone(host, run_example):
    graph, both = run_example(ENDINGS).graph, run_example(ENDINGS).latents
    assert not torch.equal(*both.values())

    for decode, session in reversed(graphs.list_decodes(graph).items()):
        alone = {id: item for id, item in graph.items() if item["class_type"] != "LongLiveDecode" and "ed_" not in id}
        assert torch.equal(
            remake(host, save_latents(alone, session, f"alone_{session}"), f"alone_{session}"), both[decode]
        )


@pytest.mark.parametrize(
    "start", [(host,) for host in HOSTS] + [(NEWEST, *CLASSIC)], ids=lambda s: "".join((s[0].version, *s[1:2]))
)
def test_law_4_a_new_last_prompt_runs_only_the_last_nodes(boot, start):
    host = boot(*start)
    chained, written = (graphs.shorten(read_example(workflow)) for workflow in (CHAIN, TIMELINE))
    host.run(chained)
    chained["7"]["inputs"]["text"] = "a green ring stays still by day"
    again = host.run(chained)
    host.run(written)
    written["6"]["inputs"]["script"] = written["6"]["inputs"]["script"].replace("blue square", "green ring")
    rewritten = host.run(written)

    assert set(again.executed) == {"7", "12", "13", "14"}
    assert set(rewritten.executed) == {"6", "7"}
    previews = 0 if "none" in start else STEPS
    assert (len(again.previews), len(rewritten.previews)) == (previews, previews)
