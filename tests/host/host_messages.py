"""What is sent to ComfyUI and what comes back: graphs, events, the history of a prompt, errors."""

import json
from collections.abc import Mapping
from dataclasses import dataclass

BINARY_PREVIEW, BINARY_TEXT, BINARY_PREVIEW_WITH_METADATA = 1, 3, 4  # the first number of a binary message

Graph = Mapping[str, Mapping[str, object]]  # a prompt in API format


class HostError(RuntimeError):
    """The host refused a prompt or failed in it; the text is the host's own."""


class Interrupted(HostError):
    """The prompt was interrupted."""


@dataclass(frozen=True, slots=True)
class Event:
    """One message of the web socket.

    A preview has type `preview`, its metadata and the bytes of the image file. A text that a node shows below itself
    has type `note`, with `node` and `text`.
    """

    type: str
    data: dict
    image: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """What happened while one prompt ran."""

    prompt_id: str
    outputs: dict[str, dict]  # node id -> what it showed in the interface
    executed: tuple[str, ...]  # ids of the nodes that ran, in order
    cached: tuple[str, ...]  # ids of the nodes answered from the host's cache
    events: tuple[Event, ...]  # its messages
    messages: tuple[tuple[str, dict], ...]  # the host's own record of them

    @property
    def previews(self) -> tuple[bytes, ...]:
        return tuple(event.image for event in self.events if event.type == "preview")

    def text(self, node_id: str) -> str:
        """The text a node showed."""
        return "\n".join(self.outputs[node_id]["text"])


def parse_message(message: str | bytes) -> Event | None:
    """Read one message of the web socket; None if it has no content."""
    if not message:
        return None
    if isinstance(message, str):
        content = json.loads(message)
        return Event(content["type"], content.get("data") or {})
    kind, length = int.from_bytes(message[:4], "big"), int.from_bytes(message[4:8], "big")
    if kind == BINARY_PREVIEW_WITH_METADATA:
        return Event("preview", json.loads(message[8 : 8 + length]), message[8 + length :])
    if kind == BINARY_TEXT:
        return Event("note", {"node": message[8 : 8 + length].decode(), "text": message[8 + length :].decode()})
    return Event("preview", {}, message[8:]) if kind == BINARY_PREVIEW else None
