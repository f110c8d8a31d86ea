"""The laws of sessions in the real ComfyUI, on short chains of nodes (laws 3 and 7 of `docs/architecture.md`)."""

import json

import model_files
import pytest
import torch
from graphs import (
    CLASSIC,
    FOX,
    OWL,
    SLEEP,
    STEPS,
    TOLERANCE,
    WORKFLOWS,
    chain,
    chunk,
    compute_expected,
    make_node,
    read_example,
    save_latents,
    shorten,
    to_vae_space,
)
from host_messages import HostError, Interrupted
from host_state import count_alive, count_stored, forget, is_nothing_alive, read_latents, remake, wait_for_previews
from hosts import NEWEST
from patience import wait_until

from longlive.miniature.files import DIT, load_miniature
from longlive.miniature.world import SIZE


def test_law_3_one_long_chunk_is_three_short_ones(host):
    together = chain((FOX, 7), seed=5, name="chunks")
    together["chunk0"] = chunk("session", 5.25, "seconds")
    apart = chain((FOX, 2), seed=5) | {"more": chunk("chunk0", 2), "rest": chunk("more", 9, "frames")}

    assert torch.equal(remake(host, together, "chunks"), remake(host, save_latents(apart, "rest", "chunks"), "chunks"))


def test_law_3_a_blend_over_two_chunks_under_a_new_seed_is_a_line_of_a_timeline(host):
    """Its first block is in one node and the others in the next, where the KV cache is cold."""
    blend = {"boundary": "blend", "blend_blocks": 3, "curve": "spherical", "new_seed": 2**64 - 1}
    chunks = chain((FOX, 2), (OWL, 1), seed=9)
    chunks["switch1"]["inputs"] |= blend
    chunks |= {"pause": make_node("TestUnload", value=["chunk1", 0]), "rest": chunk("pause", 3)}
    script = f"2b | {FOX}\n4b blend 3b spherical seed {2**64 - 1} | {OWL}"
    whole = chain((FOX, 1), seed=9)
    whole["chunk0"] = make_node("LongLiveTimeline", session=["session", 0], clip=["clip", 0], script=script)

    made = remake(host, save_latents(chunks, "rest", "blend"), "blend")
    assert torch.equal(made, remake(host, save_latents(whole, "chunk0", "blend"), "blend"))
    expected = to_vae_space(compute_expected(whole, "chunk0", host.models))
    torch.testing.assert_close(made, expected, rtol=0, atol=TOLERANCE)


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


def test_law_3_a_killed_host_resumes_where_it_was(newest):
    """That older hosts find their blocks after a restart is tested in test_fragments.py."""
    forget(newest)
    newest.queue(make_long_video("killed"))
    wait_until(lambda: count_stored(newest), newest.pid, "the first block in the store")
    newest.kill()
    finished = count_stored(newest)
    newest.start()

    assert 0 < finished < LONG
    resumed = newest.run(make_long_video("killed"))
    assert len(resumed.previews) == STEPS * (LONG - finished)
    assert torch.equal(read_latents(newest, "killed"), remake(newest, make_long_video("whole"), "whole"))


def test_law_7_free_leaves_nothing(host):
    graph = shorten(read_example(WORKFLOWS[0])) | {"probe": make_node("TestProbe", value=["8", 0])}
    before = json.loads(host.run(graph).text("probe"))
    host.free()
    after = count_alive(host)

    assert (before["caches"], after["caches"], after["warm"]) == (0, 0, 0)
    assert before["warm"] == load_miniature().model.geometry.num_layers
    weights = DIT.stat().st_size
    assert before["tensor_bytes"] > weights > 20 * after["tensor_bytes"]


def test_law_7_a_failing_node_leaves_the_host_usable(host):
    graph = chain((FOX, 1), seed=9)
    after = graph | {"fail": make_node("TestFail", value=["chunk0", 0], fail=True), "more": chunk("fail", 1)}
    within = chain((FOX, 2), seed=10, name="within")
    within["attention"] = make_node("TestAttention", model=["model", 0], fail_at=30)  # of 40: in the second block
    within["session"]["inputs"]["model"] = ["attention", 0]

    with pytest.raises(HostError, match="TestFail was told"):
        host.run(save_latents(after, "more", "after"))
    assert count_alive(host)["caches"] == 0
    with pytest.raises(HostError, match="TestAttention was told"):
        host.run(within)
    assert is_nothing_alive(host)
    host.run(chain((FOX, 2), seed=10, name="usable"))
    assert torch.equal(read_latents(host, "usable"), remake(host, chain((FOX, 2), seed=10, name="anew"), "anew"))


def test_a_video_beyond_the_position_table_is_refused_with_the_cure(host):
    options = {"block": 64, "window": 128, "sink": 0, "steps": "1000"}
    graph = chain((FOX, 16), seed=11, width=16, height=16, options=options) | {"more": chunk("chunk0", 1)}

    with pytest.raises(HostError, match=r"reach frame 1088 .* end at frame 1024 .*unbounded"):
        host.run(save_latents(graph, "more", "past_the_end"))
    assert count_alive(host)["caches"] == 0


def test_attention_of_the_model_is_used(host):
    graph = chain((FOX, 1), seed=12, name="attended")
    graph["attention"] = make_node("TestAttention", model=["model", 0], fail_at=0)
    graph["session"]["inputs"]["model"] = ["attention", 0]
    forget(host)
    host.run(graph)

    assert count_alive(host)["attention_calls"] == 2 * model_files.GEOMETRY.num_layers * STEPS
