"""The compiled layers: few graphs, the numbers of the plain ones; what cannot be compiled and why.

The laws by a real compiler: test_laws_of_speeds.py.
"""

import gc
import weakref
from collections.abc import Callable
from dataclasses import replace

import pytest
import tiny
import torch

from longlive.config import Positions, RolloutConfig
from longlive.errors import SamplingError
from longlive.model import compiled
from longlive.model.attention import attend_with_torch
from longlive.model.causal import CausalWan, LayerModulation
from longlive.model.compiled import CompiledWan, LayerCompiler, TensorRoom, compile_model
from longlive.rollout.rollout import PassKind
from longlive.rollout.sampler import Sampler
from longlive.session.session import Session

POSITIONS = pytest.mark.parametrize("positions", list(Positions))
PLAIN = tiny.model()


def compile_eagerly(model: CausalWan = PLAIN, backend: compiled.Backend = "eager") -> CompiledWan:
    made, said = compile_model(model, backend=backend)
    assert isinstance(made, CompiledWan), said
    return made


def make_story(model: CausalWan, config: RolloutConfig, *, new_sampler_every: int = 100) -> Session:
    """Make a video with every boundary, with a new sampler every so many blocks."""
    video, made, sampler = tiny.session(config), 0, Sampler(model)
    for number, (blocks, boundary) in enumerate(tiny.STORY):
        video = video.switched_to(tiny.prompt(number), boundary) if boundary else video
        for _ in range(blocks):
            if made % new_sampler_every == 0:
                sampler = Sampler(model)
            video, made = sampler.sample(video, 1), made + 1
    return video


def test_a_mode_that_chooses_kernels_by_their_speed_is_not_reproducible():
    usual, default, tuned = (compile_model(PLAIN, backend="eager", mode=mode)[0] for mode in (None, "default", "tuned"))
    assert default.kernel == usual.kernel != tuned.kernel
    assert [made.compiler.compiling.is_reproducible for made in (usual, default, tuned)] == [True, True, False]


@torch._dynamo.config.patch(recompile_limit=2)
def test_other_sizes_do_not_reach_pytorch_s_limit_of_graphs():
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph

    model = compile_eagerly(tiny.model(), count)
    graphs.clear()
    for size in range(1, 5):
        Sampler(model).sample(tiny.session(width=16 * size), 5)
    assert len(graphs) == 4


@POSITIONS
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_layers_compute_what_plain_ones_do(backend, positions):
    config = RolloutConfig(positions=positions)
    found, expected = (make_story(model, config).latents() for model in (compile_eagerly(backend=backend), PLAIN))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@POSITIONS
def test_law_3_a_compiled_video_in_many_samplers_is_the_same_bit_for_bit(positions):
    model, config = compile_eagerly(), RolloutConfig(positions=positions)
    whole, split = make_story(model, config), make_story(model, config, new_sampler_every=4)
    assert torch.equal(whole.latents(), split.latents())
    assert whole.keys == split.keys


@POSITIONS
def test_tensors_stay_where_they_are_in_all_passes_of_a_video(positions, monkeypatch):
    """Weights, keys, values and the modulations of a timestep."""
    addresses: dict[tuple[int, str], set] = {}
    run = LayerCompiler.run

    def record(self, model, block, u_BTD, modulation: LayerModulation, room: TensorRoom, *rest):
        for name, tensor in (
            ("keys", room.keys_BSNH),
            ("values", room.values_BSNH),
            ("weight", block.self_attn.q.weight),
            ("modulation", modulation.gate_f),
        ):
            addresses.setdefault((id(block), name), set()).add(tensor.data_ptr())
        return run(self, model, block, u_BTD, modulation, room, *rest)

    model, seen = compile_eagerly(), []
    monkeypatch.setattr(LayerCompiler, "run", record)
    Sampler(model, watch=seen.append).sample(tiny.session(RolloutConfig(positions=positions)), 9)
    assert sum(done.kind is PassKind.DENOISE for done in seen) == 36
    counts = {name: {len(found) for (_, each), found in addresses.items() if each == name} for _, name in addresses}
    inner = len(RolloutConfig().steps)
    assert counts == {"keys": {1}, "values": {1}, "weight": {1}, "modulation": {inner, inner + 1}}  # and clean passes


def test_a_compiled_block_has_its_own_key():
    model = compile_eagerly()
    assert model.kernel == f"{PLAIN.kernel} compiled-eager-{torch.__version__}"
    tuned, _ = compile_model(PLAIN, backend="aot_eager", mode="tuned")
    assert tuned.kernel == f"{PLAIN.kernel} compiled-aot_eager-{torch.__version__}-tuned"
    described = compiled.Compiling(options={"max_autotune": True})
    assert described.name == f"compiled-inductor-{torch.__version__}-max_autotune=True"


def test_a_backend_that_does_not_work_leaves_the_model_as_it_is_and_says_why():
    def broken(graph, inputs):
        raise RuntimeError("no compiler found\nin the path")

    model, said = compile_model(PLAIN, backend=broken)
    assert model is PLAIN
    assert said.startswith("not compiled: broken does not work here (")
    assert "no compiler found" in said
    model, said = compile_model(PLAIN, backend="no such")
    assert model is PLAIN
    assert "no such does not work here (InvalidBackend" in said
    model, said = compile_model(PLAIN, mode="no such")
    assert model is PLAIN
    assert "inductor does not work here (RuntimeError: Unrecognized mode=no such" in said


def test_an_attention_that_cannot_be_traced_leaves_the_model_as_it_is():
    @torch._dynamo.disable
    def attend(*tensors):
        return attend_with_torch(*tensors)

    opaque = replace(PLAIN, attend=attend, kernel="opaque")
    model, said = compile_model(opaque, backend="eager")
    assert model is opaque
    assert said.startswith("not compiled: PyTorch cannot trace its layers or its attention (Unsupported: ")


def test_layers_that_are_many_graphs_leave_the_model_as_it_is(monkeypatch):
    monkeypatch.setattr(compiled, "MAX_GRAPHS", 0)
    _, said = compile_model(tiny.model(), backend="eager")
    assert said == "not compiled: its layers are 1 graphs, expected at most 0"


def test_a_compiler_that_fails_within_a_video_is_named_and_earlier_blocks_are_kept():
    def fail_later(graph, inputs) -> Callable:
        if len(inputs) > 1:
            raise RuntimeError("out of registers")
        return graph

    video = Sampler(PLAIN).sample(tiny.session(), 3)
    sampler = Sampler(compile_eagerly(tiny.model(), fail_later))
    making = sampler.extend(video, 3)
    assert len(next(making).blocks) == 4
    with pytest.raises(SamplingError, match=r"fail_later could not compile the layers .*; continue without compiling"):
        next(making)


def test_what_was_compiled_lasts_as_long_as_the_network():
    model = tiny.model()
    made = compile_eagerly(model)
    Sampler(made).sample(tiny.session(), 5)
    assert compile_eagerly(model).compiler is made.compiler
    tree, compiler = weakref.ref(model.tree), weakref.ref(made.compiler)
    del model, made
    gc.collect()
    assert tree() is None
    assert compiler() is None
