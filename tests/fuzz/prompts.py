"""Attacks over HTTP: prompts with wrong values, links and inputs for every node, in a real ComfyUI."""

import atexit
import functools
import json
import random
import re
import threading
from pathlib import Path

import mutators
import psutil
from graphs import chain, make_node
from harness import Target, Unclear, expect
from host_messages import HostError, Interrupted
from host_process import PACK, ComfyUI
from hosts import NEWEST

from longlive.errors import LongLiveError

OURS = "LongLive"  # how the ids of our nodes begin
SECONDS = 20.0  # after which a prompt that was accepted and runs is interrupted
WARM = 30  # prompts before the memory of the host is looked at
GROWTH_BYTES = 300 << 20  # of the host from there to the end
LONGLIVE_ERROR = re.compile(r"\S+ \(node [^)]*\): longlive\.\w+: (.*)")
LINKS = (
    ["model", 0], ["text0", 0], ["chunk0", 0], ["chunk0", 1], ["chunk0", -1], ["clip", 0], ["nowhere", 0], ["vae", 0],
    ["chunk0"], ["chunk0", "0"], ["chunk0", 0.5], ["chunk0", 10**9], [None, None], [[], 0], ["chunk0", 0, 0],
)  # fmt: skip
LARGE = 256  # pixels: what is accepted beyond is sampled for minutes, which shows nothing


class Refused(LongLiveError):
    """The host refuses a prompt by itself."""


@functools.cache
def start_host() -> ComfyUI:
    running = ComfyUI(NEWEST)
    running.start()
    atexit.register(close_host)
    return running


def close_host() -> None:
    if start_host.cache_info().currsize:
        start_host().__exit__(None, None, None)
        start_host.cache_clear()


@functools.cache
def read_inputs(class_type: str) -> dict[str, list]:
    """The inputs of a node: name -> [type, options]."""
    kinds = start_host().object_info()[class_type]["input"]
    return {name: [*entry, {}][:2] for kind in ("required", "optional") for name, entry in kinds.get(kind, {}).items()}


def make_graph(draw: random.Random) -> tuple[dict, str]:
    """A graph that runs and one of our nodes in it."""
    graph = chain(("a red fox", 1), ("an owl", 1), seed=draw.randrange(4), options={})
    graph |= {
        "loader": make_node("LongLiveModelLoader", model_name="longlive_tiny.safetensors", lora_name="none",
                            lora_strength=1.0, weight_dtype="default"),
        "timeline": make_node("LongLiveTimeline", session=["session", 0], clip=["clip", 0], script="1b | a\n1b | b"),
        "rewind": make_node("LongLiveRewind", session=["chunk0", 0], length=1.0, unit="blocks"),
        "save": make_node("LongLiveSaveSession", session=["chunk0", 0], name="fuzz"),
        "load": make_node("LongLiveLoadSession", name=["save", 1], model=["model", 0]),
        "info": make_node("LongLiveSessionInfo", session=["chunk0", 0]),
        "latent": make_node("LongLiveSessionToLatent", session=["chunk0", 0]),
        "vae": make_node("VAELoader", vae_name="wan_tiny_vae.safetensors"),
        "decode": make_node("LongLiveDecode", session=["chunk0", 0], vae=["vae", 0], filename_prefix="fuzz"),
        "miniature": make_node("LongLiveMiniature"),
        "pairs": make_node("LongLivePromptPairs", clip=["clip", 0], pairs="a red fox -> an owl", file="", negative=""),
        "tuner": make_node("LongLiveTuner", student=["model", 0], teacher=["model", 0], vae=["vae", 0],
                           pairs=["pairs", 0], name=f"fuzz{draw.randrange(10**9)}", steps=1, rank=2, rate=1e-5,
                           critic_rate=2e-6, ratio=1, length=21, batch=1, width=32, height=32, seed=0, guidance=3.0,
                           anchored_on=3),
    }  # fmt: skip
    return graph, draw.choice([id for id, item in graph.items() if item["class_type"].startswith(OURS)])


def spoil_inputs(draw: random.Random, graph: dict, node_id: str) -> None:
    """Change one or two inputs of a node."""
    inputs, known = graph[node_id]["inputs"], read_inputs(graph[node_id]["class_type"])
    for _ in range(draw.choice((1, 1, 2)) if known else 0):
        name = draw.choice(list(known))
        options = known[name][1]
        limits = [options[limit] for limit in ("min", "max") if limit in options]
        near = [
            limit + step for limit in limits for step in (-1, 0, 1) if limit + step <= LARGE or limit + step > limit
        ]
        match draw.randrange(6):
            case 0:
                inputs.pop(name, None)
            case 1 | 2 if near:
                inputs[name] = draw.choice(near)
            case 3:
                inputs[name] = list(draw.choice(LINKS))
            case _:
                inputs[name] = draw.choice(mutators.WEIRD_VALUES)


def attack_prompt(draw: random.Random, folder: Path) -> None:
    """The prompt runs, or the host or our node refuses it with a clear error; the host survives and does not grow."""
    graph, node_id = make_graph(draw)
    spoil_inputs(draw, graph, node_id)
    sent = take_part(graph, node_id) | {"end": make_node("TestProbe", value=[node_id, 0])}
    (folder / "prompt.json").write_text(json.dumps(sent))
    try:
        run(sent)
    finally:
        assert isinstance(start_host().get("/queue"), dict)
        expect(not psutil.Process(start_host().pid).status() == psutil.STATUS_ZOMBIE, "the host has died")
        check_growth()


def take_part(graph: dict, node_id: str) -> dict:
    """A node and all it needs; links may lead nowhere."""
    found, waiting = {}, [node_id]
    while waiting:
        id = waiting.pop()
        if isinstance(id, str) and id in graph and id not in found:
            found[id] = graph[id]
            waiting += [value[0] for value in graph[id]["inputs"].values() if isinstance(value, list) and value]
    return found


def run(graph: dict) -> None:
    try:
        answer = start_host().post("/prompt", {"prompt": graph, "client_id": start_host().client_id})
    except HostError as error:
        expect(": 400: " in str(error), f"the host answered {str(error)[:200]}")
        expect(f"custom_nodes/{PACK}/" not in str(error), f"a check of ours failed: {str(error)[-600:]}")
        raise Refused("the host refuses the prompt") from None
    limit = threading.Timer(SECONDS, start_host().interrupt)
    limit.start()
    try:
        start_host().wait(answer["prompt_id"])
    except Interrupted:
        pass
    except HostError as error:
        judge(str(error))
    finally:
        limit.cancel()
        limit.join()


def judge(text: str) -> None:
    """Whether a node failed with one clear error of ours, or a stock node with whatever it has."""
    first = text.partition("\n")[0]
    if not first.startswith(OURS):
        raise Refused("a node of the host refuses")
    told = LONGLIVE_ERROR.fullmatch(first)
    if told is None or "Traceback" in told[1]:
        raise Unclear(f"{first}; {text[-400:]}")
    raise LongLiveError(told[1])


sizes: list[int] = []


def check_growth() -> None:
    sizes.append(psutil.Process(start_host().pid).memory_info().rss)
    if len(sizes) > WARM:
        grown = sizes[-1] - max(sizes[:WARM])
        expect(grown < GROWTH_BYTES, f"the host has grown by {grown >> 20} MB")


TARGETS = (Target("API prompts", 300, attack_prompt),)
