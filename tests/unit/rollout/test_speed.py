"""What must be built in for speed: no needless work, constant bytes, nothing allocated or waited for in a block."""

from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file
from true_size import HEIGHT, WIDTH, make_latents, make_network, make_prompt, make_rollout
from work_counter import count_work

from longlive.config import Positions, RolloutConfig
from longlive.model.causal import CausalWan
from longlive.model.wan import WanModel
from longlive.rollout.rollout import Rollout
from longlive.rollout.sampler import Sampler, count_cache_bytes
from longlive.weights.load import build_model
from longlive.weights.lora import Lora
from longlive.weights.weights_file import normalise_names, read_weights_file


@pytest.fixture(scope="module")
def true_size() -> CausalWan:
    """The 1.3B network without its weights."""
    return make_network()


def test_a_lora_adds_no_work():
    """Loaded with its adapter a model does the same work as without: it is merged, not carried along."""
    folder = Path(__file__).parents[2] / "reference"
    weights, recorded = read_weights_file(folder / "weights_causal.safetensors"), load_file(folder / "lora.safetensors")
    adapter = {key.removeprefix("lora."): x for key, x in recorded.items() if key.startswith("lora.")}
    lora = Lora.of_weights_file(replace(weights, tensors=normalise_names(adapter)))

    def work_of(tree: WanModel) -> int:
        model = CausalWan.of_tree(tree.to("meta"))
        rollout = Rollout(model, RolloutConfig(), (1, 16, 4, 6))
        text = model.read_prompt(torch.zeros(1, 8, 24))
        return count_work(lambda: rollout.clean_pass(0, torch.zeros(1, 3, 16, 4, 6), text)).flops

    plain, merged = (build_model(weights, lora=chosen)[0] for chosen in (None, lora))
    assert not torch.equal(plain.blocks[0].self_attn.q.weight, merged.blocks[0].self_attn.q.weight)
    assert work_of(plain) == work_of(merged) > 0


def test_a_window_of_12_frames_takes_3_45_gigabytes(true_size):
    config = RolloutConfig()
    rollout = make_rollout(true_size, config)
    assert rollout.cache.num_bytes == count_cache_bytes(true_size, config, HEIGHT, WIDTH)
    assert round(rollout.cache.num_bytes / 1e9, 2) == 3.45


@pytest.mark.parametrize("positions", list(Positions))
def test_announced_bytes_are_those_allocated(positions):
    model, config = tiny.model(), RolloutConfig(window=7, sink=2, block=1, positions=positions)
    assert Rollout(model, config, (1, 16, 2, 4)).cache.num_bytes == count_cache_bytes(model, config, 16, 32)


def test_the_cache_is_written_in_place():
    """Over blocks, a switch and a cut the keys stay where they were allocated."""
    sampler = Sampler(tiny.model())
    video, places = tiny.session(), set()
    for boundary in (None, tiny.Boundary.RECACHE, tiny.Boundary.RENEW, tiny.Boundary.CUT):
        video = video.switched_to(tiny.prompt(1), boundary) if boundary else video
        for longer in sampler.extend(video, 5):
            video, layers = longer, sampler._rollout.cache.layers
            places.add(tuple(x.data_ptr() for layer in layers for x in (layer.k_BSNH, layer.v_BSNH)))
    assert len(places) == 1


def test_law_6_work_and_memory_of_a_block_stay_constant(true_size):
    rollout = make_rollout(true_size, RolloutConfig(positions=Positions.UNBOUNDED))
    text, noise = true_size.read_prompt(make_prompt()), lambda block, step: make_latents(3)
    rollout.denoise(297, text, noise, 0)  # the first block also embeds the timesteps
    work, held = zip(
        *(
            (count_work(lambda s=start: rollout.denoise(s, text, noise, 0)).flops, rollout.cache.num_bytes)
            for start in (300, 3_000_000)
        ),
        strict=True,
    )
    assert work[0] == work[1]
    assert held[0] == held[1] == count_cache_bytes(true_size, rollout.config, HEIGHT, WIDTH)


@pytest.mark.parametrize("positions", list(Positions))
def test_the_forward_of_a_block_is_one_graph(positions):
    """No host synchronisation and no Python between kernels: it compiles with fullgraph, and to the same numbers."""
    torch.compiler.reset()
    model = tiny.model()
    config = RolloutConfig(positions=positions)
    rollout = Rollout(model, config, (1, 16, 2, 4))
    text = model.read_prompt(tiny.prompt(0).pad())
    forward = torch.compile(CausalWan.forward, fullgraph=True, backend="eager")
    x = torch.randn(1, 3, 16, 2, 4)
    for start in (0, 12, 15, 18):
        place = rollout.window.place_block(start, config.block)
        with torch.no_grad():
            plain = rollout._pass(x, (625.0,), text, place)
            shared = rollout._find_modulations(x, (625.0,)), rollout._find_rotation(x, place)
            assert torch.equal(forward(model, x, text, rollout.cache, place, *shared), plain)
