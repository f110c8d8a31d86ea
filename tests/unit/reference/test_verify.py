"""Law 1: recorded runs of the reference are reproduced, and one changed number in any of their results is noticed."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from longlive.errors import LongLiveError, WeightsError
from longlive.reference.recorded_run import RecordedRun
from longlive.reference.verify import REPLAYS, measure_distance, verify
from longlive.reference.verify import replay_run as replay_of

REFERENCE = Path(__file__).parents[2] / "reference"
KINDS: dict[Path, str] = {}
for path in sorted(REFERENCE.glob("*.safetensors")):
    with safe_open(path, "pt") as file:
        KINDS[path] = file.metadata()["kind"]
BUGS = [REFERENCE / f"{stem}.safetensors" for stem in ("rolling_short", "rolling_small")]  # of the reference
RUNS = [path for path, kind in KINDS.items() if kind in REPLAYS and path not in BUGS]
OTHERS = [path for path, kind in KINDS.items() if kind not in REPLAYS]
INPUTS = ("in.", "rng.", "sd.", "lora.")  # beginnings of the names of what a replay is given


@dataclass(frozen=True)
class Replay:
    run: RecordedRun
    results: dict[str, torch.Tensor]


@pytest.fixture(scope="module", params=RUNS, ids=lambda path: path.stem)
def replay(request) -> Replay:
    run = RecordedRun.open(request.param)
    return Replay(run, replay_of(run))


def change_number(tensor: torch.Tensor, index: int) -> torch.Tensor:
    """A copy with one number changed by little: by one, by two steps of bfloat16, or by a thousandth."""
    copy = tensor.clone()
    flat = copy.view(-1)
    if not tensor.is_floating_point():
        flat[index] += 1
    elif tensor.dtype is torch.bfloat16:
        flat[index : index + 1].view(torch.int16).add_(2)
    else:
        flat[index] += 1e-3 * max(1.0, abs(flat[index].item()))
    return copy


def alter_run(path: Path, folder: Path, meta: dict[str, str] | None = None, **tensors: torch.Tensor) -> Path:
    """A copy of a run with other tensors or metadata, its weights beside it."""
    run = RecordedRun.open(path)
    copy = folder / path.name
    save_file({**run.tensors, **tensors}, copy, {**run.meta, **(meta or {})})
    for name in ("weights", "score_weights", "vae_weights", "grads"):
        if name in run.meta:
            shutil.copy(path.parent / run.meta[name], folder)
    return copy


def test_the_recorded_runs_that_can_be_replayed_are_all_there():
    assert [path.stem for path in RUNS] == [
        "bidir",
        "dmd_loss",
        "infinity",
        "interactive_global_sink",
        "interactive_infinity",
        "interactive_no_global_sink",
        "interactive_switch0",
        "lora",
        "rolling_batch2",
        "rolling_blockwise",
        "rolling_context_noise",
        "rolling_given",
        "rolling_plain",
        "rolling_steps4",
        "rolling_switch",
        "rolling_training",
        "rope",
        "scheduler",
        "single",
        "single_batch2",
        "single_global_attn",
        "single_window6_sink3",
        "single_window9_nosink",
        "streaming_training",
        "vae",
    ]


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_law_1_a_recorded_run_is_reproduced(path):
    verdict = verify(path)
    assert verdict.failures == ()
    assert verdict.difference <= 2e-5


def test_every_recorded_result_is_compared(replay):
    compared = set(replay.run.results)
    of_file = {name for name in compared if not name.startswith("grad.")}
    assert {name for name in replay.run.tensors if not name.startswith(INPUTS)} == of_file
    assert compared <= set(replay.results)


def test_one_changed_number_in_any_result_is_noticed(replay):
    generator, kind = torch.Generator().manual_seed(0), replay.run.meta["kind"]
    for name, recorded in replay.run.results.items():
        last = recorded.numel() - 1
        for index in {0, last, int(torch.randint(recorded.numel(), (1,), generator=generator))}:
            difference, allowed = measure_distance(kind, name, replay.results[name], change_number(recorded, index))
            assert difference > allowed, (name, index)
        difference, allowed = measure_distance(kind, name, replay.results[name], recorded)
        assert difference <= allowed, name


def test_a_result_that_is_not_finite_or_has_another_shape_is_noticed(replay):
    kind = replay.run.meta["kind"]
    for name, recorded in replay.run.results.items():
        ours = replay.results[name]
        difference, allowed = measure_distance(kind, name, ours[None], recorded)
        assert difference > allowed
        if recorded.dtype in (torch.float32, torch.float64):
            poisoned = ours.clone()
            poisoned.view(-1)[-1] = torch.nan
            difference, allowed = measure_distance(kind, name, poisoned, recorded)
            assert not difference <= allowed


@pytest.mark.parametrize(
    ("stem", "name"),
    [
        ("single_window6_sink3", "out.v.1"),
        ("interactive_switch0", "trace.gend"),
        ("lora", "merged_stats.blocks.1.ffn.2.weight"),
        ("rope", "out.start7_bf16.16"),
        ("scheduler", "out.x0_from_flow_bf16"),
        ("vae", "out.stream_lengths"),
        ("bidir", "out.flow.5"),
        ("dmd_loss", "out.mask.dx"),
        ("streaming_training", "trace.step2.k.1"),
        ("rolling_plain", "trace.sink_start"),
        ("rolling_training", "out.latents"),
        ("rolling_blockwise", "trace.timesteps"),
    ],
)
def test_a_copy_with_one_changed_number_fails(tmp_path, stem, name):
    path = REFERENCE / f"{stem}.safetensors"
    recorded = RecordedRun.open(path).results[name]
    verdict = verify(alter_run(path, tmp_path, **{name: change_number(recorded, recorded.numel() // 2)}))
    assert [failure.partition(" ")[0] for failure in verdict.failures] == [name]
    assert "allowed is" in verdict.failures[0]


@pytest.mark.parametrize("path", BUGS, ids=lambda path: path.stem)
def test_a_recorded_bug_is_named_and_not_imitated(path):
    with pytest.raises(WeightsError, match=f"{path.stem}.* (records a bug|leaves the sink at the beginning for ever)"):
        verify(path)


def test_of_a_rolling_video_what_clean_passes_write_is_compared_after_them_alone():
    run = RecordedRun.open(REFERENCE / "rolling_plain.safetensors")
    assert len(run.results["trace.flow"]) == run.read_number("calls") == 2 * len(run.results["trace.k.0"])


def test_a_changed_input_fails_too(tmp_path):
    path = REFERENCE / "single_window6_sink3.safetensors"
    noise = RecordedRun.open(path).tensors["rng.renoise"].clone()
    noise[2, 1] += 0.01
    assert verify(alter_run(path, tmp_path, **{"rng.renoise": noise})).failures


def test_a_result_the_replay_does_not_make_fails(tmp_path):
    path = REFERENCE / "scheduler.safetensors"
    verdict = verify(alter_run(path, tmp_path, **{"out.unheard_of": torch.zeros(1)}))
    assert verdict.failures == ("out.unheard_of is not reproduced",)


@pytest.mark.parametrize("path", OTHERS, ids=lambda path: path.stem)
def test_another_kind_of_file_is_refused_by_name(path):
    message = f"{path.name} is not a run that can be replayed: its kind is '{KINDS[path]}', expected one of single, "
    with pytest.raises(WeightsError, match=message):
        verify(path)


def test_the_other_kinds_are_those_verify_does_not_cover():
    assert set(KINDS.values()) - set(REPLAYS) == {
        "gradients", "switch", "t5", "weights",
    }  # fmt: skip


def test_what_is_not_a_recorded_run_is_refused(tmp_path):
    damaged = tmp_path / "damaged.safetensors"
    whole = (REFERENCE / "scheduler.safetensors").read_bytes()
    for content in (b"", b"no safetensors", whole[:-1], whole[:100]):
        damaged.write_bytes(content)
        with pytest.raises(WeightsError, match=r"damaged.safetensors cannot be read as a recorded run"):
            verify(damaged)
    with pytest.raises(WeightsError, match="cannot be read"):
        verify(tmp_path / "nowhere")
    save_file({"x": torch.zeros(1)}, damaged)
    with pytest.raises(WeightsError, match="its kind is None"):
        verify(damaged)


def test_a_run_without_its_weights_names_them(tmp_path):
    shutil.copy(REFERENCE / "single.safetensors", tmp_path)
    with pytest.raises(WeightsError, match=r"weights_causal.safetensors does not exist"):
        verify(tmp_path / "single.safetensors")


@pytest.mark.parametrize(
    "meta",
    [
        {"weights": "../weights_causal.safetensors"},
        {"weights": "/etc/passwd"},
        {"weights": "\x1b[2J" * 10**5},
        {"kind": "\x1b[2J" * 10**5},
        {"geometry": "[" * 10**5},
        {"geometry": "5"},
        {"geometry": '{"num_heads": "x", "text_len": 8}'},
        {"frames": str(10**12)},
        {"window": str(10**12)},
        {"block": "0"},
        {"sink": "x"},
        {"timestep_shift": "nan"},
        {"denoise_steps": '{"a": 1}'},
    ],
    ids=lambda meta: str(meta)[:40],
)
def test_metadata_that_anyone_may_have_written_are_refused_in_a_short_sentence(tmp_path, meta):
    path = alter_run(REFERENCE / "single.safetensors", tmp_path, meta)
    with pytest.raises(LongLiveError) as caught:
        verify(path)
    assert len(str(caught.value)) < 2000
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "noise",
    [
        torch.zeros(0),
        torch.zeros(1, 21, 3, 4, 4),
        torch.zeros(1, 21, 16, 5, 5),
        torch.zeros(1, 21, 16, 4, 4, dtype=torch.int8),
    ],
    ids=lambda x: f"{x.dtype} {list(x.shape)}",
)
def test_inputs_that_fit_no_network_are_refused(tmp_path, noise):
    with pytest.raises(WeightsError, match="is an incomplete run"):
        verify(alter_run(REFERENCE / "single.safetensors", tmp_path, **{"in.noise": noise}))


def test_a_result_of_another_dtype_is_refused(tmp_path):
    path = REFERENCE / "scheduler.safetensors"
    halves = {name: x.bfloat16() for name, x in RecordedRun.open(path).results.items()}
    with pytest.raises(WeightsError, match="is an incomplete run"):
        verify(alter_run(path, tmp_path, **halves))


def test_a_pipe_is_refused_as_a_recorded_run(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(WeightsError, match=r"cannot be read as a recorded run: it is a pipe, not a file"):
        verify(tmp_path / "pipe")
