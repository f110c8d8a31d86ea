"""Short graphs that tests change, extend and have refused."""

from graphs import FOX, chain, make_node
from host_messages import Graph


def end_graph(graph: Graph, node_id: str) -> dict:
    """Copy a graph and add an output node after node `node_id`; without one the host runs nothing."""
    return {**graph, "end": make_node("TestProbe", value=[node_id, 0])}


def change_inputs(graph: Graph, node_id: str, **inputs) -> dict:
    return {**graph, node_id: {**graph[node_id], "inputs": {**graph[node_id]["inputs"], **inputs}}}


SHORT = end_graph(chain((FOX, 1), seed=1), "chunk0")
SESSION = {id: SHORT[id] for id in ("model", "clip", "text0", "session")}


def decode_with(vae: str, prefix: str = "refused") -> dict:
    graph = chain((FOX, 1), seed=1) | {"vae": make_node("VAELoader", vae_name=vae)}
    return graph | {"out": make_node("LongLiveDecode", session=["chunk0", 0], vae=["vae", 0], filename_prefix=prefix)}


def save_as(name: str) -> dict:
    return chain((FOX, 1), seed=1) | {"save": make_node("LongLiveSaveSession", session=["chunk0", 0], name=name)}


def load_from(name: str) -> dict:
    load = make_node("LongLiveLoadSession", model=["model", 0], name=name)
    return end_graph({"model": SHORT["model"], "load": load}, "load")
