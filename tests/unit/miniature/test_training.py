"""The miniature's training continues where it was stopped, bit for bit."""

import json
import random
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace

import pytest
import torch
from patience import run_patiently, wait_until

from longlive.errors import WeightsError
from longlive.miniature.files import DIT
from longlive.miniature.training import export
from longlive.miniature.training.bank import FRAMES, EncodedClips, make_clip
from longlive.miniature.training.dit import DitRecipe, DitTraining, initialize_model
from longlive.miniature.training.lessons import BANK_PLAN, GEOMETRY
from longlive.miniature.training.rolling import OPENINGS_PLAN, RollingRecipe, RollingTraining
from longlive.miniature.training.streams import CONTROL, StreamRecipe, StreamTraining
from longlive.miniature.training.teacher import (
    CLIP_FRAMES,
    EncodedTeacherClips,
    TeacherRecipe,
    TeacherTraining,
    make_teacher_clip,
    open_teacher_clips,
)
from longlive.miniature.training.trainer import train
from longlive.miniature.training.vae import VaeRecipe, VaeTraining, decode_whole, encode_whole, initialize_vae
from longlive.model.vae import WanVAE
from longlive.model.vae_streams import decode, encode
from longlive.model.wan import WanModel

TINY_VAE = VaeRecipe(steps=4, batch=4, pixel_frames=5, warmup=2)
TINY_DIT = DitRecipe(
    steps=4, batch=2, own_from=0, own_every=1, own_share=(0.7, 0.7), warmup=2, openings=2, openings_from=0
)
TINY_STREAMS = StreamRecipe(
    steps=5, batch=2, openings=2, lessons=(0.7, 0.2, 0.1), streams=1, depths=(30, 36), own_every=2, own_held=1, warmup=2
)
TINY_ROLLING = RollingRecipe(
    steps=5, batch=2, openings=2, own_from=0.2, own_share=0.7, own_every=2, own_held=1, warmup=2
)
TINY_TEACHER = TeacherRecipe(steps=3, batch=1, warmup=1)


def random_bank(plan=BANK_PLAN):
    draw = torch.Generator().manual_seed(0)
    return {
        pattern: EncodedClips(
            tuple(make_clip(pattern, number) for number in range(3)),
            torch.randn(3, frames, 16, 8, 8, generator=draw).half(),
        )
        for pattern, (_, frames) in plan.items()
    }


def make_stream_training(recipe: StreamRecipe) -> StreamTraining:
    model = WanModel(GEOMETRY)
    initialize_model(model, torch.Generator().manual_seed(0))
    return StreamTraining(recipe, model, random_bank(), random_bank())


def make_rolling_training() -> RollingTraining:
    model = WanModel(GEOMETRY)
    initialize_model(model, torch.Generator().manual_seed(0))
    return RollingTraining(TINY_ROLLING, model, random_bank(), random_bank(), random_bank(OPENINGS_PLAN))


def random_clips():
    latents = torch.randn(4, CLIP_FRAMES, 16, 8, 8, generator=torch.Generator().manual_seed(0)).half()
    return EncodedTeacherClips(tuple(make_teacher_clip("goes on", number).prompt for number in range(4)), latents)


TRAININGS = {
    "vae": lambda: VaeTraining(TINY_VAE),
    "dit": lambda: DitTraining(TINY_DIT, random_bank(), random_bank()),
    "streams": lambda: make_stream_training(TINY_STREAMS),
    "control": lambda: make_stream_training(replace(TINY_STREAMS, lessons=CONTROL.lessons)),
    "rolling": make_rolling_training,
    "teacher": lambda: TeacherTraining(TINY_TEACHER, random_clips(), DIT),
}


@pytest.fixture(scope="module", params=TRAININGS)
def whole(request, tmp_path_factory):
    """A training without a stop; its checkpoint after the third step is in the folder."""
    training, folder = TRAININGS[request.param](), tmp_path_factory.mktemp(request.param)
    training.step(), training.step()
    with pytest.raises(KeyboardInterrupt):
        train(training, folder, request.param, save_every=0, on_save=interrupt)
    while not training.done:
        training.step()
    return request.param, training, folder


def test_law_a_resumed_training_gives_the_same_weights_bit_for_bit(whole):
    name, whole, folder = whole
    resumed = TRAININGS[name]()
    train(resumed, folder, name)
    assert resumed.done
    different = [key for key, value in whole.state().items() if not torch.equal(value, resumed.state()[key])]
    assert not different


def interrupt() -> None:
    raise KeyboardInterrupt


def test_the_state_of_a_training_is_small(whole):
    _, training, _ = whole
    num_bytes = sum(value.nbytes for value in training.state().values())
    if isinstance(training, DitTraining):  # as many rollouts as it keeps at most, of the largest batch
        full = DitRecipe()
        num_bytes += full.own_held * full.batch * FRAMES * 16 * 8 * 8 * 4
    if isinstance(training, StreamTraining):  # as many streams as go on at most, of the largest batch
        full, num_streams = StreamRecipe(), len(training.streams)
        of_streams = sum(value.nbytes for key, value in training.state().items() if key.startswith("streams."))
        num_bytes += of_streams * (
            full.streams * full.batch // (num_streams * TINY_STREAMS.batch) - 1 if num_streams else 0
        )
    assert num_bytes < 200e6


COUNTER = textwrap.dedent("""
    import sys, time
    from pathlib import Path
    import torch
    from longlive.miniature.training.trainer import train

    class Counter:
        num_steps = 0
        total, recipe = torch.zeros(2, dtype=torch.float64), "counting"
        @property
        def done(self):
            return self.num_steps >= 60
        def step(self):
            time.sleep(0.01)
            self.total = torch.sin(self.total + self.num_steps)
            self.num_steps += 1
            return {"total": self.total[0].item()}
        def state(self):
            return {"total": self.total}
        def restore(self, state, num_steps):
            self.total, self.num_steps = state["total"], num_steps

    counter = Counter()
    train(counter, Path(sys.argv[1]), "counter", save_every=0)
    print(counter.total.tolist())
""")


def test_law_a_training_killed_at_any_step_continues(tmp_path):
    def command(folder) -> list[str]:
        return [sys.executable, "-c", COUNTER, str(folder)]

    wanted = run_patiently(command(tmp_path / "whole"), "a training").stdout
    draw, state = random.Random(1), tmp_path / "killed" / "counter.state.safetensors"
    for _ in range(3):
        process = subprocess.Popen(command(tmp_path / "killed"))
        wait_until(state.exists, process.pid, "the first state is saved")
        time.sleep(draw.uniform(0.0, 0.2))
        process.send_signal(signal.SIGKILL)
        process.wait()
    found = run_patiently(command(tmp_path / "killed"), "the rest of a training").stdout
    assert found
    assert found == wanted
    lines = (tmp_path / "killed" / "counter.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [25, 50]
    assert not list((tmp_path / "killed").glob(".*.part"))


@torch.no_grad()
def test_folded_latents_have_wans_statistics_and_decode_to_the_same_pixels():
    vae = WanVAE(16).requires_grad_(False)
    initialize_vae(vae, torch.Generator().manual_seed(0))
    pixels = torch.rand(2, 5, 3, 16, 16) * 2 - 1
    z_BCTHW = encode_whole(vae, pixels.transpose(1, 2))
    wanted = decode_whole(vae, z_BCTHW).transpose(1, 2).clamp(-1, 1)
    export.fold_statistics(vae, z_BCTHW.mean((0, 2, 3, 4)), z_BCTHW.std((0, 2, 3, 4)))
    latents = encode(vae, pixels)
    torch.testing.assert_close(latents.mean((0, 1, 3, 4)), torch.zeros(16), atol=1e-4, rtol=0)
    torch.testing.assert_close(latents.std((0, 1, 3, 4)), torch.ones(16), atol=1e-4, rtol=0)
    torch.testing.assert_close(decode(vae, latents), wanted, atol=1e-4, rtol=0)


def test_a_state_of_another_recipe_and_a_damaged_one_are_refused(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(VaeTraining(TINY_VAE), tmp_path, "vae", save_every=0, on_save=interrupt)
    other = replace(TINY_VAE, steps=5)
    with pytest.raises(WeightsError, match=r"was made with another recipe .*steps=4.* than the one given .*steps=5"):
        train(VaeTraining(other), tmp_path, "vae")
    (tmp_path / "vae.state.safetensors").write_bytes(b"?" * 100)
    with pytest.raises(WeightsError, match=r"cannot be read: .*; delete it to make it again"):
        train(VaeTraining(TINY_VAE), tmp_path, "vae")


def test_training_decreases_the_loss():
    training = VaeTraining(VaeRecipe(steps=40, batch=2, pixel_frames=5, warmup=5))
    losses = [training.step()["loss"] for _ in range(20)]
    assert sum(losses[15:]) < 0.8 * sum(losses[:5])


def test_the_teachers_clips_begin_continue_and_change(tmp_path):
    vae = WanVAE(2)
    clips = open_teacher_clips(tmp_path, vae, 0.001)  # eight of each kind
    assert clips.latents.shape == (24, CLIP_FRAMES, 16, 8, 8)
    assert torch.equal(open_teacher_clips(tmp_path, vae, 0.001).latents, clips.latents)
    begins, continues, changed = (make_teacher_clip(kind, 3) for kind in ("begins", "goes on", "has changed"))
    assert begins.prompt == str(begins.clip.scenes[0][1])
    assert begins.clip.shift == (0, 0)
    assert continues.clip.shift != (0, 0)
    assert len(changed.clip.scenes) == 2
    assert changed.prompt == str(changed.clip.scenes[1][1])
