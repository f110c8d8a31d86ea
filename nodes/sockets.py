"""The pack's own socket types, and what travels on them."""

from dataclasses import dataclass, replace

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from torch import Tensor

from ..longlive.session import Session

SessionSocket = io.Custom("LONGLIVE_SESSION")
OptionsSocket = io.Custom("LONGLIVE_OPTIONS")


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
