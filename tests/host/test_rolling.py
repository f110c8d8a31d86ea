"""Rolling Forcing in the real ComfyUI: blocks in flight go from node to node and into files (laws 3 and 4)."""

import shutil

import av
import model_files
import torch
from graphs import (
    FOX,
    OWL,
    SLEEP,
    TOLERANCE,
    chain,
    chunk,
    compute_expected,
    list_options,
    make_node,
    save_latents,
    switch,
    to_vae_space,
)
from host_state import forget, read_latents, read_refusal
from short_graphs import change_inputs, end_graph

from longlive.config import RolloutConfig
from longlive.units import count_pixel_frames

ROLLING = list_options(RolloutConfig.roll())
IN_FLIGHT = 4


def make_endings() -> dict:
    """A fox in two blocks, then two endings of four blocks, both with an end; the first one as a script, too."""
    graph = chain((FOX, 2), (OWL, 4), seed=41, options=ROLLING)
    graph |= {
        "kept": make_node("LongLiveSaveSession", session=["chunk0", 0], name="in_flight"),
        "owl": make_node("LongLiveFinish", session=["chunk1", 0]),
        "text2": make_node("CLIPTextEncode", clip=["clip", 0], text=SLEEP),
        "switch2": switch("chunk0", "text2"),
        "chunk2": chunk("switch2", 4),
        "sleep": make_node("LongLiveFinish", session=["chunk2", 0]),
        "again": make_node("LongLiveFinish", session=["sleep", 0]),
        "timeline": make_node(
            "LongLiveTimeline",
            session=["session", 0],
            clip=["clip", 0],
            script=f"2b | {FOX}\n{4 + IN_FLIGHT}b | {OWL}",
        ),
        "vae": make_node("VAELoader", vae_name=model_files.VAE.name),
        "film": make_node("LongLiveDecode", session=["chunk1", 0], vae=["vae", 0], filename_prefix="rolling"),
        "whole_film": make_node("LongLiveDecode", session=["owl", 0], vae=["vae", 0], filename_prefix="rolling"),
    }
    for session in ("owl", "again", "timeline"):
        graph = save_latents(graph, session, f"rolling_{session}")
    return graph


def count_decoded(host, history, node_id: str) -> int:
    [file] = history.outputs[node_id]["images"]
    with av.open(host.output / file["subfolder"] / file["filename"]) as video:
        return sum(1 for _ in video.decode(video=0))


def test_a_chain_with_an_end_is_a_timeline_and_goes_on_from_a_file(host):
    graph = make_endings()
    forget(host)
    history = host.run(graph)
    owl, sleep, timeline = (read_latents(host, f"rolling_{name}") for name in ("owl", "again", "timeline"))

    assert torch.equal(owl, timeline)
    expected = {name: to_vae_space(compute_expected(graph, name, host.models)) for name in ("owl", "sleep")}
    torch.testing.assert_close(owl, expected["owl"], rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(sleep, expected["sleep"], rtol=0, atol=TOLERANCE)
    assert torch.equal(owl[:, :, :6], sleep[:, :, :6])
    assert not torch.equal(owl[:, :, 6:], sleep[:, :, 6:])

    assert count_decoded(host, history, "film") == count_pixel_frames(3 * 6)
    assert count_decoded(host, history, "whole_film") == count_pixel_frames(3 * (6 + IN_FLIGHT))
    assert history.text("film") == "4 blocks in flight: not in this file; LongLive Finish would finish them"
    assert "text" not in history.outputs["whole_film"]
    assert history.outputs["timeline"]["text"][0].splitlines()[2].split()[:7] == "2 1.50 7.50 8 24 96 4".split()
    # the beginning, two endings, the end of each, and the script, whose beginning is in the store
    assert len(history.previews) == (4 + 2) + 2 * (4 + IN_FLIGHT)

    loaded = {id: graph[id] for id in ("model", "clip", "text1")}
    loaded["load"] = make_node("LongLiveLoadSession", model=["model", 0], name="in_flight")
    loaded |= {"switch1": switch("load", "text1"), "chunk1": chunk("switch1", 4)}
    loaded["owl"] = make_node("LongLiveFinish", session=["chunk1", 0])
    forget(host)
    host.run(save_latents(loaded, "owl", "rolling_owl"))
    assert torch.equal(read_latents(host, "rolling_owl"), owl)


def test_numbers_of_another_kind_are_refused_with_the_right_ones(newest):
    released = "Rolling Forcing is released with window 21, sink 3, block 3 and steps 1000, 800, 600, 400, 200"
    for changed, found in (({"window": 12}, "window is 12; "), ({"sink": 0}, "block is 3 and sink is 0; ")):
        graph = change_inputs(chain((FOX, 1), seed=42, options=ROLLING), "options", **changed)
        message = read_refusal(newest, end_graph(graph, "chunk0"))
        assert message.startswith(found)
        assert message.endswith(released)


def test_weights_whose_name_says_rolling_are_not_taken_block_by_block_without_a_warning(newest):
    """ComfyUI's own loader says nothing of them."""
    folder = newest.models / "diffusion_models"
    name = f"rolling_forcing_dmd{model_files.DIT.suffix}"
    shutil.copy(folder / model_files.DIT.name, folder / name)
    warning = f"{name} has the weights of a rolling video, by its name: choose Rolling Forcing with steps 1000, 800,"
    for options, is_warned in ((ROLLING, False), (None, True)):
        graph = chain((FOX, 1), seed=43, options=options)
        graph["model"]["inputs"]["unet_name"] = name
        begins = len(newest.log)
        newest.run(end_graph({id: graph[id] for id in graph if id != "chunk0"}, "session"))
        assert (warning in newest.log[begins:]) == is_warned


def test_a_script_that_ends_before_the_blocks_in_flight_is_refused(newest):
    graph = chain((FOX, 1), seed=42, options=ROLLING)
    graph["timeline"] = make_node("LongLiveTimeline", session=["chunk0", 0], clip=["clip", 0], script=f"3b | {OWL}")
    message = read_refusal(newest, end_graph(graph, "timeline"))
    assert message == (
        "the video would end with 4 blocks, but 5 have begun; make it at least 4 blocks longer, or rewind it"
    )
