"""Messages come from anyone: each is understood, or refused in one sentence."""

import json

import pytest

from longlive.config import MAX_SEED
from longlive.errors import MessageError
from longlive.live.messages import (
    MAX_MESSAGE_BYTES,
    Finish,
    Message,
    Pause,
    Playhead,
    Prepare,
    Reseed,
    Resume,
    RewindTo,
    Say,
    Stop,
    parse_message,
    read_message,
)
from longlive.session.boundary import Blend, Boundary, Curve

VIEWER = "0123456789abcdef"

GOOD: list[tuple[dict, Message]] = [
    ({"do": "say", "prompt": "a red ring"}, Say("a red ring")),
    ({"do": "say", "prompt": "a ring", "boundary": "cut"}, Say("a ring", Boundary.CUT)),
    ({"do": "say", "prompt": "a ring", "boundary": "renew", "seed": 7}, Say("a ring", Boundary.RENEW, 7)),
    ({"do": "say", "prompt": "a ring", "boundary": "keep", "at": 4}, Say("a ring", Boundary.KEEP, at=4.0)),
    ({"do": "say", "prompt": "a ring", "boundary": "blend"}, Say("a ring", blend=Blend(3))),
    ({"do": "say", "prompt": "a ring", "blend": 2}, Say("a ring", blend=Blend(2))),
    (
        {"do": "say", "prompt": "a ring", "boundary": "blend", "blend": 5, "curve": "spherical", "seed": MAX_SEED},
        Say("a ring", seed=MAX_SEED, blend=Blend(5, Curve.SPHERICAL)),
    ),
    (
        {"do": "say", "prompt": "a ring", "boundary": "cut", "blend": None, "curve": None, "seed": None, "at": None},
        Say("a ring", Boundary.CUT),
    ),
    ({"do": "say", "prompt": " a\tred\n\nring\u2028moves\x00 "}, Say("a red ring moves")),
    ({"do": "prepare", "prompt": "a  ring"}, Prepare("a ring")),
    ({"do": "pause"}, Pause()),
    ({"do": "resume"}, Resume()),
    ({"do": "rewind", "to": 0}, RewindTo(0)),
    ({"do": "seed", "seed": 3}, Reseed(3)),
    ({"do": "stop"}, Stop()),
    ({"do": "stop", "at": 8.5}, Stop(8.5)),
    ({"do": "finish"}, Finish()),
    ({"do": "watch", "seconds": 1, "viewer": VIEWER}, Playhead(1.0, VIEWER)),
]

BAD: list[tuple[object, str]] = [
    (None, "is not an object"),
    ([], "is not an object"),
    ("pause", "is not an object"),
    ({}, "it has no do"),
    ({"do": 3}, "do is 3; it must be text"),
    ({"do": "dance"}, "do is 'dance'; use say, prepare, pause"),
    ({"do": "pause", "at": 3}, "pause has no field 'at'; it takes none"),
    ({"do": "say"}, "it has no prompt"),
    ({"do": "say", "prompt": ["a ring"]}, "prompt is .* it must be text"),
    ({"do": "say", "prompt": ""}, "the prompt is empty"),
    ({"do": "say", "prompt": " \n\x00\u2028"}, "the prompt is empty"),
    ({"do": "say", "prompt": "a" * 4001}, "the prompt has 4,001 characters; 4,000 at most"),
    ({"do": "say", "prompt": "a ring", "style": "noir"}, "say has no field 'style'; it takes prompt, boundary"),
    (
        {"do": "say", "prompt": "a ring", "boundary": "fade"},
        "boundary is 'fade'; use recache, renew, keep, cut or blend",
    ),
    ({"do": "say", "prompt": "a ring", "boundary": ""}, "boundary is ''"),
    ({"do": "say", "prompt": "a ring", "boundary": "cut", "blend": 3}, "belong to the boundary blend, not to 'cut'"),
    ({"do": "say", "prompt": "a ring", "blend": 0}, "the blend takes 0 blocks"),
    ({"do": "say", "prompt": "a ring", "blend": 10**9}, "the blend takes 1000000000 blocks"),
    ({"do": "say", "prompt": "a ring", "blend": 2.5}, "blend is 2.5; it must be a whole number"),
    ({"do": "say", "prompt": "a ring", "blend": 2, "curve": "bent"}, "curve is 'bent'; use linear or spherical"),
    ({"do": "say", "prompt": "a ring", "seed": -1}, "seed is -1; it must be from 0"),
    ({"do": "say", "prompt": "a ring", "seed": True}, "seed is True; it must be a whole number"),
    ({"do": "say", "prompt": "a ring", "at": -1}, r"the time is -1.0 s; use 0 to"),
    ({"do": "say", "prompt": "a ring", "at": 1e9}, "the time is 1000000000.0 s"),
    ({"do": "say", "prompt": "a ring", "at": float("nan")}, "at is nan; it must be a finite number"),
    ({"do": "rewind"}, "it has no to"),
    ({"do": "rewind", "to": -1}, "to is -1; use the number of a block"),
    ({"do": "rewind", "to": "start"}, "to is 'start'; it must be a whole number"),
    ({"do": "seed", "seed": MAX_SEED + 1}, "it must be from 0 to"),
    ({"do": "watch", "seconds": 1}, "it has no viewer"),
    ({"do": "watch", "seconds": 1, "viewer": "x" * 16}, "use 8 to 32 hexadecimal digits"),
    ({"do": "watch", "seconds": 1, "viewer": "0" * 33}, "use 8 to 32 hexadecimal digits"),
    ({"do": "watch", "seconds": -3, "viewer": VIEWER}, "the time is -3.0 s"),
]


@pytest.mark.parametrize(("value", "message"), GOOD, ids=lambda each: str(each)[:60])
def test_a_message_is_understood(value, message):
    assert parse_message(value) == message
    assert read_message(json.dumps(value)) == message


@pytest.mark.parametrize(("value", "reason"), BAD, ids=lambda each: str(each)[:60])
def test_a_message_that_cannot_be_used_is_refused_in_one_sentence(value, reason):
    with pytest.raises(MessageError, match=reason) as caught:
        parse_message(value)
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"", "is not JSON"),
        (b"{", "is not JSON"),
        (b"\xff\xfe{}", "is not JSON"),
        (b'{"do": "pause", "do": "stop"}', "'do' appears twice"),
        (b'{"do": "rewind", "to": 1e999}', "out of range"),
        (b'{"do": "rewind", "to": 99999999999999999999999}', "out of range"),
        (b'{"do": "say", "prompt": "\\ud800"}', "is not whole text"),
        (b"[" * 5000, "is not JSON"),
        (json.dumps({"do": "say", "prompt": "a" * MAX_MESSAGE_BYTES}).encode(), "the message has 16,4.. bytes"),
        (json.dumps({"do": "say", "prompt": "a" * (1 << 20)}), "the message has 1,048,.* bytes; 16,384 at most"),
        (json.dumps({"do": "say", "prompt": "é" * MAX_MESSAGE_BYTES}, ensure_ascii=False), "32,.* bytes"),
    ],
)
def test_a_text_that_is_no_message_is_refused_in_one_sentence(text, reason):
    with pytest.raises(MessageError, match=reason) as caught:
        read_message(text)
    assert len(str(caught.value)) < 250
