"""The state of a host: what its stores hold, what is alive in it, what a graph makes or is refused with."""

import itertools
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from graphs import make_node
from host_messages import Graph, HostError
from host_process import ComfyUI
from safetensors.torch import load_file


def find_store(host: ComfyUI, name: str = "blocks") -> Path:
    """The folder of the store of blocks or of fragments."""
    return host.base / "user" / "longlive" / name


def count_stored(host: ComfyUI, name: str = "blocks") -> int:
    """Count the entries of a store."""
    return sum(1 for _ in find_store(host, name).glob("??/*.safetensors"))


def forget(host: ComfyUI) -> None:
    """Remove all finished work, from the stores and from the host's cache."""
    shutil.rmtree(find_store(host).parent, ignore_errors=True)
    host.free()


def read_latents(host: ComfyUI, name: str) -> torch.Tensor:
    return load_file(host.output / f"{name}.safetensors")["samples"]


def remake(host: ComfyUI, graph: Graph, name: str) -> torch.Tensor:
    """Run a graph after `forget` and return the latents that it saves as `name`."""
    forget(host)
    (host.output / f"{name}.safetensors").unlink(missing_ok=True)
    assert host.run(graph).previews
    return read_latents(host, name)


def count_alive(host: ComfyUI) -> dict[str, int]:
    return json.loads(host.run({"probe": make_node("TestProbe")}).text("probe"))


def is_nothing_alive(host: ComfyUI) -> bool:
    """Whether no keys or values are alive, warm ones included."""
    counts = count_alive(host)
    return (counts["caches"], counts["warm"]) == (0, 0)


def wait_for_previews(host: ComfyUI, prompt_id: str, count: int) -> None:
    """Wait for preview number `count` of a prompt."""
    seen = itertools.count(1)
    host.wait_for(
        lambda event: event.type == "preview" and event.data.get("prompt_id") == prompt_id and next(seen) == count
    )


def read_refusal(host: ComfyUI, graph: Graph) -> str:
    """Run a graph that is refused and return the sentence; afterwards no KV cache is alive, no partial file left."""
    with pytest.raises(HostError) as refusal:
        host.run(graph)
    message, _, trace = str(refusal.value).partition("\n")
    assert re.search(r"longlive\.\w+: ", message), f"{message}\n{trace}"
    assert count_alive(host)["caches"] == 0
    assert [path for path in host.base.rglob("*.part")] == []
    return message.partition(": ")[2].partition(": ")[2]
