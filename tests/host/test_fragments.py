"""What a second queue decodes, and what an interrupt leaves, in the real ComfyUI; counted in fragments, not seconds."""

import random
import shutil

from films import film, folder, frames, interrupted, kept, made, made_again

BLOCKS = 3


def test_an_edit_of_the_last_prompt_decodes_its_blocks_alone_also_after_a_restart(host):
    made_again(host, film("a green ring stays still by day"))
    assert kept(host, "fragments") == BLOCKS + 1  # and the end
    edited = made(host, film("a yellow square moves up by day"))
    assert kept(host, "fragments") == BLOCKS + 1 + 1 + 1
    host.stop()
    host.start()
    assert made(host, film("a yellow square moves up by day")) == edited
    assert kept(host, "fragments") == BLOCKS + 1 + 1 + 1
    assert made_again(host, film("a yellow square moves up by day")) == edited


def test_an_interrupt_in_decode_shows_the_film_so_far_and_the_next_queue_finishes_it(host):
    whole, before = (
        made_again(host, film("a green ring stays still by day", seed=2)),
        len([*host.output.rglob("*.mp4")]),
    )
    for value in random.Random(0).sample(range(1, BLOCKS), 1):
        shutil.rmtree(folder(host) / "fragments")
        host.free()
        shown = interrupted(host, film("a green ring stays still by day", seed=2), "decode", value)
        assert frames(shown) >= 9
        assert len([*host.output.rglob("*.mp4")]) == before  # no unfinished file among the finished ones
        found = kept(host, "fragments")
        assert value <= found <= BLOCKS
        assert made(host, film("a green ring stays still by day", seed=2)) == whole
        before += 1


def test_an_interrupt_in_sampling_shows_what_is_finished_and_the_next_queue_finishes_it(host):
    whole = made_again(host, film("a green ring stays still by day", seed=3))
    for value in random.Random(1).sample(range(5, 4 * BLOCKS), 1):
        shutil.rmtree(folder(host))
        host.free()
        shown = interrupted(host, film("a green ring stays still by day", seed=3), "timeline", value)
        assert frames(shown) == 3 * kept(host, "blocks")  # a picture for each latent
        assert made(host, film("a green ring stays still by day", seed=3)) == whole
