"""The figures of a training as a file of lines."""

from longlive.curve import Curve


def test_lines_of_steps_that_will_be_made_again_are_dropped(tmp_path):
    curve = Curve(tmp_path / "curve.jsonl")
    for step in (1, 2, 3):
        curve.add(step, {"loss": step / 10})
    curve.cut(2)
    assert curve.read() == [{"step": 1, "loss": 0.1}, {"step": 2, "loss": 0.2}]
    assert [path.name for path in tmp_path.iterdir()] == ["curve.jsonl"]


def test_a_torn_last_line_ends_nothing(tmp_path):
    curve = Curve(tmp_path / "curve.jsonl")
    curve.add(1, {"loss": 0.5})
    with curve.path.open("a") as file:
        file.write('{"step": 2, "lo')
    assert curve.read() == [{"step": 1, "loss": 0.5}]
    curve.cut(1)
    curve.add(2, {"loss": 0.4})
    assert [line["step"] for line in curve.read()] == [1, 2]


def test_a_curve_that_is_not_there_is_empty(tmp_path):
    assert Curve(tmp_path / "none.jsonl").read() == []
