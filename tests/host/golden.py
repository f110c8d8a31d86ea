"""The table of our nodes as saved workflows know them: ids, inputs with types, order and defaults, outputs.

Titles and tooltips may improve freely and are not in it. After a change that is meant, write it anew with

    python tests/host/golden.py
"""

import json
from collections.abc import Mapping
from pathlib import Path

from comfy import ComfyUI

GOLDEN = Path(__file__).parent / "object_info.json"
PREFIX = "LongLive"
FREE = {"advanced", "display_name", "hidden", "placeholder", "tooltip"}  # what may change at any time


def promises(object_info: Mapping[str, dict], prefix: str = PREFIX) -> dict[str, dict]:
    """Reduce `/object_info` to what a saved workflow depends on."""
    return {id: promise(info) for id, info in sorted(object_info.items()) if id.startswith(prefix)}


def promise(info: Mapping) -> dict:
    order = {kind: names for kind, names in info["input_order"].items() if kind != "hidden"}
    return {
        "inputs": [
            {"name": name, "kind": kind, **socket(*info["input"][kind][name])}
            for kind, names in order.items()
            for name in names
        ],
        "outputs": list(info["output"]),
        "lists": list(info["output_is_list"]),
        "output_node": info["output_node"],
    }


def socket(type: str | list, options: Mapping | None = None) -> dict:
    """Describe an input; an old style combo, a list in place of a type, becomes the new style."""
    rest = without_free(options or {})
    return {"type": "COMBO", "options": type} | rest if isinstance(type, list) else {"type": type} | rest


def without_free(value):
    match value:
        case dict():
            return {key: without_free(item) for key, item in value.items() if key not in FREE and item is not None}
        case list() | tuple():
            return [without_free(item) for item in value]
        case _:
            return value


def main() -> None:
    with ComfyUI() as host:
        GOLDEN.write_text(json.dumps(promises(host.object_info()), indent=1) + "\n")


if __name__ == "__main__":
    main()
