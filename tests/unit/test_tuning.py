"""Streaming long tuning: what is learnt from, what is remembered, and that nothing is lost on the way."""

import gc
import os
import random
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import tiny
import torch
import tuned
from accelerate.state import AcceleratorState
from patience import wait_for_end, wait_until
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from longlive.config import Positions, RolloutConfig
from longlive.errors import ConfigError, PositionError, TuningError
from longlive.model.lora import Lora
from longlive.rollout import Rollout
from longlive.timeline import Boundary
from longlive.tune import checkpoints
from longlive.tune.adapter import learning
from longlive.tune.config import StreamConfig
from longlive.tune.dmd import Noising
from longlive.tune.memory import Memory
from longlive.tune.run import ADAPTER, accelerator_of, exported, run
from longlive.tune.stream import Stream
from longlive.tune.student import Student
from longlive.tune.tuning import ChunkDraws, EmbeddedPair, Tuning

PROGRAM = Path(__file__).with_name("tuned.py")


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@dataclass
class Exits:
    """Draws that exit at the last step, from a block of others on."""

    draws: ChunkDraws
    first: int = 0
    exit_step: int = 3

    def noise(self, block: int, step: int) -> torch.Tensor:
        return self.draws.noise(self.first + block, step)

    def context(self, block: int) -> torch.Tensor:
        return self.draws.context(self.first + block)


@pytest.mark.parametrize("positions", list(Positions))
@pytest.mark.parametrize("boundary", [Boundary.RECACHE, Boundary.RENEW])
def test_law_a_student_rolls_out_what_a_sampler_does(positions, boundary):
    """Without a graph and without the trace of noise, through a rolled window and a switch."""
    config = RolloutConfig(window=9, sink=3, positions=positions)
    model = tiny.model()
    student = Student(model.tree, config)
    student.context_sigma = torch.tensor(0.0)
    texts = [tiny.prompt(number).embedding for number in (0, 1)]
    draws = ChunkDraws(0, 0, (0,), (3, 16, 2, 4), 4)

    rollout, made = Rollout(model, config, (1, 16, 2, 4)), []
    for block in range(7):
        text = model.read(texts[block >= 5])
        if block == 5:
            rollout.recache(15, torch.cat(made, 1), text, renew=boundary is Boundary.RENEW)
        made.append(rollout.denoise(3 * block, text, draws.noise, block))
        rollout.commit(3 * block, made[-1], text)

    with torch.no_grad():
        first, memory = student(Memory.empty(3), 0, 5, texts[0], Exits(draws))
        place = student.window.recache(15, renew=boundary is Boundary.RENEW)
        memory = student.recached(memory, place, first[:, 15 - place.frames :], texts[1])
        second, _ = student(memory, 15, 2, texts[1], Exits(draws, 5))
    torch.testing.assert_close(torch.cat([first, second], 1), torch.cat(made, 1), atol=2e-5, rtol=0)


def test_checkpointing_gives_the_same_gradients():
    gradients = []
    for checkpointing in (False, True):
        config = tuned.with_learn(checkpointing=checkpointing, kv_gradients=True)
        one = tuned.tuning(config)
        recorder = tuned.Recorder(one)
        one.step(), one.step(), one.step()
        gradients.append(recorder.found)
    plain, checkpointed = gradients
    assert plain.keys() == checkpointed.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient, msg=lambda text, name=name: f"{name}: {text}")


def test_remembered_keys_carry_gradients_only_where_asked():
    found = []
    for kv_gradients in (False, True):
        student = Student(tuned.trees()[0].requires_grad_(True), tuned.CONFIG.rollout, kv_gradients=kv_gradients)
        clip, _ = student(Memory.empty(3), 0, 2, tiny.prompt(0).embedding, ChunkDraws(0, 0, (0,), (3, 16, 2, 4), 4))
        clip[:, 3:].square().mean().backward()
        weight = student.tree.blocks[0].self_attn.k.weight
        assert weight.grad is not None
        found.append(weight.grad)
    assert (found[0] - found[1]).abs().max() > 1e-3 * found[0].abs().max()


def newest(folder: Path) -> int:
    """The step of the newest checkpoint, 0 without any."""
    return max((int(path.name) for path in folder.glob("checkpoints/*") if path.name.isdigit()), default=0)


def test_law_a_tuning_killed_at_random_steps_is_the_uninterrupted_one_bit_for_bit(tmp_path):
    whole = tuned.tuning()
    run(whole, tmp_path / "whole")
    draw, folder = random.Random(0), tmp_path / "killed"
    for step in sorted(draw.sample(range(1, tuned.CONFIG.run.steps), 3)):
        process = subprocess.Popen([sys.executable, str(PROGRAM), str(folder), "6", "none"])
        wait_until(lambda step=step: newest(folder) >= step, process.pid, f"step {step} is saved")
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    resumed = tuned.tuning()
    run(resumed, folder)
    ours, theirs = resumed.state(), whole.state()
    assert ours.keys() == theirs.keys()
    assert not [name for name in theirs if not torch.equal(ours[name], theirs[name])]
    assert (folder / ADAPTER).read_bytes() == (tmp_path / "whole" / ADAPTER).read_bytes()
    assert len(list((folder / "checkpoints").iterdir())) == tuned.CONFIG.run.keep


def test_law_two_processes_learn_what_one_does_with_the_double_batch(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    common |= {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(PROGRAM), str(tmp_path / "two"), "4", str(tmp_path / "two.safetensors"), "1"]
    processes = [subprocess.Popen(command, env=common | {"RANK": rank, "LOCAL_RANK": rank}) for rank in ("0", "1")]
    assert [wait_for_end(process, "the end of a tuning of two processes") for process in processes] == [0, 0]

    one = tuned.tuning(replace(tuned.with_learn(batch=2), run=replace(tuned.CONFIG.run, steps=4)))
    recorder = tuned.Recorder(one)
    run(one, tmp_path / "one", watch=recorder.watch)
    two = load_file(tmp_path / "two.safetensors")
    assert two.keys() == recorder.found.keys()
    for name, of_one in recorder.found.items():
        allowed = 1e-5 if of_one.ndim == 0 else 1e-4 * of_one.abs().max().item()
        assert (two[name] - of_one).abs().max().item() <= allowed, name


def test_memory_does_not_grow_from_the_second_chunk_to_the_twelfth():
    config = replace(tuned.with_learn(average=0), stream=replace(tuned.CONFIG.stream, length=9 + 6 * 14))
    one = tuned.tuning(config)
    sizes = {}
    while one.num_chunks < 13:
        one.step()
        gc.collect()
        tensors = [x for x in gc.get_objects() if type(x) in (torch.Tensor, torch.nn.Parameter)]
        sizes[one.num_chunks] = sum(x.nbytes for x in tensors if x.layout is torch.strided)
    assert one.sequences[0] is not None
    assert one.sequences[0].length > 70
    assert one.sequences[0].previous is not None
    assert not one.sequences[0].previous.requires_grad
    frames = [frame for layer in one.sequences[0].memory.layers for frame in layer.values()]
    assert not any(frame.link or frame.v.requires_grad or frame.turned_k.requires_grad for frame in frames)
    second, last = min(size for size in sizes if size >= 2), max(sizes)
    assert last >= 12
    assert sizes[last] <= 1.01 * sizes[second]


def test_what_comes_out_is_the_adapter_that_was_learnt(tmp_path):
    one = tuned.tuning(tuned.with_learn(alpha=7))
    one.step(), one.step(), one.step()
    one.average = {}
    exported(one, tmp_path)
    tree = one.parts.student
    for file in (ADAPTER, "adapter.pt"):
        lora = Lora.read(tmp_path / file)
        assert len(lora.pairs) == 10 * tiny.GEOMETRY.num_layers
        for module, pair in lora.pairs.items():
            linear = tree.get_submodule(module)
            expected = linear.base_layer.weight + linear.get_delta_weight("default")
            torch.testing.assert_close(pair.added_to(linear.base_layer.weight), expected, atol=1e-4, rtol=1e-2)
    assert any(pair.up.abs().max() > 0 for pair in lora.pairs.values())


def test_all_weights_may_be_tuned(tmp_path):
    one = tuned.tuning(tuned.with_learn(rank=0))
    before = {name: weight.detach().clone() for name, weight in one.parts.student.named_parameters()}
    one.step(), one.step(), one.step()
    changed = [name for name, weight in before.items() if not torch.equal(weight, one.learnt()[name])]
    assert set(changed) == set(before)
    assert load_file(exported(one, tmp_path)).keys() == before.keys()


def test_the_teacher_never_learns_and_the_base_stays():
    one = tuned.tuning()
    frozen = {
        name: weight.detach().clone()
        for tree in (one.parts.teacher, one.parts.student)
        for name, weight in tree.named_parameters()
        if not weight.requires_grad
    }
    one.step()
    found = dict(one.parts.teacher.named_parameters()) | dict(one.parts.student.named_parameters())
    assert len(learning(one.parts.student)) == 2 * 10 * tiny.GEOMETRY.num_layers
    assert all(torch.equal(found[name], weight) for name, weight in frozen.items())


def test_several_batches_of_a_step_have_videos_of_their_own():
    one = tuned.tuning(tuned.with_learn(accumulation=2))
    one.step()
    first, second = one.sequences
    assert first is not None
    assert second is not None
    assert first.pairs != second.pairs
    assert first.length == second.length


def test_a_video_switches_where_a_chunk_begins_and_begins_anew_at_its_end():
    assert StreamConfig(length=60).switches == (21, 39)
    assert StreamConfig(length=21).switches == ()
    assert StreamConfig(length=240).switches[-1] == 219
    alone = tuple(EmbeddedPair(pair.first, pair.first) for pair in tuned.parts().pairs)
    assert tuned.tuning(pairs=alone)._begun().switch is None
    one = tuned.tuning()
    assert one._begun().switch in tuned.CONFIG.stream.switches
    lengths = []
    while one.num_begun < 3:
        one.step()
        assert one.sequences[0] is not None
        lengths.append(one.sequences[0].length)
    assert max(lengths) <= tuned.CONFIG.stream.length


@pytest.mark.filterwarnings("ignore:Mismatch dtype")  # PyTorch, of norms
def test_half_precision_reaches_every_weight_that_learns():
    """A cast made in the steps without a graph must not be met again in the one that has it."""
    AcceleratorState._reset_state(True)
    config = tuned.with_learn(precision="bf16", rate=1e-6, critic_rate=1e-6)
    one = Tuning(tuned.parts(), config, accelerator_of(config, Path(), on_cpu=True))
    recorder = tuned.Recorder(one)
    late = []  # steps whose student exits after passes without a graph
    for step in range(5):
        chunk = ChunkDraws(config.run.seed, one.num_chunks, (0,), (3, 16, 2, 4), 4)
        if step % config.learn.ratio == 0 and chunk.exit_step > 0:
            late.append(step)
        one.step()
    assert late
    for name, module in (("student", one.parts.student), ("critic", one.parts.critic)):
        reached = [recorder.found[f"{late[0]}.{name}.{key}"].abs().max() > 0 for key in learning(module) if "_B" in key]
        assert len(reached) == 10 * tiny.GEOMETRY.num_layers
        assert all(reached)


def test_scalars_for_a_package_that_is_missing_are_refused(monkeypatch, tmp_path):
    monkeypatch.setattr("longlive.tune.run.find_spec", lambda _: None)
    config = replace(tuned.CONFIG, run=replace(tuned.CONFIG.run, tensorboard=True))
    with pytest.raises(TuningError, match="tensorboard is not installed; pip install tensorboard, or"):
        accelerator_of(config, tmp_path, on_cpu=True)


def test_a_video_does_not_outgrow_the_table_of_positions():
    student, codec = Student(tuned.trees()[0], RolloutConfig()), tuned.parts().codec
    with pytest.raises(PositionError, match="the video would reach frame 2000"):
        Stream(student, codec, StreamConfig(length=2000))


def test_a_clip_that_is_no_whole_blocks_or_shorter_than_the_window_is_refused():
    student = Student(tuned.trees()[0], RolloutConfig())
    codec = tuned.parts().codec
    with pytest.raises(ConfigError, match="clip 20 and overlap 3 are no whole blocks; use multiples of 3"):
        Stream(student, codec, StreamConfig(clip=20))
    with pytest.raises(ConfigError, match="window of 12 frames is longer than a clip of 9"):
        Stream(student, codec, StreamConfig(clip=9))


def test_a_loss_that_is_no_number_stops_the_tuning_and_keeps_the_checkpoint(tmp_path):
    one = tuned.tuning()
    with pytest.raises(KeyboardInterrupt):
        run(one, tmp_path, watch=stop_at(2))
    weight = one.parts.critic.get_parameter("patch_embedding.weight")
    weight.data.fill_(torch.nan)
    with pytest.raises(TuningError, match=r"the critic's loss is nan at step 3; the last checkpoint is good"):
        run(one, tmp_path)
    assert all(torch.isfinite(value).all() for value in one.learnt().values())
    resumed = tuned.tuning()
    assert checkpoints.Checkpoints(resumed, tmp_path).resume()
    assert resumed.num_steps == 2


def stop_at(step: int):
    def watch(now: int, _) -> None:
        if now == step:
            raise KeyboardInterrupt

    return watch


def test_a_checkpoint_of_another_configuration_is_refused_with_what_differs(tmp_path):
    run(tuned.tuning(replace(tuned.CONFIG, run=replace(tuned.CONFIG.run, steps=1))), tmp_path)
    message = r"learn\.rank was 4 and is 2; set that back, or tune in another folder"
    with pytest.raises(TuningError, match=message):
        run(tuned.tuning(tuned.with_learn(rank=2)), tmp_path)


def test_a_longer_run_is_no_other_configuration(tmp_path):
    run(tuned.tuning(replace(tuned.CONFIG, run=replace(tuned.CONFIG.run, steps=1))), tmp_path)
    longer = tuned.tuning(replace(tuned.CONFIG, run=replace(tuned.CONFIG.run, steps=2, keep=1)))
    run(longer, tmp_path)
    assert longer.num_steps == 2


def test_a_full_disk_loses_nothing(tmp_path, monkeypatch):
    one = tuned.tuning()
    with pytest.raises(KeyboardInterrupt):
        run(one, tmp_path, watch=stop_at(1))
    before = sorted(tmp_path.rglob("*"))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints, "write_atomically", full)
    with pytest.raises(TuningError, match=r"No space left on device; free some space; .*000001 is good"):
        run(one, tmp_path)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_damaged_checkpoint_is_named(tmp_path):
    run(tuned.tuning(replace(tuned.CONFIG, run=replace(tuned.CONFIG.run, steps=1))), tmp_path)
    (tmp_path / "checkpoints" / "000001" / "process0.safetensors").write_bytes(b"torn")
    with pytest.raises(TuningError, match=r"000001 is damaged .*; delete that folder to go on from the one before"):
        run(tuned.tuning(), tmp_path)


@pytest.fixture
def two_checkpoints(tmp_path) -> Path:
    """A folder with checkpoints of the first two steps."""
    run(tuned.tuning(replace(tuned.CONFIG, run=replace(tuned.CONFIG.run, steps=2))), tmp_path)
    return tmp_path / "checkpoints"


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        ({}, "it is not what was saved"),
        ({"longlive_tuning": "5"}, "it is not what was saved"),
        ({"longlive_tuning": "5", "longlive_digest": None}, "its configuration is none"),
        ({"longlive_tuning": "{", "longlive_digest": None}, "Expecting"),
        ({"longlive_tuning": "[" * 100_000, "longlive_digest": None}, "it is nested deeper"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_checkpoint_that_changed_is_refused(two_checkpoints, metadata, reason):
    path = two_checkpoints / "000002" / "process0.safetensors"
    with safe_open(path, "pt") as file:
        found = file.metadata() | metadata
    tensors = load_file(path)
    name = next(name for name, tensor in tensors.items() if tensor.is_floating_point())
    tensors[name] = tensors[name] + 1
    save_file(tensors, path, {name: value for name, value in found.items() if value is not None})
    with pytest.raises(TuningError, match=f"000002 is damaged .{reason}.*; delete that folder to go on from the one"):
        run(tuned.tuning(), two_checkpoints.parent)


@pytest.mark.parametrize("name", ["²", "٣", "000009", "notes"])
def test_a_folder_that_is_no_checkpoint_is_passed_over(two_checkpoints, name):
    (two_checkpoints / name).mkdir()
    resumed = tuned.tuning()
    assert checkpoints.Checkpoints(resumed, two_checkpoints.parent).resume()
    assert resumed.num_steps == 2


@pytest.mark.skipif(os.name == "nt", reason="needs a pipe")
def test_a_pipe_is_no_checkpoint(two_checkpoints):
    path = two_checkpoints / "000002" / "process0.safetensors"
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(TuningError, match="it is a pipe, not a file"):
        checkpoints.Checkpoints(tuned.tuning(), two_checkpoints.parent).resume()


def test_out_of_memory_says_what_to_lower_in_which_order(monkeypatch):
    one = tuned.tuning()

    def burst(*_, **__):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(one, "_student_loss", burst)
    with pytest.raises(TuningError, match="at step 1; set checkpointing and offload to true and go on, or"):
        one.step()


def test_networks_that_do_not_belong_together_are_refused():
    other = tiny.model(replace(tiny.GEOMETRY, in_dim=48, out_dim=48)).tree
    with pytest.raises(TuningError, match="the teacher works in another latent space"):
        tuned.parts(teacher=other)
    wider = tiny.model(replace(tiny.GEOMETRY, text_dim=12)).tree
    with pytest.raises(TuningError, match="read prompts of different widths"):
        tuned.parts(teacher=wider)
    with pytest.raises(TuningError, match="rank is 64, but the narrowest Linear of this network is 24 wide"):
        tuned.tuning(tuned.with_learn(rank=64))


def test_every_video_has_noise_of_its_own_and_always_the_same():
    one, two = (ChunkDraws(3, 5, videos, (3, 16, 2, 4), 4) for videos in ((0, 1), (1, 2)))
    assert torch.equal(one.noise(2, 1)[1], two.noise(2, 1)[0])
    assert not torch.equal(one.noise(2, 1)[0], one.noise(2, 1)[1])
    everything = [one.noise(block, step) for block in range(3) for step in range(4)]
    everything += [one.context(block) for block in range(3)]
    assert len({x.sum().item() for x in everything}) == len(everything)
    assert {ChunkDraws(0, chunk, (0,), (3, 16, 2, 4), 4).exit_step for chunk in range(40)} == {0, 1, 2, 3}


def test_a_clip_is_noised_within_the_levels_of_the_method():
    levels = Noising.of(torch.arange(1000), torch.zeros(1)).timesteps_B
    assert levels.min() == 20
    assert levels.max() == 980
    assert (levels.diff() >= 0).all()
