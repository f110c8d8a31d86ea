"""The student: its rollout is the sampler's, and where gradients flow."""

from dataclasses import dataclass, replace

import pytest
import tiny
import tiny_tuning
import torch

from longlive.config import Positions, RolloutConfig
from longlive.rollout.rollout import Rollout
from longlive.session.boundary import Boundary
from longlive.tuning.draws import ChunkDraws
from longlive.tuning.graph_cache import GraphCache
from longlive.tuning.student import Student


@dataclass
class LastStepDraws:
    """The draws of a chunk from one of its blocks on, with the last step as exit step."""

    draws: ChunkDraws
    first_block: int = 0
    exit_step: int = 3

    def draw_noise(self, block: int, step: int) -> torch.Tensor:
        return self.draws.draw_noise(self.first_block + block, step)

    def draw_context_noise(self, block: int) -> torch.Tensor:
        return self.draws.draw_context_noise(self.first_block + block)


@pytest.mark.parametrize("positions", list(Positions))
@pytest.mark.parametrize("boundary", [Boundary.RECACHE, Boundary.RENEW])
def test_law_a_student_rolls_out_what_a_sampler_does(positions, boundary):
    """Without a graph and without the noise of the clean pass, through a rolled window and a switch."""
    config = RolloutConfig(window=9, sink=3, positions=positions)
    model = tiny.model()
    student = Student(model.tree, config)
    student.steps = replace(student.steps, context_sigma=torch.tensor(0.0))
    texts = [tiny.prompt(number).embedding for number in (0, 1)]
    draws = ChunkDraws(0, 0, (0,), (3, 16, 2, 4), 4, 5.0)

    rollout, made = Rollout(model, config, (1, 16, 2, 4)), []
    for block in range(7):
        text = model.read_prompt(texts[block >= 5])
        if block == 5:
            rollout.recache(15, torch.cat(made, 1), text, renew=boundary is Boundary.RENEW)
        made.append(rollout.denoise(3 * block, text, draws.draw_noise, block))
        rollout.clean_pass(3 * block, made[-1], text)

    with torch.no_grad():
        first, cache = student(GraphCache.empty(3), 0, 5, texts[0], LastStepDraws(draws))
        place = student.window.place_recache(15, renew=boundary is Boundary.RENEW)
        cache = student.recache(cache, place, first[:, 15 - place.frames :], texts[1])
        second, _ = student(cache, 15, 2, texts[1], LastStepDraws(draws, 5))
    torch.testing.assert_close(torch.cat([first, second], 1), torch.cat(made, 1), atol=2e-5, rtol=0)


def test_checkpointing_gives_the_same_gradients():
    gradients = []
    for checkpointing in (False, True):
        config = tiny_tuning.with_learn(checkpointing=checkpointing, kv_gradients=True)
        trainer = tiny_tuning.make_trainer(config)
        recorder = tiny_tuning.Recorder(trainer)
        trainer.step(), trainer.step(), trainer.step()
        gradients.append(recorder.recorded)
    plain, checkpointed = gradients
    assert plain.keys() == checkpointed.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient, msg=lambda text, name=name: f"{name}: {text}")


def test_cached_keys_carry_gradients_only_where_asked():
    found = []
    for kv_gradients in (False, True):
        network = tiny_tuning.make_networks()[0].requires_grad_(True)
        student = Student(network, tiny_tuning.CONFIG.rollout, kv_gradients=kv_gradients)
        clip, _ = student(
            GraphCache.empty(3), 0, 2, tiny.prompt(0).embedding, ChunkDraws(0, 0, (0,), (3, 16, 2, 4), 4, 5.0)
        )
        clip[:, 3:].square().mean().backward()
        weight = student.tree.blocks[0].self_attn.k.weight
        assert weight.grad is not None
        found.append(weight.grad)
    assert (found[0] - found[1]).abs().max() > 1e-3 * found[0].abs().max()
