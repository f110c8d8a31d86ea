"""LongLive Sessions: long videos made interactively, as nodes for ComfyUI."""

WEB_DIRECTORY = "./web"

if __package__:  # ComfyUI imports the folder as a package; test runners may import this file alone
    from .nodes import comfy_entrypoint

    __all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]
