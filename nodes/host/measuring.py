"""Measures a finished video for a node: its drift and a contact sheet, from the fragments that Decode takes."""

from typing import NamedTuple

import comfy.sd
import numpy as np
import torch
from comfy_execution.graph_utils import ExecutionBlocker
from torch import Tensor

from ...longlive.evaluation.drift_log import DriftLog, mark_switches, tabulate_blocks
from ...longlive.session.boundary import spell_beginning
from ...longlive.session.session import Session
from ...longlive.units import FPS, count_pixel_frames
from ...longlive.video.render import render_video
from .contact_sheet import Caption, ContactSheet
from .model import Model
from .rendering import open_renderer
from .sampling import show_progress


class Measurement(NamedTuple):
    """What is shown of a measured video."""

    text: str
    drift: dict  # for the chart
    sheet_1HW3: Tensor  # 0..1


def measure_session(model: Model, vae: comfy.sd.VAE, session: Session) -> Measurement:
    """Measure a video that has frames; fragments that Decode or a film has made are taken, others are kept for them.

    Raises WeightsError for a VAE that cannot decode it.
    """
    sheet = ContactSheet(session.pixel_frames, FPS)
    log = DriftLog(watch=sheet.add)
    log.expect(mark_switches(session))
    render_video(show_progress(session.blocks), open_renderer(model, vae, session, log))
    faults = [block.first_frame for block in log.measured if block.fault]
    verdict = log.warnings or ["neither drift nor freeze nor jump is found"]
    text = "\n".join([*(f"drift: {sentence}" for sentence in verdict), "", str(tabulate_blocks(log.measured, FPS))])
    return Measurement(text, log.as_dict(), to_image(sheet.draw(list_captions(session), faults)))


def list_captions(session: Session) -> list[Caption]:
    return [
        Caption(
            count_pixel_frames(switch.frame),
            str(switch) if switch.frame else spell_beginning(switch.seed),
            str(switch.prompt),
        )
        for switch in session.switches
        if switch.frame < session.num_frames
    ]


def to_image(picture) -> Tensor:
    """Convert a picture to an IMAGE of ComfyUI [1, H, W, 3], 0..1."""
    return torch.from_numpy(np.asarray(picture).copy()).unsqueeze(0) / 255


def refuse_output(reason: str) -> ExecutionBlocker:
    """Make an output that stops the nodes behind it, with a reason."""
    return ExecutionBlocker(reason)
