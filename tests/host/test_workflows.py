"""The example workflows and the laws of the sessions, in the real ComfyUI (laws 3, 4 and 7 of `docs/architecture.md`).

Equal means equal to the bit wherever both sides were made inside the host. `longlive` alone rounds as its own layers
do, which differ from the host's: there 1e-4 is allowed.
"""

import functools
import itertools
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import av
import graphs
import model_files
import pytest
import torch
from graphs import WORKFLOWS, chain, chunk, node, read_example, save_latents
from host_messages import Graph, History, HostError, Interrupted
from host_process import PACK, ComfyUI
from hosts import HOSTS, NEWEST
from patience import wait_until
from safetensors.torch import load_file, save_file

from longlive.config import RolloutConfig
from longlive.miniature.files import DIT, load_miniature
from longlive.miniature.world import SIZE
from longlive.model.vae import denormalise
from longlive.session.session import Session
from longlive.units import FPS, count_pixel_frames
from longlive.weights.lora import Lora

TOLERANCE = 1e-4
STEPS = len(RolloutConfig().steps)
CHUNK_BLOCKS = 7  # of 5 seconds
IN_NO_WORKFLOW = {"LongLiveSessionToLatent"}  # a door to other nodes; every latent these tests compare went through it
CLASSIC = ("--cache-classic", "--preview-method", "none")
ONE, CHAIN, TIMELINE, ENDINGS, CONTINUED, TUNED = WORKFLOWS
FOX, OWL, SLEEP = "a red fox in the snow", "a red fox meets an owl in the snow", "the red fox in the snow sleeps"

each_workflow = pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
each_short_workflow = pytest.mark.parametrize(  # the tuning takes minutes; test_tuner.py cuts it short
    "workflow", [path for path in WORKFLOWS if path != TUNED], ids=lambda path: path.stem
)


def find_store(host: ComfyUI) -> Path:
    return host.base / "user" / "longlive" / "blocks"


def count_stored(host: ComfyUI) -> int:
    """How many blocks the store holds."""
    return sum(1 for _ in find_store(host).glob("??/*.safetensors"))


def forget(host: ComfyUI) -> None:
    """Leave no finished work to be found again, neither in the stores nor in the host's cache."""
    shutil.rmtree(find_store(host).parent, ignore_errors=True)
    host.free()


def read_latents(host: ComfyUI, name: str) -> torch.Tensor:
    return load_file(host.output / f"{name}.safetensors")["samples"]


def remake(host: ComfyUI, graph: Graph, name: str) -> torch.Tensor:
    """The latents a graph saves as `name`, made with nothing to fall back on."""
    forget(host)
    (host.output / f"{name}.safetensors").unlink(missing_ok=True)
    assert host.run(graph).previews
    return read_latents(host, name)


def count_alive(host: ComfyUI) -> dict[str, int]:
    return json.loads(host.run({"probe": node("TestProbe")}).text("probe"))


def is_nothing_alive(host: ComfyUI) -> bool:
    """Whether no keys or values are alive, warm ones included."""
    counts = count_alive(host)
    return (counts["caches"], counts["warm"]) == (0, 0)


def to_vae_space(session: Session) -> torch.Tensor:
    return denormalise(session.latents()).transpose(1, 2)


@functools.cache
def compute_directly(workflow: Path, node_id: str) -> torch.Tensor:
    """The latents of a session of a workflow by `longlive` alone."""
    return to_vae_space(graphs.compute_expected(read_example(workflow), node_id))


@dataclass(frozen=True, slots=True)
class Made:
    """What a workflow came to: of each Decode node its video file and its latents."""

    graph: dict
    history: History
    videos: dict[str, Path]
    latents: dict[str, torch.Tensor]


@pytest.fixture(scope="session")
def made(host: ComfyUI) -> Callable[[Path], Made]:
    """Run an example workflow once a host, with nothing to fall back on."""

    @functools.cache
    def made(workflow: Path) -> Made:
        graph = read_example(workflow)
        sources = graphs.list_decodes(graph)
        for session in sources.values():
            graph = save_latents(graph, session, f"{workflow.stem}_{session}")
        forget(host)
        extra = {"extra_pnginfo": {"workflow": json.loads(workflow.read_text())}}
        answer = host.post("/prompt", {"prompt": graph, "client_id": host.client_id, "extra_data": extra})
        history = host.wait(answer["prompt_id"])
        return Made(
            graph,
            history,
            {id: find_shown_file(host, history, id) for id in sources},
            {id: read_latents(host, f"{workflow.stem}_{session}") for id, session in sources.items()},
        )

    return made


def find_shown_file(host: ComfyUI, history: History, node_id: str) -> Path:
    [file] = history.outputs[node_id]["images"]
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
def test_workflow_ends_in_a_playable_video(made, workflow):
    result = made(workflow)

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
def test_workflow_makes_what_longlive_makes_alone(made, workflow):
    result = made(workflow)

    for id, session in graphs.list_decodes(result.graph).items():
        torch.testing.assert_close(result.latents[id], compute_directly(workflow, session), rtol=0, atol=TOLERANCE)


@each_short_workflow
def test_every_denoising_step_shows_a_preview(made, workflow):
    history = made(workflow).history

    assert len(history.previews) == STEPS * count_blocks_made(workflow)
    assert all(image.startswith(b"\xff\xd8") for image in history.previews)


def count_blocks_made(workflow: Path) -> int:
    chunks = {ONE: 1, CHAIN: 3, TIMELINE: 3, ENDINGS: 3}
    return 6 + 6 if workflow == CONTINUED else CHUNK_BLOCKS * chunks[workflow]


def test_law_3_timeline_is_the_chain(made):
    [chain], [timeline] = made(CHAIN).latents.values(), made(TIMELINE).latents.values()

    assert torch.equal(chain, timeline)


def test_law_3_one_long_chunk_is_three_short_ones(host):
    together = chain((FOX, 7), seed=5, name="chunks")
    together["chunk0"] = chunk("session", 5.25, "seconds")
    apart = chain((FOX, 2), seed=5) | {"more": chunk("chunk0", 2), "rest": chunk("more", 9, "frames")}

    assert torch.equal(remake(host, together, "chunks"), remake(host, save_latents(apart, "rest", "chunks"), "chunks"))


def test_law_4_each_of_two_endings_is_as_if_made_alone(host, made):
    graph, both = made(ENDINGS).graph, made(ENDINGS).latents
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


def test_a_host_without_a_cache_denoises_no_block_twice(boot):
    host = boot(NEWEST, "--cache-none")
    host.run(chain((FOX, 2), (OWL, 2), (SLEEP, 1), seed=6, name="last"))
    again = host.run(chain((FOX, 2), (OWL, 2), (FOX, 1), seed=6, name="last"))
    cacheless = read_latents(host, "last")

    assert {"model", "session", "chunk0", "chunk1", "chunk2"} <= set(again.executed)
    assert len(again.previews) == STEPS
    assert torch.equal(remake(host, chain((FOX, 2), (OWL, 2), (FOX, 1), seed=6, name="last"), "last"), cacheless)


def test_without_a_previewer_the_video_is_made_all_the_same(boot):
    history = boot(NEWEST, *CLASSIC).run(chain((FOX, 2), seed=7, name="unseen"))

    assert history.previews == ()
    assert history.text("saved_chunk0") == "(1, 16, 6, 4, 4) torch.float32"


LONG = 12  # blocks: long enough to be met in the middle


def make_long_video(name: str) -> dict:
    return chain((FOX, LONG), seed=8, width=SIZE, height=SIZE, name=name)


def wait_for_previews(host: ComfyUI, prompt_id: str, count: int) -> None:
    """Wait for so many previews of a prompt."""
    seen = itertools.count(1)
    host.wait_for(
        lambda event: event.type == "preview" and event.data.get("prompt_id") == prompt_id and next(seen) == count
    )


def test_law_3_an_interrupted_video_resumes_where_it_was(host):
    forget(host)
    prompt_id = host.queue(make_long_video("interrupted"))
    wait_for_previews(host, prompt_id, STEPS + 2)
    host.interrupt()
    with pytest.raises(Interrupted, match="LongLiveChunkSampler"):
        host.wait(prompt_id)
    finished = count_stored(host)

    assert is_nothing_alive(host)
    assert 0 < finished < LONG
    resumed = host.run(make_long_video("interrupted"))
    assert len(resumed.previews) == STEPS * (LONG - finished)
    assert torch.equal(read_latents(host, "interrupted"), remake(host, make_long_video("whole"), "whole"))


def test_law_3_a_killed_host_resumes_where_it_was(host):
    forget(host)
    host.queue(make_long_video("killed"))
    wait_until(lambda: count_stored(host), host.pid, "the first block in the store")
    host.kill()
    finished = count_stored(host)
    host.start()

    assert 0 < finished < LONG
    resumed = host.run(make_long_video("killed"))
    assert len(resumed.previews) == STEPS * (LONG - finished)
    assert torch.equal(read_latents(host, "killed"), remake(host, make_long_video("whole"), "whole"))


def test_law_7_free_leaves_nothing(host):
    graph = read_example(ONE) | {"probe": node("TestProbe", value=["8", 0])}
    before = json.loads(host.run(graph).text("probe"))
    host.free()
    after = count_alive(host)

    assert (before["caches"], after["caches"], after["warm"]) == (0, 0, 0)
    assert before["warm"] == load_miniature().model.geometry.num_layers
    weights = DIT.stat().st_size
    assert before["tensor_bytes"] > weights > 20 * after["tensor_bytes"]


def test_law_7_a_failing_node_leaves_the_host_usable(host):
    graph = chain((FOX, 1), seed=9)
    after = graph | {"fail": node("TestFail", value=["chunk0", 0], fail=True), "more": chunk("fail", 1)}
    within = chain((FOX, 2), seed=10, name="within")
    within["attention"] = node("TestAttention", model=["model", 0], fail_at=30)  # of 40: in the second block
    within["session"]["inputs"]["model"] = ["attention", 0]

    with pytest.raises(HostError, match="TestFail was told"):
        host.run(save_latents(after, "more", "after"))
    assert count_alive(host)["caches"] == 0
    with pytest.raises(HostError, match="TestAttention was told"):
        host.run(within)
    assert is_nothing_alive(host)
    host.run(chain((FOX, 2), seed=10, name="usable"))
    assert torch.equal(read_latents(host, "usable"), remake(host, chain((FOX, 2), seed=10, name="anew"), "anew"))


def test_the_end_of_the_position_table_is_told_with_its_cure(host):
    options = {"block": 64, "window": 128, "sink": 0, "steps": "1000"}
    graph = chain((FOX, 16), seed=11, width=16, height=16, options=options) | {"more": chunk("chunk0", 1)}

    with pytest.raises(HostError, match=r"reach frame 1088 .* end at frame 1024 .*unbounded"):
        host.run(save_latents(graph, "more", "past_the_end"))
    assert count_alive(host)["caches"] == 0


def test_attention_of_the_model_is_used(host):
    graph = chain((FOX, 1), seed=12, name="attended")
    graph["attention"] = node("TestAttention", model=["model", 0], fail_at=0)
    graph["session"]["inputs"]["model"] = ["attention", 0]
    forget(host)
    host.run(graph)

    assert count_alive(host)["attention_calls"] == 2 * model_files.GEOMETRY.num_layers * STEPS


def use_our_loader(graph: Graph, **inputs) -> dict:
    loader = {
        "model_name": model_files.ORIGINAL_DIT.name,
        "lora_name": "none",
        "lora_strength": 1.0,
        "weight_dtype": "default",
    }
    return {**graph, "model": node("LongLiveModelLoader", **loader | inputs)}


def add_stock_lora(host: ComfyUI, graph: Graph) -> dict:
    name = "comfy_named_lora.safetensors"
    save_file(Lora.read(host.models / model_files.LORA).as_comfy_state(), host.models / "loras" / name)
    loader = node("LoraLoaderModelOnly", model=["base", 0], lora_name=name, strength_model=0.75)
    return {**graph, "base": graph["model"], "model": loader}


def test_our_loader_gives_the_model_of_the_stock_loader(host):
    graph = chain((FOX, 2), (OWL, 1), seed=13, name="loaded")

    assert torch.equal(remake(host, graph, "loaded"), remake(host, use_our_loader(graph), "loaded"))


def test_lora_is_merged_as_longlive_merges_it(host):
    plain = chain((FOX, 2), (OWL, 1), seed=13, name="adapted")
    ours = use_our_loader(plain, lora_name=model_files.ORIGINAL_LORA.name, lora_strength=0.75)
    merged, patched = (remake(host, graph, "adapted") for graph in (ours, add_stock_lora(host, plain)))

    assert (merged - remake(host, plain, "adapted")).abs().max() > 1000 * TOLERANCE
    direct = to_vae_space(graphs.compute_expected(ours, "chunk1", host.models))
    torch.testing.assert_close(merged, direct, rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(merged, patched, rtol=0, atol=TOLERANCE)


def load_saved(name: str, graph: Graph) -> dict:
    return {"model": graph["model"], "load": node("LongLiveLoadSession", model=["model", 0], name=name)}


def test_law_3_a_session_is_continued_as_if_never_saved(host):
    video = chain((FOX, 5), seed=14) | {"save": node("LongLiveSaveSession", session=["chunk0", 0], name="five")}
    more = save_latents(use_our_loader(load_saved("five", video)) | {"more": chunk("load", 2)}, "more", "continued")
    forget(host)
    host.run(video)
    continued = remake(host, more, "continued")

    assert torch.equal(continued, remake(host, chain((FOX, 7), seed=14, name="seven"), "seven"))


def test_a_model_is_known_again_while_a_lora_lies_on_its_weights(host):
    video = chain((FOX, 1), seed=17) | {"save": node("LongLiveSaveSession", session=["chunk0", 0], name="known")}
    forget(host)
    host.run(add_stock_lora(host, sample_in_host()))  # the network stays in memory, its weights patched
    host.run(video)
    host.free()

    host.run(save_latents(load_saved("known", video), "load", "known"))
    assert read_latents(host, "known").shape[2] == 3


def sample_in_host() -> dict:
    graph = chain((FOX, 1), seed=17)
    wires = {"model": ["model", 0], "positive": ["text0", 0], "negative": ["text0", 0], "latent_image": ["empty", 0]}
    settings = {"steps": 1, "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}
    return {
        **{id: graph[id] for id in ("model", "clip", "text0")},
        "empty": node("EmptyHunyuanLatentVideo", width=32, height=32, length=9, batch_size=1),
        "sample": node("KSampler", seed=1, **settings, **wires),
        "end": node("TestProbe", value=["sample", 0]),
    }


def test_a_session_saved_anew_is_read_anew(host):
    for blocks in (1, 2):
        video = chain((FOX, blocks), seed=16) | {
            "save": node("LongLiveSaveSession", session=["chunk0", 0], name="anew")
        }
        host.run(video)
        host.run(save_latents(load_saved("anew", video), "load", "read"))
        assert read_latents(host, "read").shape[2] == 3 * blocks


def test_a_session_is_not_continued_with_another_model(host):
    graph = chain((FOX, 1), seed=15) | {"save": node("LongLiveSaveSession", session=["chunk0", 0], name="plain")}
    adapted = add_stock_lora(host, graph)
    adapted["save"] = node("LongLiveSaveSession", session=["chunk0", 0], name="adapted")
    host.run(graph)
    host.run(adapted)

    for name, model in (("plain", adapted), ("adapted", graph)):
        other = {**model, **load_saved(name, model)}
        other = {id: other[id] for id in ("base", "model", "load") if id in other}
        with pytest.raises(HostError, match=f"session {name} was made with other weights"):
            host.run(save_latents(other, "load", "refused"))
