"""The table of our nodes as saved workflows know them: ids, inputs with types, order and defaults, outputs.

Titles and tooltips may change freely, so they are not in it. After an intended change, write it again with

    python tests/host/node_table.py
"""

import json
from collections.abc import Mapping
from pathlib import Path

from host_process import ComfyUI

TABLE = Path(__file__).parent / "object_info.json"
PREFIX = "LongLive"
FREE = {"advanced", "display_name", "hidden", "placeholder", "tooltip"}  # what may change at any time


def list_promises(object_info: Mapping[str, dict], prefix: str = PREFIX) -> dict[str, dict]:
    """Reduce `/object_info` to what a saved workflow depends on."""
    return {id: describe_node(info) for id, info in sorted(object_info.items()) if id.startswith(prefix)}


def describe_node(info: Mapping) -> dict:
    order = {kind: names for kind, names in info["input_order"].items() if kind != "hidden"}
    return {
        "inputs": [
            {"name": name, "kind": kind, **describe_input(*info["input"][kind][name])}
            for kind, names in order.items()
            for name in names
        ],
        "outputs": list(info["output"]),
        "lists": list(info["output_is_list"]),
        "output_node": info["output_node"],
    }


def describe_input(type: str | list, options: Mapping | None = None) -> dict:
    """Describe an input; an old style combo, a list in place of a type, becomes the new style."""
    rest = drop_free(options or {})
    return {"type": "COMBO", "options": type} | rest if isinstance(type, list) else {"type": type} | rest


def drop_free(value):
    match value:
        case dict():
            return {key: drop_free(item) for key, item in value.items() if key not in FREE and item is not None}
        case list() | tuple():
            return [drop_free(item) for item in value]
        case _:
            return value


def main() -> None:
    with ComfyUI() as host:
        TABLE.write_text(json.dumps(list_promises(host.object_info()), indent=1) + "\n")


if __name__ == "__main__":
    main()
