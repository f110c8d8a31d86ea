"""What the passes of a video share is made once, and is what every pass would make."""

import pkgutil
from collections import Counter
from typing import cast

import pytest
import tiny
import torch

from longlive.config import Positions, RolloutConfig
from longlive.model.causal import CausalWan
from longlive.model.wan import WanModel
from longlive.rollout.rollout import Rollout
from longlive.rollout.sampler import Sampler


@pytest.mark.parametrize("positions", list(Positions))
def test_what_the_passes_of_a_video_share_is_made_once(positions, monkeypatch):
    """The modulations of a timestep once a video; the rotary tables, and the moved sink, once a block."""
    made = Counter()
    count_calls(monkeypatch, made, "longlive.model.causal.make_sinusoid", "longlive.model.causal.make_table")
    count_calls(monkeypatch, made, "longlive.rollout.kv_cache.UnboundedLayerKVCache.move_sink")
    model, blocks = tiny.model(), 9
    with Sampler(model) as sampler:
        sampler.sample(tiny.session(RolloutConfig(positions=positions)), blocks)
    moved = blocks - 4 if positions is Positions.UNBOUNDED else 0  # blocks after the window is full
    assert made["make_sinusoid"] == len(RolloutConfig().steps) + 1  # and that of clean passes
    assert made["make_table"] == blocks + moved
    assert made["move_sink"] == moved * model.geometry.num_layers


def count_calls(monkeypatch, made: Counter, *names: str) -> None:
    """Count the calls of functions, by the last part of their names."""
    for name in names:
        function = pkgutil.resolve_name(name)

        def call(*args, function=function):
            made[function.__name__] += 1
            return function(*args)

        monkeypatch.setattr(name, call)


@pytest.mark.parametrize("positions", list(Positions))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_made_once_equals_what_every_pass_makes(positions, dtype, monkeypatch):
    """Bit for bit, over a switch, a renewed sink and a cut; rebuilt for every segment, too."""
    config = RolloutConfig(window=8, sink=5, block=2, steps=(1000, 500), context_noise=40.0, positions=positions)
    model = tiny.model()
    model = CausalWan.of_tree(cast(WanModel, model.tree).to(dtype))

    def sample_story(rebuilt: bool) -> torch.Tensor:
        video, sampler = tiny.session(config, dtype=dtype), Sampler(model)
        for number, (blocks, boundary) in enumerate(tiny.STORY):
            video = video.switched_to(tiny.prompt(number), boundary) if boundary else video
            video = sampler.sample(video, blocks)
            if rebuilt:
                sampler.close()
        sampler.close()
        return video.latents()

    shared, rebuilt = sample_story(False), sample_story(True)
    run_pass = Rollout._pass

    def share_nothing(rollout: Rollout, *args, **kwargs):
        rollout._modulations.clear()
        rollout._rotation, rollout.cache.sink_start = None, -1
        return run_pass(rollout, *args, **kwargs)

    monkeypatch.setattr(Rollout, "_pass", share_nothing)
    assert torch.equal(shared, sample_story(False))
    assert torch.equal(shared, rebuilt)
