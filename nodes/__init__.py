"""The pack as ComfyUI sees it: every node, gathered from the modules that define them."""

from comfy_api.latest import ComfyExtension, io

from . import files, load, miniature, options, output, sample, session, tune
from .sockets import refuse_literals

MODULES = (load, miniature, session, options, sample, output, files, tune)


class LongLiveExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [refuse_literals(node) for module in MODULES for node in module.NODES]


async def comfy_entrypoint() -> LongLiveExtension:
    return LongLiveExtension()
