"""Checks of when previews are shown, and of what the host waits for meanwhile; run inside a host."""

from collections.abc import Callable

import comfy.latent_formats
import comfy.utils
import latent_preview
import numpy as np
import pytest
import torch
from comfy.cli_args import LatentPreviewMethod, args
from comfy.model_patcher import ModelPatcher
from comfyui_longlive.longlive.config import RolloutConfig
from comfyui_longlive.longlive.model.causal import CausalWan
from comfyui_longlive.longlive.model.placement import Placement
from comfyui_longlive.longlive.model.tiny_vae import LatentSpace, TinyDecoder, TinyVAE
from comfyui_longlive.longlive.model.wan import WanModel
from comfyui_longlive.longlive.rollout.rollout import Pass, PassKind
from comfyui_longlive.longlive.rollout.sampler import Sampler
from comfyui_longlive.nodes.host import sampling, tiny_vae
from compute import begin_session
from identity import load_model
from model_files import GEOMETRY
from tiny_vae_weights import make_tiny_vae_weights
from wait_recorder import WAIT, WaitRecorder

STEPS = range(len(RolloutConfig().steps))


def check_no_step_waits_for_its_preview() -> None:
    """The host waits for the GPU once a block, and shows each picture a pass later."""
    for previewer in (make_rgb_previewer(), make_tiny_previewer()):
        recorder = WaitRecorder()
        model = CausalWan.of_tree(WanModel(GEOMETRY, device="meta").requires_grad_(False))
        session = begin_session(load_model())
        with pytest.MonkeyPatch.context() as patch:
            progress = watch_progress(patch, previewer, lambda _, recorder=recorder: recorder.events.append("picture"))

            def watch(done: Pass, recorder=recorder, progress=progress) -> None:
                recorder.add_pass(done)
                progress.add_pass(done)

            with recorder:
                Sampler(model, watch=watch).sample(session, 3)
            progress.show_last()
        first, *later = (f"denoise {step}" for step in STEPS)
        steps = [first, *(event for step in later for event in (step, "picture")), WAIT]
        assert recorder.events == [*steps, *["clean 0", "picture", *steps] * 2, "picture"], recorder.events


def check_every_step_is_shown_once_and_in_order() -> None:
    """The pictures are those of the clean latents of every step."""
    pictures, expected, previewer = [], [], make_rgb_previewer()
    with pytest.MonkeyPatch.context() as patch:
        progress = watch_progress(patch, previewer, lambda picture: pictures.append(np.asarray(picture[1])))

        def watch(done: Pass) -> None:
            if done.clean is not None:
                expected.append(np.asarray(previewer.draw(previewer.prepare(done.clean))[1]))
            progress.add_pass(done)

        patcher = load_model()
        Sampler(sampling.as_causal_model(patcher), watch=watch).sample(begin_session(patcher), 2)
        progress.show_last()
        progress.show_last()  # nothing is left to show
        assert progress.bar.current == 2 * len(STEPS)
    assert len(pictures) == 2 * len(STEPS)
    assert all(np.array_equal(*pair) for pair in zip(pictures, expected, strict=True))
    assert len({picture.tobytes() for picture in pictures}) == len(pictures)


def check_a_joint_pass_shows_its_oldest_block() -> None:
    """The newest block of a rolling video is noise."""
    levels = torch.arange(5).repeat_interleave(3).view(1, 15, 1, 1, 1).expand(1, 15, 16, 2, 2).float()
    shown, previewer = [], make_rgb_previewer()
    with pytest.MonkeyPatch.context() as patch:
        progress = watch_progress(patch, previewer, lambda _: None)
        patch.setattr(previewer, "prepare", lambda latents: shown.append(latents) or latents)
        place = Placement(0, 15, (), (), 0, passing=True)
        progress.add_pass(Pass(PassKind.DENOISE, place, 0, (), flow=None, clean=levels))
    assert torch.equal(shown[0], torch.zeros(1, 3, 16, 2, 2))


def watch_progress(
    patch: pytest.MonkeyPatch, previewer: tiny_vae.Previewer, add_picture: Callable[[tuple], object]
) -> sampling.Progress:
    """Make the progress of a MODEL that is always loaded, which hands on every picture that it shows."""
    update = comfy.utils.ProgressBar.update_absolute

    def update_absolute(bar: comfy.utils.ProgressBar, value: int, total=None, preview=None) -> None:
        if preview:
            add_picture(preview)
        update(bar, value, total, preview)

    patcher = ModelPatcher.__new__(ModelPatcher)
    patch.setattr(comfy.utils.ProgressBar, "update_absolute", update_absolute)
    patch.setattr(sampling, "create_previewer", lambda _: previewer)
    patch.setattr(sampling.comfy.model_management, "loaded_models", lambda: [patcher])
    return sampling.Progress(patcher, 2 * len(STEPS), RolloutConfig(), previews=True)


def make_rgb_previewer() -> tiny_vae.Previewer:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(args, "preview_method", LatentPreviewMethod.Latent2RGB)
        return tiny_vae.HostPreviewer(latent_preview.get_previewer(torch.device("cpu"), comfy.latent_formats.Wan21()))


def make_tiny_previewer() -> tiny_vae.Previewer:
    """Make our previewer by a tiny VAE, on the meta device."""
    previewer = tiny_vae.TinyPreviewer.__new__(tiny_vae.TinyPreviewer)
    vae = TinyVAE.of_weights(make_tiny_vae_weights(torch.float32), LatentSpace.NETWORK).to("meta")
    previewer.decoder = TinyDecoder(vae, at_once=1)
    return previewer
