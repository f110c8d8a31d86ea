"""Walks through the code as a reader makes them: every stop is a function that an earlier stop calls or passes on.

A reader stays within the functions already opened, and each new one is in the same package as its caller or in a lower
one. Only the implementation of a protocol, which follows it under the same name, may be in a higher one.
`tests/house.py` prints how many stops there are.
"""

import ast
from collections.abc import Sequence
from pathlib import Path

MAX_STOPS = 20

# Module and function of each stop, in the order of reading.
TO_ATTENTION = """
nodes.sampling ChunkSampler.execute
nodes.host.sampling open_sampler
nodes.host.sampling create_sampler
nodes.host.model as_causal_model
nodes.host.model bind_attention
nodes.host.sampling extend_session
longlive.rollout.sampler Sampler.extend
longlive.rollout.sampler Sampler.advance
longlive.rollout.sampler Sampler._compute
longlive.rollout.rollout Rollout.denoise
longlive.rollout.window Window.place_block
longlive.rollout.rollout Rollout._pass
longlive.model.causal CausalWan.forward
longlive.model.causal CausalWan.run_block
longlive.model.causal CausalWan.write_keys
longlive.model.causal LayerKVCache.write
longlive.rollout.kv_cache WindowLayerKVCache.write
nodes.host.model bind_attention.attend
"""
TO_RECACHE = """
nodes.sampling Timeline.execute
longlive.session.timeline parse_timeline
longlive.session.timeline _parse_segment
longlive.session.session Session.switched_to
nodes.host.sampling extend_session
longlive.rollout.sampler Sampler.extend
longlive.rollout.sampler Sampler.advance
longlive.rollout.sampler Sampler._compute
longlive.rollout.sampler Sampler._rebuild_cache
longlive.rollout.cache_passes list_cache_passes
longlive.rollout.window Window.place_recache
longlive.rollout.cache_passes choose_missing_passes
longlive.rollout.rollout Rollout.recache
longlive.rollout.rollout Rollout._write
longlive.rollout.rollout Rollout._pass
longlive.model.causal CausalWan.forward
longlive.model.causal CausalWan.run_block
longlive.model.causal CausalWan.write_keys
longlive.model.causal LayerKVCache.write
longlive.rollout.kv_cache WindowLayerKVCache.write
"""
WALKS = {
    "stops: sampler node to attention": TO_ATTENTION,
    "stops: timeline text to recache": TO_RECACHE,
}


def list_stops(walk: str) -> list[tuple[str, str]]:
    """List the module and the function of each stop."""
    return [(module, name) for module, name in map(str.split, walk.strip().splitlines())]


def find_detours(root: Path, walk: str, packages: Sequence[str]) -> list[str]:
    """Find the stops that do not exist, that no earlier stop names, or that are in a higher package than its caller."""
    opened: list[tuple[str, set[str]]] = []  # module of each stop so far, and the names in its function
    found, before = [], ""
    for module, name in list_stops(walk):
        function = find_function(root / (module.replace(".", "/") + ".py"), name.split("."))
        if function is None:
            found.append(f"{module} has no {name}")
            continue
        last = name.rsplit(".", 1)[-1]
        callers = [caller for caller, names in opened if last in names]
        if opened and not callers:
            found.append(f"no earlier stop names {last}")
        elif opened and last != before and min(rank(caller, packages) for caller in callers) > rank(module, packages):
            found.append(f"{last} is above its caller")
        opened.append((module, collect_names(function)))
        before = last
    return found


def find_function(path: Path, names: Sequence[str]) -> ast.AST | None:
    """Find a function by the names of what it is nested in, and its own."""
    node: ast.AST | None = ast.parse(path.read_text(encoding="utf-8"))
    for name in names:
        children = ast.walk(node) if node else ()
        node = next((child for child in children if getattr(child, "name", None) == name), None)
    return node


def collect_names(function: ast.AST) -> set[str]:
    """Collect the names, attributes and nested functions that a function uses."""
    return {
        getattr(node, "id", None) or getattr(node, "attr", None) or getattr(node, "name", "")
        for node in ast.walk(function)
    }


def rank(module: str, packages: Sequence[str]) -> int:
    """Count how far down a module is: 0 for the nodes, 1 for what touches ComfyUI, then the packages of the library."""
    top, package, *_ = module.split(".")
    if top == "nodes":
        return int(package == "host")
    return 2 + [*reversed(packages)].index(package)
