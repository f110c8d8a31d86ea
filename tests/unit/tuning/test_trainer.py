"""The trainer: what a step trains, what it exports, and what it refuses."""

import gc
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny
import tiny_tuning
import torch
from accelerate.state import AcceleratorState
from patience import wait_for_end
from safetensors.torch import load_file

from longlive.errors import TuningError
from longlive.tuning import prompt_pairs
from longlive.tuning.accelerator import make_accelerator
from longlive.tuning.adapter import find_trainable
from longlive.tuning.config import RunConfig
from longlive.tuning.draws import ChunkDraws
from longlive.tuning.parts import EmbeddedPair
from longlive.tuning.run import ADAPTER_FILE, WEIGHTS_FILE, export_result, run_tuning
from longlive.tuning.trainer import Trainer
from longlive.weights.lora import Lora

PROGRAM = Path(__file__).parents[1] / "tiny_tuning.py"


def test_law_two_processes_learn_what_one_does_with_the_double_batch(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    common |= {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(PROGRAM), str(tmp_path / "two"), "4", str(tmp_path / "two.safetensors"), "1"]
    processes = [subprocess.Popen(command, env=common | {"RANK": rank, "LOCAL_RANK": rank}) for rank in ("0", "1")]
    assert [wait_for_end(process, "the end of a tuning of two processes") for process in processes] == [0, 0]

    config = replace(tiny_tuning.with_learn(batch=2), run=replace(tiny_tuning.CONFIG.run, steps=4))
    trainer = tiny_tuning.make_trainer(config)
    recorder = tiny_tuning.Recorder(trainer)
    run_tuning(trainer, tmp_path / "one", watch=recorder.watch)
    two = load_file(tmp_path / "two.safetensors")
    assert two.keys() == recorder.recorded.keys()
    for name, of_one in recorder.recorded.items():
        allowed = 1e-5 if of_one.ndim == 0 else 1e-4 * of_one.abs().max().item()
        assert (two[name] - of_one).abs().max().item() <= allowed, name


def count_tensor_bytes() -> int:
    """Count the bytes of all tensors alive. A list of them that outlived the count would keep them alive itself."""
    gc.collect()
    tensors = (x for x in gc.get_objects() if type(x) in (torch.Tensor, torch.nn.Parameter))
    return sum(x.nbytes for x in tensors if x.layout is torch.strided)


def test_memory_does_not_grow_from_the_second_chunk_to_the_twelfth():
    config = replace(tiny_tuning.with_learn(average=0), stream=replace(tiny_tuning.CONFIG.stream, length=9 + 6 * 14))
    trainer = tiny_tuning.make_trainer(config)
    sizes = {}
    while trainer.num_chunks < 13:
        trainer.step()
        sizes[trainer.num_chunks] = count_tensor_bytes()
    assert trainer.batches[0] is not None
    assert trainer.batches[0].length > 70
    assert trainer.batches[0].previous is not None
    assert not trainer.batches[0].previous.requires_grad
    frames = [frame for layer in trainer.batches[0].cache.layers for frame in layer.values()]
    assert not any(frame.link or frame.v.requires_grad or frame.turned_k.requires_grad for frame in frames)
    second, last = min(size for size in sizes if size >= 2), max(sizes)
    assert last >= 12
    assert sizes[last] <= 1.01 * sizes[second]


def test_the_exported_adapter_is_the_one_that_was_tuned(tmp_path):
    trainer = tiny_tuning.make_trainer(tiny_tuning.with_learn(alpha=7))
    trainer.step(), trainer.step(), trainer.step()
    trainer.average = {}
    export_result(trainer, tmp_path)
    tree = trainer.parts.student
    for file in (ADAPTER_FILE, "adapter.pt"):
        lora = Lora.read(tmp_path / file)
        assert len(lora.pairs) == 10 * tiny.GEOMETRY.num_layers
        for module, pair in lora.pairs.items():
            linear = tree.get_submodule(module)
            expected = linear.base_layer.weight + linear.get_delta_weight("default")
            torch.testing.assert_close(pair.add_to(linear.base_layer.weight), expected, atol=1e-4, rtol=1e-2)
    assert any(pair.up.abs().max() > 0 for pair in lora.pairs.values())


def test_all_weights_may_be_tuned(tmp_path):
    trainer = tiny_tuning.make_trainer(tiny_tuning.with_learn(rank=0))
    before = {name: weight.detach().clone() for name, weight in trainer.parts.student.named_parameters()}
    trainer.step(), trainer.step(), trainer.step()
    changed = [name for name, weight in before.items() if not torch.equal(weight, trainer.tuned_weights[name])]
    assert set(changed) == set(before)
    assert load_file(export_result(trainer, tmp_path)).keys() == before.keys()


def test_every_process_knows_where_the_weights_are_written(tmp_path, monkeypatch):
    trainer = tiny_tuning.make_trainer(tiny_tuning.with_learn(rank=0))
    trainer.num_steps = trainer.config.run.steps
    monkeypatch.setattr(type(trainer.accelerator), "is_main_process", False)
    assert run_tuning(trainer, tmp_path) == tmp_path / WEIGHTS_FILE


def test_law_a_process_decides_on_a_switch_as_one_with_the_double_batch_does():
    """The first video never changes its prompt, the second does: both switch, whichever process makes them."""
    parts = tiny_tuning.make_parts()
    first, second = parts.pairs[:2]
    pairs = EmbeddedPair(first.first, first.first), second
    one = tiny_tuning.make_trainer(tiny_tuning.with_learn(batch=2), pairs=pairs)
    begun = [one._begin_videos() for _ in range(6)]
    assert all(videos.switch is not None for videos in begun)
    for process in (0, 1):
        two = tiny_tuning.make_trainer(pairs=pairs)
        two.accelerator = SimpleNamespace(num_processes=2, process_index=process, device=torch.device("cpu"))
        of_two = [two._begin_videos() for _ in range(6)]
        assert [videos.switch for videos in of_two] == [videos.switch for videos in begun]
        assert [videos.pairs[0] for videos in of_two] == [videos.pairs[process] for videos in begun]


def test_the_order_of_the_pairs_is_computed_once_per_epoch(monkeypatch):
    computed = []
    sort = prompt_pairs.hashlib.sha256
    monkeypatch.setattr(prompt_pairs.hashlib, "sha256", lambda text: computed.append(text) or sort(text))
    trainer = tiny_tuning.make_trainer(replace(tiny_tuning.with_learn(batch=4), run=RunConfig(seed=7)))
    for _ in range(5):  # 20 videos of 5 pairs: 4 epochs
        trainer._begin_videos()
    assert len(computed) == 4 * 5


def test_the_teacher_never_learns_and_the_base_stays():
    trainer = tiny_tuning.make_trainer()
    frozen = {
        name: weight.detach().clone()
        for tree in (trainer.parts.teacher, trainer.parts.student)
        for name, weight in tree.named_parameters()
        if not weight.requires_grad
    }
    trainer.step()
    found = dict(trainer.parts.teacher.named_parameters()) | dict(trainer.parts.student.named_parameters())
    assert len(find_trainable(trainer.parts.student)) == 2 * 10 * tiny.GEOMETRY.num_layers
    assert all(torch.equal(found[name], weight) for name, weight in frozen.items())


def test_micro_batches_have_their_own_videos():
    trainer = tiny_tuning.make_trainer(tiny_tuning.with_learn(accumulation=2))
    trainer.step()
    first, second = trainer.batches
    assert first is not None
    assert second is not None
    assert first.pairs != second.pairs
    assert first.length == second.length


@pytest.mark.filterwarnings("ignore:Mismatch dtype")  # PyTorch, of norms
def test_half_precision_reaches_every_weight_that_learns():
    """A cast made in a step without a graph must not be used in the step with a graph."""
    AcceleratorState._reset_state(True)
    config = tiny_tuning.with_learn(precision="bf16", rate=1e-6, critic_rate=1e-6)
    trainer = Trainer(tiny_tuning.make_parts(), config, make_accelerator(config, Path(), on_cpu=True))
    recorder = tiny_tuning.Recorder(trainer)
    late = []  # steps that exit after passes without a graph
    for step in range(5):
        chunk = ChunkDraws(config.run.seed, trainer.num_chunks, (0,), (3, 16, 2, 4), 4, 5.0)
        if step % config.learn.ratio == 0 and chunk.exit_step > 0:
            late.append(step)
        trainer.step()
    assert late
    for name, module in (("student", trainer.parts.student), ("critic", trainer.parts.critic)):
        weights = [key for key in find_trainable(module) if "_B" in key]
        reached = [recorder.recorded[f"{late[0]}.{name}.{key}"].abs().max() > 0 for key in weights]
        assert len(reached) == 10 * tiny.GEOMETRY.num_layers
        assert all(reached)


def test_tensorboard_without_its_package_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr("longlive.tuning.accelerator.find_spec", lambda _: None)
    config = tiny_tuning.with_run(tensorboard=True)
    with pytest.raises(TuningError, match="tensorboard is not installed; pip install tensorboard, or"):
        make_accelerator(config, tmp_path, on_cpu=True)


SAVING = replace(tiny_tuning.with_learn(checkpointing=True), run=replace(tiny_tuning.CONFIG.run, offload=True))


@pytest.mark.parametrize(
    ("config", "cure"),
    [
        (tiny_tuning.CONFIG, "set checkpointing and offload to true and continue, or begin another tuning with a"),
        (tiny_tuning.with_run(offload=True), "set checkpointing to true and continue, or begin another tuning with a"),
        (SAVING, "begin another tuning with a smaller batch, rank or video size"),
    ],
    ids=["nothing saved", "offload", "both"],
)
def test_out_of_memory_says_what_to_lower_in_which_order(config, cure, monkeypatch):
    trainer = tiny_tuning.make_trainer(config)

    def run_out_of_memory(*_, **__):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(trainer, "_compute_student_loss", run_out_of_memory)
    with pytest.raises(TuningError, match=f"at step 1; {cure}"):
        trainer.step()


def test_networks_that_do_not_belong_together_are_refused():
    other = tiny.model(replace(tiny.GEOMETRY, in_dim=48, out_dim=48)).tree
    with pytest.raises(TuningError, match="the teacher works in another latent space"):
        tiny_tuning.make_parts(teacher=other)
    wider = tiny.model(replace(tiny.GEOMETRY, text_dim=12)).tree
    with pytest.raises(TuningError, match="read prompts of different widths"):
        tiny_tuning.make_parts(teacher=wider)
    with pytest.raises(TuningError, match="rank is 64, but the narrowest Linear of this network is 24 wide"):
        tiny_tuning.make_trainer(tiny_tuning.with_learn(rank=64))
