"""The miniature's text encoder as a CLIP, and the notes it shows on the node that encodes."""

from comfy_execution.utils import get_executing_context

from ...longlive.miniature.grammar import find_problems, parse_prompt
from ...longlive.miniature.text import MiniatureText


class MiniatureCLIP:
    """The part of a CLIP that text nodes use. It has no weights; it shows on the node how it reads a prompt."""

    def __init__(self) -> None:
        self.encoder, self.notes = MiniatureText(), Notes()

    def clone(self) -> "MiniatureCLIP":
        return MiniatureCLIP()

    def tokenize(self, text: str, **_) -> str:
        return text

    def encode_from_tokens_scheduled(self, tokens: str, **_) -> list[list]:
        """Return a CONDITIONING with the embedding [1, 512, 4096]; `tokens` is the prompt itself."""
        if tokens.strip():  # an empty one is a negative prompt
            for note in find_problems(tokens) or [f"understood: {parse_prompt(tokens)}"]:
                self.notes.add(note)
        return [[self.encoder(tokens), {"pooled_output": None}]]


class Notes:
    """Text below the node that runs. A page keeps a node's last text, so a right prompt gets one too, to replace it."""

    def __init__(self) -> None:
        self.context, self.lines = None, []

    def add(self, line: str) -> None:
        context = get_executing_context()
        if context is None:  # called outside a node, maybe without a server
            return
        from server import PromptServer

        if context != self.context:
            self.context, self.lines = context, []
        self.lines.append(line)
        PromptServer.instance.send_progress_text("\n".join(self.lines), context.node_id)
