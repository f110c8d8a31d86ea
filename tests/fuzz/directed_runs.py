"""Attacks on a directed run: the messages that it is sent, and the take that it left on disk."""

import json
import random
from pathlib import Path

import mutators
from harness import Target, expect, expect_finite
from texts import JSON_TOKENS, damage_lines

from longlive.live.decision import Decision
from longlive.live.messages import MAX_PROMPT, Playhead, Prepare, Say, read_message
from longlive.live.take import TAKE, Plan, read_plan, read_take
from longlive.session.boundary import Blend, Boundary, Curve

MESSAGES = (
    {"do": "say", "prompt": "a fox runs", "boundary": "blend", "blend": 3, "curve": "spherical", "seed": 7, "at": 3},
    {"do": "say", "prompt": "an owl | 8s", "boundary": "cut", "seed": None},
    {"do": "prepare", "prompt": "an owl"},
    {"do": "rewind", "to": 3},
    {"do": "seed", "seed": 2**64 - 1},
    {"do": "stop", "at": 3.5},
    {"do": "watch", "seconds": 1.5, "viewer": "0123456789abcdef"},
)
TOKENS = (*JSON_TOKENS, '"at"', "-1", "1e9", "true", "recache", "renew", "\\u0000", "\\n", "\u0085", "\u3000")
PLAN = Plan(
    "3b | a red fox\n2b cut seed 7 | an owl\n",
    (Decision(5, "a dog", Boundary.KEEP, 9), Decision(8, "a cat", blend=Blend(3, Curve.SPHERICAL))),
    5,
    12,
)


def attack_messages(draw: random.Random, folder: Path) -> None:
    """A message that is accepted holds one plain line, numbers in range, and nothing unknown."""
    message = dict(draw.choice(MESSAGES))
    match draw.randrange(4):
        case 0:
            content = mutators.write_json(draw, mutators.mutate_json(draw, message)).encode("utf-8", "surrogatepass")
        case 1:
            content = mutators.mutate_text(draw, json.dumps(message), TOKENS).encode("utf-8", "surrogatepass")
        case 2:
            content = mutators.mutate_bytes(draw, json.dumps(message).encode())
        case _:
            content = json.dumps(message | draw.choice(MESSAGES)).encode()
    found = read_message(content)
    if isinstance(found, Say | Prepare):
        expect(found.prompt == " ".join(found.prompt.split()) != "", f"the prompt is {found.prompt!r}")
        expect(len(found.prompt) <= MAX_PROMPT, f"the prompt has {len(found.prompt)} characters")
        found.prompt.encode()
    if isinstance(found, Playhead):
        expect_finite(found.seconds, "seconds")


def attack_takes(draw: random.Random, folder: Path) -> None:
    """The plan of a damaged take has the types that it is declared with, and can be written again."""
    saved = {"version": 1, "begins_with": {"base": "0" * 64}, "script": "", "plan": PLAN.as_json(), "state": {}}
    (folder / TAKE).write_bytes(damage_lines(draw, json.dumps(saved)))
    plan = read_plan(folder)
    expect(Plan.from_json(json.loads(json.dumps(plan.as_json()))) == plan, f"the plan {plan} is another one")
    expect(isinstance(read_take(folder)["state"], dict), "the state is not an object")


TARGETS = (Target("messages", 1500, attack_messages), Target("takes", 800, attack_takes))
