"""How many fragments a second queue decodes and an interrupt leaves in the real ComfyUI."""

import random
import shutil

from graphs import make_node
from host_state import count_stored, find_store
from videos import count_frames, interrupt_node, make_video, make_video_graph, read_video, remake_video

BLOCKS = 3


def test_an_edit_of_the_last_prompt_decodes_its_blocks_alone_also_after_a_restart(host):
    remake_video(host, make_video_graph("a green ring stays still by day"))
    assert count_stored(host, "fragments") == BLOCKS + 1  # and the end
    edited = make_video(host, make_video_graph("a yellow square moves up by day"))
    assert count_stored(host, "fragments") == BLOCKS + 1 + 1 + 1
    host.stop()
    host.start()
    again = host.run(make_video_graph("a yellow square moves up by day"))
    assert again.previews == ()  # no block is denoised again either
    assert read_video(host, again) == edited
    assert count_stored(host, "fragments") == BLOCKS + 1 + 1 + 1
    assert remake_video(host, make_video_graph("a yellow square moves up by day")) == edited


def test_session_info_measures_what_decode_has_decoded(newest):
    graph = make_video_graph("a green ring stays still by day", seed=4)
    newest.run(graph)
    stored = count_stored(newest, "fragments")
    info = make_node("LongLiveSessionInfo", session=["timeline", 0], vae=["mini", 2])
    shown = newest.run(graph | {"info": info}).outputs["info"]
    assert count_stored(newest, "fragments") == stored
    (drift,), (picture,) = shown["longlive_drift"], shown["images"]
    assert [row[drift["columns"].index("frame")] for row in drift["rows"]] == [0, 9, 21]
    assert drift["warn"] == ""
    assert "neither drift nor freeze nor jump is found" in shown["text"][0]
    assert "| bright |" in shown["text"][0]
    assert picture["type"] == "temp"

    del info["inputs"]["vae"]
    sheet = make_node("PreviewImage", images=["info", 3])
    since = len(newest.events)
    history = newest.run(graph | {"info": info, "sheet": sheet})
    (error,) = [event.data for event in newest.events[since:] if event.type == "execution_error"]
    assert error["node_id"] == "sheet"
    assert "and with a VAE" in error["exception_message"]
    assert "sheet" not in history.outputs


def test_an_interrupt_in_decode_shows_the_video_so_far_and_the_next_queue_finishes_it(host):
    whole, before = (
        remake_video(host, make_video_graph("a green ring stays still by day", seed=2)),
        len([*host.output.rglob("*.mp4")]),
    )
    for value in random.Random(0).sample(range(1, BLOCKS), 1):
        shutil.rmtree(find_store(host, "fragments"))
        host.free()
        shown = interrupt_node(host, make_video_graph("a green ring stays still by day", seed=2), "decode", value)
        assert count_frames(shown) >= 9
        assert len([*host.output.rglob("*.mp4")]) == before  # no unfinished file among the finished ones
        found = count_stored(host, "fragments")
        assert value <= found <= BLOCKS
        assert make_video(host, make_video_graph("a green ring stays still by day", seed=2)) == whole
        before += 1


def test_an_interrupt_in_sampling_shows_what_is_finished_and_the_next_queue_finishes_it(host):
    whole = remake_video(host, make_video_graph("a green ring stays still by day", seed=3))
    for value in random.Random(1).sample(range(5, 4 * BLOCKS), 1):
        shutil.rmtree(find_store(host).parent)
        host.free()
        shown = interrupt_node(host, make_video_graph("a green ring stays still by day", seed=3), "timeline", value)
        assert count_frames(shown) == 3 * count_stored(host, "blocks")  # a picture for each latent
        assert make_video(host, make_video_graph("a green ring stays still by day", seed=3)) == whole
