"""The benchmarks run, on a small network, and name what is not there."""

import gc
import re
import sys
from itertools import product
from unittest import mock

import compiled
import kinds
import machine
import modes
import predictions
import pytest
import side_by_side
import speed
import torch
from contenders import Contender, Ours, Task
from kitchen_stand_in import install_kitchen
from reference_network import import_from
from torch import Tensor, nn
from true_size import NetworkWork
from turns import PARTS, measure_in_turn
from work_counter import Kind, Operation, Work

from longlive.config import Positions
from longlive.model import attention, vae_layers
from longlive.model import speed as speeds
from longlive.model.causal import CausalWan
from longlive.model.eight_bit import EightBitLinear
from longlive.model.wan import Geometry

GEOMETRY = Geometry(dim=256, ffn_dim=512, num_heads=2, num_layers=2, freq_dim=32, text_dim=16)
CELLS = (4, 4)
CPU = torch.device("cpu")


@pytest.fixture
def task() -> Task:
    return Task.make(GEOMETRY, CELLS, dtype=torch.float32)


def test_side_by_side_measures_every_part_and_names_what_is_left_out(task):
    pytest.importorskip("diffusers")
    found = dict(side_by_side.iter_contenders(task, None, None))
    missing = {name: each for name, each in found.items() if isinstance(each, str)}
    assert set(missing) == {side_by_side.REFERENCE, side_by_side.HOST}
    there = {name: each for name, each in found.items() if name not in missing}
    table, differences = side_by_side.compare(task, there, rounds=1).split("\n\n")
    rows = [line.strip("| ").split(" | ") for line in table.splitlines()]
    assert tuple(row[0] for row in rows[2:]) == PARTS
    assert all("[" in row[2] for row in rows[2:])  # of the bare calls
    assert "diffusers" in differences


def test_the_first_block_of_diffusers_is_ours(task):
    pytest.importorskip("diffusers")
    from diffusers_network import DiffusersNetwork

    others, ours = DiffusersNetwork(task), Ours(task, CausalWan.of_tree(task.tree))
    for each in (others, ours):
        each.start_video()
    torch.testing.assert_close(others.denoise(), ours.denoise(), rtol=1e-4, atol=1e-4)
    assert others.make_clip().shape[1] == task.config.window


@pytest.mark.parametrize("positions", list(Positions))
def test_two_graphs_are_counted_over_thirty_blocks_with_two_switches(positions):
    assert compiled.count_graphs(GEOMETRY, positions) == {5: 1, 8: 1}  # of blocks, of recaches


def test_a_rolling_block_is_timed_beside_a_block_wise_one_of_the_same_budget(task):
    *times, ratio = kinds.measure(task, rounds=1)
    assert all(int(each) >= 0 for each in times)
    assert "[" in ratio


def test_a_compiled_model_is_timed_beside_itself(task, monkeypatch):
    monkeypatch.setattr(compiled, "INDUCTOR", "eager")
    *_, of_compiled, _, difference = compiled.measure(task, rounds=1)
    assert "[" in of_compiled
    assert float(difference) < 1e-6


class Ticking(Contender):
    """Notes whose turn it is. Each piece of work takes as many ticks of a clock as its number says."""

    weights = torch.nn.Module()

    def __init__(self, task: Task, name: str, turns: list[str], time: list[float], *, can_switch: bool) -> None:
        super().__init__(task)
        self.name, self.turns, self.clock, self.can_switch = name, turns, time, can_switch

    def work(self, what: str, ticks: float) -> None:
        self.turns.append(f"{self.name} {what}")
        self.clock[0] += ticks

    def start_video(self) -> None:
        self.latents = []
        self.work("starts", 1)

    def denoise(self) -> Tensor:
        self.work("denoises", 10)
        return torch.zeros(1)

    def keep(self, latents: Tensor) -> None:
        self.work("keeps", 100)
        super().keep(latents)

    def recache(self) -> None:
        self.work("recaches", 1000)


def test_contenders_take_turns_and_their_times_are_those_of_the_parts(task):
    turns, time = [], [0.0]
    able, unable = (
        Ticking(task, name, turns, time, can_switch=can) for name, can in (("able", True), ("unable", False))
    )
    found, others = measure_in_turn([able, unable], 2, lambda: time[0])
    assert found == {
        "first block": [11, 11],
        "12 frames": [441, 441],
        "block": [110, 110],
        "four steps": [10, 10],
        "clean pass": [100, 100],
        "recache": [1000, 1000],
        "switch": [1010, 1010],
    }
    assert others == {part: times for part, times in found.items() if part not in ("recache", "switch")}
    assert turns[2:6] == ["able denoises", "able keeps", "unable denoises", "unable keeps"]


def test_a_contender_keeps_its_latents_in_ram(task):
    made = mock.Mock(spec=Tensor)
    ticking = Ticking(task, "one", [], [0.0], can_switch=True)
    ticking.keep(made)
    assert ticking.latents == [made.cpu()]


def list_storages() -> dict[int, torch.UntypedStorage]:
    """List the storages with bytes of all living tensors. Sparse tensors, which other tests left, have none."""
    alive = (each for each in gc.get_objects() if type(each) in (Tensor, nn.Parameter))
    tensors = [each for each in alive if each.device == CPU and each.layout is torch.strided]
    storages = [each.untyped_storage() for each in tensors]
    return {each.data_ptr(): each for each in storages if each.nbytes()}


def test_nothing_but_latents_is_left_of_a_video_of_ours(task):
    ours = Ours(task, CausalWan.of_tree(task.tree))
    for block, step in product(range(2), range(len(task.config.steps))):
        task.noise(block, step)
    gc.collect()
    before = list_storages()
    ours.start_video()
    for _ in range(2):
        ours.keep(ours.denoise())
    ours.recache()
    ours.release()
    gc.collect()
    left = list_storages().keys() - before.keys()
    assert left == {latents.untyped_storage().data_ptr() for latents in ours.latents}


def test_the_reference_leaves_no_modules_behind(tmp_path):
    before = set(sys.modules)
    with import_from(tmp_path):
        assert "utils.memory" in sys.modules
    assert set(sys.modules) == before


SIZE = speed.Size(GEOMETRY, 2, (2, 2), torch.float32)


def run_speed(notes: list[str]) -> dict[str, str]:
    bench = speed.Bench(machine.Machine(CPU), SIZE, notes.append)
    bench.measure(rounds=1, minutes=0.05, reference=None)
    return bench.rows


@pytest.fixture
def predicted(monkeypatch) -> dict[str, list[str]]:
    """What is predicted, of work that takes no time to count."""
    work = Work([Operation("product", Kind.GEMM, 1, 1)])
    monkeypatch.setattr(predictions, "count_network", lambda *_: NetworkWork(work, work, work, work))
    monkeypatch.setattr(predictions, "count_decode", lambda *_: work)
    return predictions.predict()


def install_attention(monkeypatch) -> None:
    for module in (attention, speeds):
        monkeypatch.setattr(module, "choose_quantised_attention", lambda *_: (attention.attend_with_torch, "stand-in"))


def test_all_that_is_predicted_is_measured_where_all_kernels_are(monkeypatch, predicted):
    install_kitchen(monkeypatch)
    install_attention(monkeypatch)
    notes: list[str] = []
    rows = run_speed(notes)
    assert {what for what in predicted if " without " not in what} <= rows.keys()
    assert not any(" without " in what for what in rows)
    assert [note.partition(";")[0] for note in notes] == ["Left out: reference"]
    table = speed.describe(rows, predicted).splitlines()
    assert len({line.count("|") for line in table}) == 1
    assert len(table) == 2 + len(rows)


def test_a_speed_without_attention_in_8_bits_is_measured_beside_its_prediction(monkeypatch, predicted):
    install_kitchen(monkeypatch)
    rows = run_speed([])
    for name in ("fast without 8-bit attention", "fastest without 8-bit attention"):
        whats = {what for what in predicted if re.match(f"{name}[:,]", what)}
        assert f"{name}: block, ms" in whats
        assert whats <= rows.keys()
    assert "fastest without 8-bit attention, tiny VAE: frames a second" in rows
    assert not any(re.match("fast(est)?[:,]", what) for what in rows)


@pytest.mark.parametrize(("has_attention", "has_linears"), [(True, True), (True, False), (False, True), (False, False)])
def test_a_speed_is_measured_as_it_is_computed_without_its_kernels(monkeypatch, task, has_attention, has_linears):
    if has_attention:
        install_attention(monkeypatch)
    if has_linears:
        install_kitchen(monkeypatch)
    else:
        monkeypatch.setitem(sys.modules, "comfy_kitchen", None)
    [(name, fastest)] = [(name, each) for name, each in modes.iter_modes(task) if name.startswith("fastest")]
    assert name in (modes.SUBSTITUTES if not (has_attention and has_linears) else "fastest")
    assert ("8-bit attention" in name, "INT8 linears" in name) == (not has_attention, not has_linears)
    linears = {type(each) for each in fastest.weights.blocks.modules()} & {nn.Linear, EightBitLinear}
    assert linears == {EightBitLinear if has_linears else nn.Linear}
    assert ("stand-in" in fastest.model.kernel) == has_attention


def test_what_a_machine_lacks_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "comfy_kitchen", None)
    notes: list[str] = []
    rows = run_speed(notes)
    missing = [note.removeprefix("Left out: ").partition("; ")[0] for note in notes]
    assert missing == ["8-bit attention", "int8", "int8 rotated", "fp8 scaled", "reference"]
    fastest = "fastest without 8-bit attention and INT8 linears"
    assert {name.partition(":")[0] for name in rows} == {
        "full VAE", "tiny VAE", "long video, full VAE",
        "exact", "exact, compiled", "exact, full VAE", "exact, tiny VAE", "fast without 8-bit attention",
        fastest, f"{fastest}, full VAE", f"{fastest}, tiny VAE",
    }  # fmt: skip


def test_the_weights_of_a_vae_lie_as_they_do_when_a_file_is_loaded(monkeypatch):
    monkeypatch.setattr(vae_layers, "has_channels_last", lambda device: True)  # as on a GPU
    bench = speed.Bench(machine.Machine(CPU), SIZE, print)
    for weight in bench.vaes[speed.FULL_VAE].parameters():
        assert weight.dim() != 5 or weight.is_contiguous(memory_format=torch.channels_last_3d)


def test_a_tuning_is_prepared():
    pytest.importorskip("accelerate")
    pytest.importorskip("peft")
    import tuning

    assert tuning.prepare().student is not None


def test_the_figures_of_a_long_video_are_those_of_its_quarters(monkeypatch):
    times = iter(range(10_000))
    monkeypatch.setattr(machine.Machine, "read_clock", lambda self: float(next(times)))
    bench = speed.Bench(machine.Machine(CPU), SIZE, print)
    blocks: list[str] = []
    monkeypatch.setattr(speed, "make_block_with_pixels", lambda each, decoder: blocks.append("made"))
    bench.measure_long_video(Ours(bench.task, CausalWan.of_tree(bench.task.tree)), minutes=4)
    assert len(blocks) == 4 * 60 * 16 // 12
    assert bench.rows["long video, full VAE: block and its pixels in each quarter, ms"].split(", ") == 4 * ["1000.0"]
