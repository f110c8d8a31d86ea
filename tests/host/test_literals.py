"""A prompt may have any value in the place of a link: each node refuses it with one sentence."""

import re

import graphs
import model_files
import pytest
from graphs import make_node
from host_messages import HostError
from host_process import ComfyUI
from short_graphs import SESSION

SOCKETS = {
    "MODEL": ["model", 0],
    "CLIP": ["clip", 0],
    "VAE": ["vae", 0],
    "CONDITIONING": ["text0", 0],
    "LONGLIVE_SESSION": ["session", 0],
    "LONGLIVE_OPTIONS": ["options", 0],
    "LONGLIVE_PAIRS": ["pairs", 0],
}
SOURCES = SESSION | {
    "vae": make_node("VAELoader", vae_name=model_files.VAE.name),
    "options": make_node("LongLiveOptions", **graphs.list_released_options()),
    "pairs": make_node("LongLivePromptPairs", clip=["clip", 0], pairs="a -> b", file="", negative=""),
}
LITERALS = (5, {}, None, "x", [], [[1, 2, 3]], True)


def read_inputs(info: dict) -> dict[str, tuple]:
    """Read the inputs of a node: name -> (type, options if there are any)."""
    return {name: spec for kind in ("required", "optional") for name, spec in info["input"].get(kind, {}).items()}


def make_graph(type: str, info: dict, bad: str, literal: object) -> dict:
    """Make a graph with a node that has one wrong input."""
    inputs = {}
    for name, (kind, *options) in read_inputs(info).items():
        inputs[name] = SOCKETS[kind] if kind in SOCKETS else options[0].get("default", "") if options else ""
    return SOURCES | {
        "node": make_node(type, **inputs | {bad: literal}),
        "end": make_node("TestProbe", value=["node", 0]),
    }


@pytest.mark.parametrize("literal", LITERALS, ids=repr)
def test_a_value_that_is_not_a_link_is_refused_in_a_sentence(host: ComfyUI, literal):
    tried = 0
    for type, info in host.object_info().items():
        sockets = [name for name, spec in read_inputs(info).items() if spec[0] in SOCKETS] if "LongLive" in type else []
        for name in sockets:
            if literal is None and name in info["input"].get("optional", {}):
                continue  # it is left out
            with pytest.raises(HostError) as refusal:
                host.run(make_graph(type, info, name, literal))
            told = str(refusal.value)
            of_host = "required_input_missing" in told or "bad_linked_input" in told
            assert of_host or re.search(rf"longlive\.ConfigError: {name} is .*; connect the output of a node", told), (
                told
            )
            tried += 1
    assert tried >= 18
