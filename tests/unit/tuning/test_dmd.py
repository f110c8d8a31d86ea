"""The losses of student and critic: the levels of a noisy clip, and numbers that are not finite."""

import pytest
import torch

from longlive.tuning.dmd import ClipNoise, ScoredClip, compute_student_loss

SHAPE = (1, 3, 2, 2, 2)
CLEAN = torch.arange(24.0).view(SHAPE)


def compute_loss(teacher: torch.Tensor, critic: torch.Tensor) -> float:
    """The student's loss on a clip whose first frame is not new, for given results of the score networks."""
    clip = ScoredClip(torch.zeros(SHAPE).requires_grad_(), torch.tensor([False, True, True]), torch.zeros(1, 1, 1))
    noise = ClipNoise.of_index(torch.tensor([500]), torch.zeros(SHAPE), shift=5.0)
    loss, _ = compute_student_loss(
        lambda *_: teacher,  # type: ignore[arg-type]
        lambda *_: critic,  # type: ignore[arg-type]
        clip,
        torch.zeros(1, 1, 1),
        noise,
        guidance=3.0,
    )
    return loss.item()


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("frame", [0, 1])
def test_a_score_network_that_gives_no_number_gives_no_loss(value, frame):
    """Also in a frame that is not new: the trainer then stops before the optimizer uses it."""
    broken = CLEAN.clone()
    broken[:, frame, 0, 0, 0] = value
    assert compute_loss(CLEAN, broken) != compute_loss(CLEAN, broken)
    assert compute_loss(broken, CLEAN) != compute_loss(broken, CLEAN)


def test_a_clip_that_is_what_the_teacher_makes_of_it_has_a_loss():
    assert compute_loss(torch.zeros(SHAPE), torch.zeros(SHAPE)) == 0


@pytest.mark.parametrize("shift", [1.0, 5.0, 8.0])
def test_a_clip_is_noised_by_the_shift_of_the_student(shift):
    noise = ClipNoise.of_index(torch.tensor([250, 500, 750]), torch.zeros(1), shift=shift)
    warped = [shift * x / (1 + (shift - 1) * x) for x in (0.25, 0.5, 0.75)]
    assert noise.timesteps_B.tolist() == pytest.approx([1000 * x for x in warped])
    assert noise.sigma_B1111.flatten().tolist() == pytest.approx(warped, abs=2e-3)
