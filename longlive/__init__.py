"""LongLive (arXiv 2509.22622): long videos whose prompt changes while they run. Torch, never ComfyUI."""

__version__ = "0.1.0"
