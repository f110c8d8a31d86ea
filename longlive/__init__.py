"""LongLive (arXiv 2509.22622): long videos whose prompt changes while they run. Torch, never ComfyUI.

`docs/python.md` makes a video in ten lines with these names. A name loads its module on first use.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .config import Positions as Positions
    from .config import RolloutConfig as RolloutConfig
    from .errors import ConditioningError as ConditioningError
    from .errors import ConfigError as ConfigError
    from .errors import DataError as DataError
    from .errors import EvaluationError as EvaluationError
    from .errors import LongLiveError as LongLiveError
    from .errors import MessageError as MessageError
    from .errors import PositionError as PositionError
    from .errors import SamplingError as SamplingError
    from .errors import ScriptError as ScriptError
    from .errors import SessionError as SessionError
    from .errors import StoreError as StoreError
    from .errors import TimelineError as TimelineError
    from .errors import TuningError as TuningError
    from .errors import VideoError as VideoError
    from .errors import WeightsError as WeightsError
    from .live.director import Director as Director
    from .live.inbox import Inbox as Inbox
    from .live.messages import read_message as read_message
    from .live.pace import Pace as Pace
    from .live.take import Take as Take
    from .miniature.files import Miniature as Miniature
    from .miniature.files import load_miniature as load_miniature
    from .model.causal import CausalWan as CausalWan
    from .model.text_encoder import UMT5 as UMT5
    from .model.vae_streams import StreamingDecoder as StreamingDecoder
    from .rollout.sampler import Sampler as Sampler
    from .session.block_store import Store as Store
    from .session.boundary import Blend as Blend
    from .session.boundary import Boundary as Boundary
    from .session.boundary import Curve as Curve
    from .session.prompt import Prompt as Prompt
    from .session.prompt import encode_prompt_mix as encode_prompt_mix
    from .session.prompt import mix_prompts as mix_prompts
    from .session.script import write_script as write_script
    from .session.session import Session as Session
    from .session.session_file import NotASession as NotASession
    from .session.session_file import load_session as load_session
    from .session.session_file import save_session as save_session
    from .session.timeline import Segment as Segment
    from .session.timeline import parse_timeline as parse_timeline
    from .video.film import Film as Film
    from .video.render import VideoRenderer as VideoRenderer
    from .video.render import render_video as render_video
    from .video.writer import VideoWriter as VideoWriter
    from .weights.load import load_model as load_model
    from .weights.load_decoder import load_decoder as load_decoder
    from .weights.load_vae import load_vae as load_vae

__version__ = "0.1.0"

MODULES = {
    "config": ("Positions", "RolloutConfig"),
    "errors": (
        "ConditioningError",
        "ConfigError",
        "DataError",
        "EvaluationError",
        "LongLiveError",
        "MessageError",
        "PositionError",
        "SamplingError",
        "ScriptError",
        "SessionError",
        "StoreError",
        "TimelineError",
        "TuningError",
        "VideoError",
        "WeightsError",
    ),
    "live.director": ("Director",),
    "live.inbox": ("Inbox",),
    "live.messages": ("read_message",),
    "live.pace": ("Pace",),
    "live.take": ("Take",),
    "miniature.files": ("Miniature", "load_miniature"),
    "model.causal": ("CausalWan",),
    "model.text_encoder": ("UMT5",),
    "model.vae_streams": ("StreamingDecoder",),
    "rollout.sampler": ("Sampler",),
    "session.block_store": ("Store",),
    "session.boundary": ("Blend", "Boundary", "Curve"),
    "session.prompt": ("Prompt", "encode_prompt_mix", "mix_prompts"),
    "session.script": ("write_script",),
    "session.session": ("Session",),
    "session.session_file": ("NotASession", "load_session", "save_session"),
    "session.timeline": ("Segment", "parse_timeline"),
    "video.film": ("Film",),
    "video.render": ("VideoRenderer", "render_video"),
    "video.writer": ("VideoWriter",),
    "weights.load": ("load_model",),
    "weights.load_decoder": ("load_decoder",),
    "weights.load_vae": ("load_vae",),
}


def __getattr__(name: str) -> object:
    for module, names in MODULES.items():
        if name in names:
            return getattr(importlib.import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *(name for names in MODULES.values() for name in names)])
