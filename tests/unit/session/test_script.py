"""The script of a session makes the same video again: the same latents under the same keys."""

import pytest
import tiny
import torch
from random_videos import make_video
from saved_sessions import MODEL

from longlive.errors import SessionError
from longlive.rollout.sampler import Sampler
from longlive.session.boundary import Blend, Boundary, Curve
from longlive.session.prompt import Prompt
from longlive.session.script import write_script
from longlive.session.session import Session
from longlive.session.timeline import parse_timeline


def direct(video: Session) -> Session:
    """Make a video as a director does, with rewinds, new seeds, blends and second thoughts."""
    sampler = Sampler(MODEL)
    video = sampler.sample(video.switched_to(tiny.prompt(0), seed=5), 2)
    video = sampler.sample(video.switched_to(tiny.prompt(1), Boundary.CUT), 3).rewound_to(6)
    video = sampler.sample(video.switched_to(tiny.prompt(2), blend=Blend(3)), 4).rewound_to(12)
    video = sampler.sample(video.switched_to(tiny.prompt(3), blend=Blend(2, Curve.SPHERICAL), seed=2**64 - 1), 3)
    video = sampler.sample(video.switched_to(tiny.prompt(3), Boundary.KEEP, seed=8), 1)
    video = sampler.sample(video.switched_to(tiny.prompt(1), Boundary.RENEW), 1)
    video = sampler.sample(video.switched_to(tiny.prompt(0)), 1)
    return sampler.sample(video.switched_to(tiny.prompt(1), Boundary.CUT), 1).switched_to(tiny.prompt(2))


SCRIPT = """\
2b seed 5 | prompt 0
2b blend 3b | prompt 2
3b blend 2b spherical seed 18446744073709551615 | prompt 3
1b keep seed 8 | prompt 3
1b renew | prompt 1
1b | prompt 0
1b cut | prompt 1
"""


def test_a_script_says_what_was_decided_and_makes_the_same_video_again():
    video = direct(tiny.session())
    assert write_script(video) == SCRIPT
    again = tiny.session()
    for segment in parse_timeline(SCRIPT):
        prompt = tiny.prompt(int(segment.prompt.split()[1]))
        again = again.switched_to(prompt, segment.boundary, seed=segment.seed, blend=segment.blend)
        again = Sampler(MODEL).sample(again, segment.blocks)
    assert torch.equal(again.latents(), video.latents())
    assert again.keys == video.keys
    assert write_script(again) == SCRIPT


@pytest.mark.parametrize("text", ["", "two\nlines", " spaces around ", "a\rb", "\ufeff \u3000"])
def test_a_prompt_that_no_line_can_hold_is_named_by_its_block(text):
    video = make_video(1, make_video(2).switched_to(Prompt.of(tiny.prompt(1).embedding, text)))
    with pytest.raises(SessionError, match="the prompt from block 2 on has no text that a line of a script can hold"):
        write_script(video)


@pytest.mark.parametrize("text", ["8s | a", "a | b", "# a", "seed 7", "a :0.5 AND b :0.5", "8s blend 3b | \ufeffc"])
def test_any_text_of_one_line_is_held(text):
    video = make_video(1, tiny.session().switched_to(Prompt.of(tiny.prompt(1).embedding, text)))
    assert [segment.prompt for segment in parse_timeline(write_script(video))] == [text]


def test_a_session_without_frames_has_no_script():
    with pytest.raises(SessionError, match="no frames yet, so it has no script; sample a block first"):
        write_script(tiny.session())
