"""The pack's own socket types, and what travels on them."""

import functools
from dataclasses import dataclass, replace

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from torch import Tensor

from ..longlive.errors import ConfigError
from ..longlive.printable import brief
from ..longlive.session import Session
from ..longlive.tune.data import PromptPair
from ..longlive.tune.tuning import EmbeddedPair

SessionSocket = io.Custom("LONGLIVE_SESSION")
OptionsSocket = io.Custom("LONGLIVE_OPTIONS")
PairsSocket = io.Custom("LONGLIVE_PAIRS")


@dataclass(frozen=True)
class LiveSession:
    """A session beside the MODEL it was made with. A value: nodes return a new one, and change none."""

    session: Session
    model: ModelPatcher

    def with_session(self, session: Session) -> "LiveSession":
        return replace(self, session=session)

    def get_models(self) -> list[ModelPatcher]:
        """ComfyUI's hook for objects that keep a model alive."""
        return [self.model]

    def _comfy_cache_tensors(self) -> list[Tensor]:
        """ComfyUI's hook to weigh what its cache holds."""
        return [*self.session.blocks, *(switch.prompt.embedding for switch in self.session.switches)]


@dataclass(frozen=True)
class Pairs:
    """Prompt pairs, as texts and as embeddings, and the prompt that a teacher is guided away from."""

    texts: tuple[PromptPair, ...]
    embedded: tuple[EmbeddedPair, ...]
    negative: str
    unprompted: Tensor  # embedding [L, D]

    def _comfy_cache_tensors(self) -> list[Tensor]:
        return [self.unprompted, *(half for pair in self.embedded for half in (pair.first, pair.second))]


def refuse_literals(node: type[io.ComfyNode]) -> type[io.ComfyNode]:
    """Let a node refuse what only an API prompt can give: a value written where an output must be connected."""
    sockets = [entry for entry in node.define_schema().inputs if not isinstance(entry, io.WidgetInput)]
    execute = node.execute.__func__

    @functools.wraps(execute)
    def checked(cls: type[io.ComfyNode], **inputs: object) -> io.NodeOutput:
        for socket in sockets:
            value = inputs.get(socket.id)
            if socket.id in inputs and not (value is None and socket.optional) and is_literal(value):
                raise ConfigError(f"{socket.id} is {brief(repr(value))}; connect the output of a node to it")
        return execute(cls, **inputs)

    node.execute = classmethod(checked)
    return node


def is_literal(value: object) -> bool:
    """Whether a value is JSON and not what a node gives. A CONDITIONING is a list of pairs that begin with a tensor."""
    if isinstance(value, list):
        pairs = all(isinstance(pair, (list, tuple)) and pair and isinstance(pair[0], Tensor) for pair in value)
        return not (value and pairs)
    return value is None or isinstance(value, (bool, int, float, str, dict))
