"""The pack as ComfyUI sees it: every node, from the modules that define them."""

from comfy_api.latest import ComfyExtension, io

from . import decode, live, models, options, sampling, session, session_files, tuning
from .host.film_routes import add_film_routes
from .host.films import find_server
from .host.live_routes import add_live_routes
from .sockets import refuse_literals

NODE_MODULES = (models, session, options, sampling, live, decode, session_files, tuning)


class LongLiveExtension(ComfyExtension):
    async def on_load(self) -> None:
        if server := find_server():
            add_film_routes(server.routes)
            add_live_routes(server.routes)

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [refuse_literals(node) for module in NODE_MODULES for node in module.NODES]


async def comfy_entrypoint() -> LongLiveExtension:
    return LongLiveExtension()
