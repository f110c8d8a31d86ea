"""An empty torchaudio: ComfyUI imports it at start; no test touches sound."""

from . import functional, transforms

__all__ = ["functional", "transforms"]
__version__ = "0"
