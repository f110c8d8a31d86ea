"""Graphs for a host: the example workflows, short ones on tiny model files, and the sessions `longlive` makes of them.

A graph is a prompt in API format: node id -> `class_type` and `inputs`, a link being [node id, output slot].
"""

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import model_files
from host_messages import Graph
from hosts import REPOSITORY
from torch import Tensor

from longlive.config import Positions, RolloutConfig, RolloutKind
from longlive.miniature.files import load_miniature
from longlive.model.causal import CausalWan
from longlive.model.text_encoder import HashedWords
from longlive.model.vae import denormalise
from longlive.rollout.sampler import Sampler
from longlive.session.boundary import Blend, Boundary, Curve
from longlive.session.prompt import Prompt
from longlive.session.session import Session
from longlive.session.timeline import parse_timeline, plan_ends
from longlive.units import convert_blocks_to_seconds, convert_seconds_to_blocks
from longlive.weights.load import load_model

WORKFLOWS = sorted((REPOSITORY / "workflows").glob("*.json"))
NOTES = {"MarkdownNote", "Note"}  # drawn by the interface, unknown to the host
ACTIVE = 0  # the mode of a node that is neither muted nor bypassed
WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
SAME_SEED = -1  # of LongLive Switch Prompt
SEEDS = {"seed", "noise_seed"}  # the interface adds a widget to these inputs, unless their options say otherwise
NO_LORA = "none"
KINDS = {RolloutKind.BLOCKWISE: "LongLive", RolloutKind.ROLLING: "Rolling Forcing"}  # as LongLive Options names them
CLASSIC = ("--cache-classic", "--preview-method", "none")  # flags of a host
FOX, OWL, SLEEP = "a red fox in the snow", "a red fox meets an owl in the snow", "the red fox in the snow sleeps"
STEPS = len(RolloutConfig().steps)
TOLERANCE = 1e-4  # between the host and `compute_expected`: their layers round differently


def read_example(path: Path) -> dict:
    """Read an example workflow in API format."""
    return json.loads((path.parent / "api" / path.name).read_text())


def shorten(graph: Graph, blocks: int = 1) -> dict:
    """Copy a graph with a few blocks in the place of every chunk or segment of five seconds."""
    seconds = convert_blocks_to_seconds(blocks, RolloutConfig().block)
    short = json.dumps(graph).replace('"length": 5.0', f'"length": {seconds}').replace("5s |", f"{blocks}b |")
    return json.loads(short)


def make_node(class_type: str, **inputs) -> dict:
    return {"class_type": class_type, "inputs": inputs}


def chain(
    *segments: tuple[str, int],
    seed: int,
    width: int = 32,
    height: int = 32,
    options: Mapping[str, object] | None = None,
    name: str = "",
) -> dict:
    """Make the graph of a short video as a chain: for each segment (prompt, blocks) a switch and a sampler `chunk<n>`.

    With a `name`, the latents are saved under it.
    """
    graph = {
        "model": make_node("UNETLoader", unet_name=model_files.DIT.name, weight_dtype="default"),
        "clip": make_node("TestHashedCLIP"),
        "session": make_node(
            "LongLiveSession", model=["model", 0], conditioning=["text0", 0], width=width, height=height, seed=seed
        ),
    }
    if options is not None:
        graph["options"] = make_node("LongLiveOptions", **list_released_options() | dict(options))
        graph["session"]["inputs"]["options"] = ["options", 0]
    before = "session"
    for i, (text, blocks) in enumerate(segments):
        graph[f"text{i}"] = make_node("CLIPTextEncode", clip=["clip", 0], text=text)
        if i:
            graph[f"switch{i}"] = switch(before, f"text{i}")
            before = f"switch{i}"
        graph[f"chunk{i}"] = chunk(before, blocks)
        before = f"chunk{i}"
    return save_latents(graph, before, name) if name else graph


def chunk(session: str, blocks: float, unit: str = "blocks") -> dict:
    return make_node("LongLiveChunkSampler", session=[session, 0], length=blocks, unit=unit)


def switch(session: str, text: str) -> dict:
    return make_node(
        "LongLiveSwitchPrompt", session=[session, 0], conditioning=[text, 0], boundary="recache", sink="keep"
    )


def list_released_options() -> dict[str, object]:
    """List the inputs of LongLive Options with their defaults."""
    return list_options(RolloutConfig())


def list_options(rollout: RolloutConfig) -> dict[str, object]:
    """List the inputs of LongLive Options that make a rollout."""
    values = rollout.as_dict() | {"kind": KINDS[rollout.kind]}
    return values | {"steps": ", ".join(map(str, values["steps"]))}


def save_latents(graph: Graph, session: str, name: str) -> dict:
    """Copy a graph and add nodes that save the latents of the session from node `session` as `name`."""
    return {
        **graph,
        f"latent_{session}": make_node("LongLiveSessionToLatent", session=[session, 0]),
        f"saved_{session}": make_node("TestSaveLatent", latent=[f"latent_{session}", 0], name=name),
    }


def list_decodes(graph: Graph) -> dict[str, str]:
    """List the nodes of a graph that write a video, each with the node whose session it shows."""
    decodes = {id: item for id, item in graph.items() if item["class_type"] == "LongLiveDecode"}
    live = {id: id for id, item in graph.items() if item["class_type"] == "LongLiveLive"}
    return {id: str(item["inputs"]["session"][0]) for id, item in decodes.items()} | live


def to_api(workflow: Mapping, object_info: Mapping[str, dict]) -> dict:
    """Convert the interface's format as the interface does when a workflow is queued."""
    sources = {link[0]: [str(link[1]), link[2]] for link in workflow["links"]}
    return {
        str(item["id"]): {
            "class_type": item["type"],
            "inputs": read_widget_values(item, object_info[item["type"]]) | read_links(item, sources),
        }
        for item in workflow["nodes"]
        if item["type"] not in NOTES and item["mode"] == ACTIVE
    }


def read_widget_values(item: Mapping, info: Mapping) -> dict[str, object]:
    """Read the values of a node's widgets by name. After a seed comes what the interface does to it after a run."""
    values = iter(item.get("widgets_values", ()))
    found = {}
    for kind in ("required", "optional"):
        for name in info["input_order"].get(kind, ()):
            type, options = (*info["input"][kind][name], {})[:2]
            if (isinstance(type, list) or type in WIDGETS) and not options.get("forceInput"):
                found[name] = next(values) if kind == "required" else next(values, options.get("default"))
                if options.get("control_after_generate", name in SEEDS):
                    next(values)
    assert not list(values), f"{item['type']} has more widget values than widgets"
    return found


def read_links(item: Mapping, sources: Mapping[int, list]) -> dict[str, list]:
    inputs = item.get("inputs", ())
    return {entry["name"]: sources[entry["link"]] for entry in inputs if entry.get("link") is not None}


def compute_expected(graph: Graph, node_id: str, models: Path | None = None) -> Session:
    """Make the session of node `node_id` with `longlive` alone, from the files in `models` or the pack's own."""
    return Direct(graph, models).make_session(node_id)


def to_vae_space(session: Session) -> Tensor:
    """Return the latents of a session as the nodes of a host exchange them."""
    return denormalise(session.latents()).transpose(1, 2)


class Direct:
    """Runs a graph without a host: each node of the pack becomes a few calls of `longlive`."""

    def __init__(self, graph: Graph, models: Path | None) -> None:
        self.graph, self.models, self.words = graph, models, HashedWords()

    def make_session(self, node_id: str) -> Session:
        type, inputs = self.graph[node_id]["class_type"], self.graph[node_id]["inputs"]
        match type:
            case "LongLiveSession":
                return self._start(inputs)
            case "LongLiveLoadSession":
                return self.make_session(inputs["name"][0])
        before = self.make_session(inputs["session"][0])
        match type:
            case "LongLiveSwitchPrompt":
                seed, blend = inputs.get("new_seed", SAME_SEED), read_blend(inputs)
                seed = None if seed == SAME_SEED else seed
                return before.switched_to(self._make_prompt(inputs), read_boundary(inputs), seed=seed, blend=blend)
            case "LongLiveChunkSampler":
                return self._make_sampler(node_id).sample(before, count_blocks(inputs, before))
            case "LongLiveFinish":
                *_, finished = before, *self._make_sampler(node_id).finish(before)
                return finished
            case "LongLiveTimeline" | "LongLiveLive":
                return self._follow(inputs["script"], before, self._make_sampler(node_id))
            case "LongLiveRewind":
                return before.rewound_to(count_blocks(inputs, before) * before.config.block)
            case "LongLiveSaveSession" | "TestFail":
                return before
        raise ValueError(f"{type} has no session as an output")

    def _start(self, inputs: Mapping) -> Session:
        model = self._load_model(inputs)
        return Session.start(
            self._make_prompt(inputs) if "conditioning" in inputs else None,
            model="direct",
            config=self._read_options(inputs),
            height=inputs["height"],
            width=inputs["width"],
            seed=inputs["seed"],
            dtype=model.dtype,
            channels=model.geometry.in_dim,
        )

    def _follow(self, script: str, session: Session, sampler: Sampler) -> Session:
        segments = parse_timeline(script, session.config.block)
        for segment, end in zip(segments, plan_ends(segments, len(session.blocks)), strict=True):
            prompt = Prompt.of(self.words(segment.prompt), segment.prompt)
            session = session.switched_to(prompt, segment.boundary, seed=segment.seed, blend=segment.blend)
            *_, session = session, *sampler.extend(session, segment.blocks, end)
        return session

    def _make_prompt(self, inputs: Mapping) -> Prompt:
        return Prompt.of(self.words(self.graph[inputs["conditioning"][0]]["inputs"]["text"]))

    def _read_options(self, inputs: Mapping) -> RolloutConfig:
        if "options" not in inputs:
            return RolloutConfig()
        values = dict(self.graph[inputs["options"][0]]["inputs"])
        assert values.pop("speed", "exact") == "exact"  # the only speed that `longlive` alone computes here
        steps = tuple(int(step) for step in values["steps"].split(","))
        kind = {label: kind for kind, label in KINDS.items()}[values.get("kind", "LongLive")]
        rolling = kind is RolloutKind.ROLLING
        positions = Positions.UNBOUNDED if rolling else Positions(values["positions"])
        return RolloutConfig(**values | {"steps": steps, "positions": positions, "kind": kind})

    def _make_sampler(self, node_id: str) -> Sampler:
        inputs = self.graph[node_id]["inputs"]
        while "model" not in inputs:
            inputs = self.graph[inputs["session"][0]]["inputs"]
        return Sampler(self._load_model(inputs))

    def _load_model(self, inputs: Mapping) -> CausalWan:
        item = self.graph[inputs["model"][0]]
        if item["class_type"] == "LongLiveMiniature":
            return load_miniature().model
        assert self.models is not None
        loader = item["inputs"]
        lora = loader.get("lora_name", NO_LORA)
        return load_causal_model(
            self.models / "diffusion_models" / loader.get("unet_name", loader.get("model_name")),
            None if lora == NO_LORA else self.models / "loras" / lora,
            loader.get("lora_strength", 1.0),
        )


@functools.cache
def load_causal_model(path: Path, lora: Path | None, strength: float) -> CausalWan:
    return CausalWan.of_tree(load_model(path, lora=lora, strength=strength)[0])


def read_boundary(inputs: Mapping) -> Boundary:
    recache = Boundary.RENEW if inputs["sink"] == "renew" else Boundary.RECACHE
    boundaries = {"recache": recache, "keep cache": Boundary.KEEP, "discard cache": Boundary.CUT}
    return boundaries.get(inputs["boundary"], Boundary.RECACHE)


def read_blend(inputs: Mapping) -> Blend | None:
    if inputs["boundary"] != "blend":
        return None
    return Blend(inputs["blend_blocks"], Curve(inputs["curve"]))


def count_blocks(inputs: Mapping, session: Session) -> int:
    length, block = inputs["length"], session.config.block
    match inputs["unit"]:
        case "seconds":
            return convert_seconds_to_blocks(length, block)
        case "frames":
            return int(length) // block
    return int(length)


def write_script(segments: Sequence[tuple[str, int]]) -> str:
    """Write the timeline script of the segments of a `chain`."""
    return "".join(f"{blocks}b | {text}\n" for text, blocks in segments)
