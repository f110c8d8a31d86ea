"""The pack's socket types, and the sessions that travel on them."""

import functools
from dataclasses import dataclass, field, replace

from comfy_api.latest import io
from torch import Tensor

from ..longlive.config import RolloutConfig
from ..longlive.errors import ConfigError, SessionError, shorten
from ..longlive.model.speed import Speed
from ..longlive.session.session import Session
from .host.model import Model

SessionSocket = io.Custom("LONGLIVE_SESSION")
OptionsSocket = io.Custom("LONGLIVE_OPTIONS")
PairsSocket = io.Custom("LONGLIVE_PAIRS")


@dataclass(frozen=True)
class SessionOptions:
    """What LongLive Options sets."""

    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    speed: Speed = Speed.EXACT


@dataclass(frozen=True)
class LiveSession:
    """A session with the MODEL it was made with. Immutable: a node returns a new one."""

    session: Session
    model: Model

    def with_session(self, session: Session) -> "LiveSession":
        return replace(self, session=session)

    def check_has_frames(self) -> None:
        """Raise SessionError for a session without frames."""
        if not self.session.blocks:
            raise SessionError("the session has no frames yet; connect a LongLive Chunk Sampler or Timeline before it")

    def get_models(self) -> list[Model]:
        """ComfyUI's hook for objects that keep a model alive."""
        return [self.model]

    def _comfy_cache_tensors(self) -> list[Tensor]:
        """ComfyUI's hook to weigh what its cache holds."""
        prompts = [prompt for switch in self.session.switches for prompt in (switch.prompt, switch.before) if prompt]
        return [*self.session.blocks, *(prompt.embedding for prompt in prompts)]


def refuse_literals(node: type[io.ComfyNode]) -> type[io.ComfyNode]:
    """Let a node refuse a plain value in an input that needs another node's output. Only an API prompt has such."""
    sockets = [entry for entry in node.define_schema().inputs if not isinstance(entry, io.WidgetInput)]
    execute = node.execute.__func__

    @functools.wraps(execute)
    def check_and_execute(cls: type[io.ComfyNode], **inputs: object) -> io.NodeOutput:
        for socket in sockets:
            value = inputs.get(socket.id)
            if socket.id in inputs and not (value is None and socket.optional) and is_literal(value):
                raise ConfigError(
                    f"{socket.id} is {shorten(repr(value))}, a plain value; connect the output of a node to it"
                )
        return execute(cls, **inputs)

    node.execute = classmethod(check_and_execute)
    return node


def is_literal(value: object) -> bool:
    """Whether a value is plain JSON, not a node's output.

    The only list that is an output is a CONDITIONING: pairs that begin with a tensor.
    """
    if isinstance(value, list):
        pairs = all(isinstance(pair, (list, tuple)) and pair and isinstance(pair[0], Tensor) for pair in value)
        return not (value and pairs)
    return value is None or isinstance(value, (bool, int, float, str, dict))
