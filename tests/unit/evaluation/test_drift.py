"""The drift meter: what it calls a fault, what it does not, and that pieces are measured as the whole is."""

import json
import random

import pytest
import torch
from broken_videos import BLOCK, FAULTS, MIDDLE, SWITCH, render_world_video, skip_block, tint

from longlive.evaluation.drift import LIMITS, BlockDrift, DriftMeter, Fault, LevelJudge, SwitchMark, list_warnings
from longlive.evaluation.pictures import TRAITS
from longlive.session.boundary import Boundary

MARKS = (SwitchMark(SWITCH, Boundary.RECACHE),)
NUM_VIDEOS = 4


@pytest.fixture(scope="module")
def videos():
    return [render_world_video(number) for number in range(NUM_VIDEOS)]


def measure(bytes_FHW3, marks=MARKS, size=BLOCK) -> list[BlockDrift]:
    meter = DriftMeter()
    meter.expect(marks)
    return [meter.add(part_FHW3) for part_FHW3 in bytes_FHW3.split(size)]


def find_faults(blocks) -> set[Fault]:
    return {block.fault for block in blocks if block.fault}


def test_a_clean_video_has_no_fault_even_where_its_prompt_changes(videos):
    for bytes_FHW3 in videos:
        blocks = measure(bytes_FHW3)
        assert not find_faults(blocks)
        assert [block.first_frame for block in blocks if block.has_switch] == [SWITCH // BLOCK * BLOCK]


@pytest.mark.parametrize("fault", Fault)
def test_a_fault_put_in_is_found_in_every_video(videos, fault):
    for bytes_FHW3 in videos:
        assert fault in find_faults(measure(FAULTS[fault](bytes_FHW3, MIDDLE)))


def test_a_prompt_that_changes_unannounced_is_a_jump(videos):
    jumps = [max(block.jump or 0 for block in measure(bytes_FHW3)) for bytes_FHW3 in videos]
    loudest = videos[jumps.index(max(jumps))]
    assert max(jumps) > 4  # reported where the prompt changes, too
    jumping = [block for block in measure(loudest, ()) if block.fault is Fault.JUMP]
    assert all(SWITCH - BLOCK < block.first_frame <= SWITCH + BLOCK for block in jumping)
    assert "the picture jumps" in jumping[0].warning


def test_what_had_drifted_before_a_switch_counts_after_it():
    """No segment drifts as far as the limit, but all of them together do; what the switches change does not count."""
    judge, levels = LevelJudge(second=4, reference=12), random.Random(0)
    deviations = []
    for _ in range(4):
        judge.begin_segment()
        start = [levels.uniform(50, 200) for _ in TRAITS]
        for frame in range(24):
            drifted = judge.add([start[0] + 0.3 * frame, *start[1:]])
            deviations.append([0.0] * len(TRAITS) if drifted is None else drifted)
    first, *others = zip(*deviations, strict=True)
    assert max(first[:24]) < 0.5
    assert max(first) > 1.5
    assert not any(max(map(abs, other)) > 1e-9 for other in others)


def test_verdicts_do_not_depend_on_how_a_video_is_split(videos):
    broken_FHW3 = skip_block(tint(videos[0]), MIDDLE)
    draw, meter, found = random.Random(0), DriftMeter(), []
    meter.expect(MARKS)
    rest_FHW3 = broken_FHW3
    while len(rest_FHW3):
        size = draw.randint(1, 20)
        found.append(meter.add(rest_FHW3[:size]))
        rest_FHW3 = rest_FHW3[size:]
    together = measure(broken_FHW3)
    for name in ("jump", "deviation"):
        one, other = (max(getattr(block, name) or 0 for block in blocks) for blocks in (together, found))
        assert one == other
    assert find_faults(found) == find_faults(together)
    assert list_warnings(found)[0].partition(",")[0] == list_warnings(together)[0].partition(",")[0]


def test_a_copy_goes_its_own_way(videos):
    bytes_FHW3 = videos[0]
    meter = DriftMeter()
    meter.add(bytes_FHW3[:60])
    copied = meter.copy()
    meter.add(255 - bytes_FHW3[60:120])
    assert copied.num_frames == 60
    assert copied.add(bytes_FHW3[60:72]) == measure(bytes_FHW3[:72], (), 60)[1]


def test_memory_does_not_grow_with_the_video(videos):
    sizes = []
    meter = DriftMeter()
    for _ in range(4):
        for part_FHW3 in videos[0].split(48):
            meter.add(part_FHW3)
        sizes.append(count_values(meter))
    assert len(set(sizes)) == 1


def count_values(value) -> int:
    """Count the numbers that an object holds."""
    if isinstance(value, torch.Tensor):
        return value.numel()
    if hasattr(value, "__dict__"):
        return sum(map(count_values, vars(value).values()))
    if isinstance(value, (str, bytes)) or not hasattr(value, "__iter__"):
        return 1
    return sum(map(count_values, value))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda video, share: video + 60 * share, "brighter"),
        (lambda video, share: video - 60 * share, "darker"),
        (lambda video, share: video.lerp(video.mean(-1, keepdim=True), share), "less saturated"),
        (lambda video, share: video + torch.tensor([30.0, -15.0, 0.0]) * share, "redder"),
    ],
)
def test_a_warning_names_what_changes(videos, change, words):
    share = torch.linspace(0, 1, SWITCH).view(-1, 1, 1, 1)
    bytes_FHW3 = change(videos[1][:SWITCH].float(), share).clamp(0, 255).byte()
    drifting = [block for block in measure(bytes_FHW3, ()) if block.fault is Fault.DRIFT]
    assert any(words in block.warning for block in drifting)


def test_a_block_is_plain_json(videos):
    facts = json.loads(json.dumps(measure(videos[0])[8].as_dict()))
    assert facts["frame"] == 96
    assert facts["frames"] == BLOCK
    assert set(TRAITS) <= set(facts)
    assert facts["switch"] is True
    assert facts["warn"] == ""
    assert set(LIMITS) == set(TRAITS)
