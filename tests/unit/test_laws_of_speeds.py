"""The laws of the design hold for whatever computes a video: operations joined by us or a compiler, 8-bit linears."""

import shutil
from collections.abc import Callable
from dataclasses import replace

import pytest
import tiny
import torch
from kitchen_stand_in import install_kitchen

from longlive.config import Positions, RolloutConfig
from longlive.model.causal import CausalWan
from longlive.model.compiled import compile_model
from longlive.model.eight_bit import EightBit
from longlive.model.fused import is_onednn_usable
from longlive.rollout.sampler import Sampler
from longlive.session.block_store import Store
from longlive.session.boundary import Boundary
from longlive.session.session import Session
from longlive.weights.quantise import is_linear_of_layer, make_empty_model, quantise_linear

GEOMETRY = replace(tiny.GEOMETRY, num_layers=2)  # Triton's interpreter takes a millisecond for a token
EXACT = tiny.model(GEOMETRY)
CONFIG = RolloutConfig(window=6, sink=3)
STORY = ((3, None), (1, Boundary.KEEP), (2, Boundary.RECACHE), (1, Boundary.CUT))


def join_operations() -> CausalWan:
    if not is_onednn_usable(torch.float32):
        pytest.skip("oneDNN does not run here")
    return CausalWan.of_tree(EXACT.tree, joined=True)


def use_triton() -> CausalWan:
    pytest.importorskip("triton")
    from longlive.model.triton_form import TRITON

    device = "cuda" if torch.cuda.is_available() else "cpu"  # on a CPU, in Triton's interpreter
    model = CausalWan.of_tree(tiny.model(GEOMETRY).tree.to(device))
    return replace(model, pointwise=TRITON, kernel=f"{model.kernel} {TRITON.name}")


def compile_layers() -> CausalWan:
    if not shutil.which("g++"):
        pytest.skip("inductor needs g++ on a CPU")
    model, said = compile_model(EXACT)
    assert said == "compiled by inductor"
    return model


def round_linears() -> CausalWan:
    state = {}
    for name, weight in EXACT.tree.state_dict().items():
        state |= quantise_linear(name, weight, EightBit.INT8) if is_linear_of_layer(name) else {name: weight}
    tree = make_empty_model(GEOMETRY, state, "tiny")
    tree.load_state_dict({name: tensor for name, tensor in state.items() if "comfy_quant" not in name}, assign=True)
    return CausalWan.of_tree(tree.requires_grad_(False))


WARNINGS_OF_INDUCTOR = pytest.mark.filterwarnings("default")  # of how PyTorch uses itself
FORMS = [join_operations, use_triton, pytest.param(compile_layers, marks=WARNINGS_OF_INDUCTOR), round_linears]


@pytest.fixture(params=FORMS, ids=lambda make: make.__name__)
def model(request, monkeypatch) -> CausalWan:
    install_kitchen(monkeypatch)
    make: Callable[[], CausalWan] = request.param
    return make()


def begin_video(config: RolloutConfig = CONFIG) -> Session:
    return tiny.session(config, width=16)


def make_story(model: CausalWan, *, cut: bool = False, store: Store | None = None, last: int | None = None) -> Session:
    """Make the video of the story; cut into samplers of one block, or with another last prompt."""
    video, sampler = begin_video(), Sampler(model, store=store)
    for number, (blocks, boundary) in enumerate(STORY):
        if boundary:
            is_last = last is not None and number == len(STORY) - 1
            video = video.switched_to(tiny.prompt(last if is_last else number), boundary)
        for _ in range(blocks):
            sampler = Sampler(model, store=store) if cut else sampler
            video = sampler.sample(video, 1)
    return video


def test_laws_3_and_4(model, tmp_path):
    exact, whole = make_story(EXACT).latents(), make_story(model, store=Store(tmp_path)).latents()
    error = float((whole - exact).norm() / exact.norm())
    assert 0 < error < (0.1 if "int8" in model.kernel else 1e-4), "near what is exact, and not that"
    assert model.kernel != EXACT.kernel, "law 3: its blocks are not taken for exact ones"
    assert torch.equal(make_story(model, cut=True).latents(), whole), "law 3: cut into samplers"

    computed = []
    sampler = Sampler(model, store=Store(tmp_path), watch=computed.append)
    assert torch.equal(sampler.sample(begin_video(), 3).latents(), whole[:, :9])
    assert not computed, "law 3: from the store"
    edited = make_story(model, store=Store(tmp_path), last=9).latents()
    assert torch.equal(edited[:, :18], whole[:, :18]), "law 4: before an edit nothing changes"
    assert not torch.equal(edited[:, 18:], whole[:, 18:])


def test_law_6_unbounded_positions_are_absolute_ones_until_the_window_rolls(model):
    absolute, unbounded = (
        Sampler(model).sample(begin_video(replace(CONFIG, positions=positions)), 3).latents() for positions in Positions
    )
    torch.testing.assert_close(unbounded[:, :6], absolute[:, :6], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(absolute[:, 6:], unbounded[:, 6:])


def test_law_7_no_bytes_are_held_after_a_failure(model):
    caches = []

    def stop(_):
        caches.append(sampler._rollout.cache)
        raise KeyboardInterrupt

    sampler = Sampler(model, watch=stop)
    with pytest.raises(KeyboardInterrupt):
        sampler.sample(begin_video(), 1)
    assert caches[0].num_bytes == 0
