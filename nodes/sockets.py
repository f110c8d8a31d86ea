"""The pack's own socket types, and what travels on them."""

from dataclasses import dataclass, replace

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from torch import Tensor

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
