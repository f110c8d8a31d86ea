"""Streaming: the sizes that do not fit, and where a video switches and ends."""

import pytest
import tiny_tuning

from longlive.config import RolloutConfig
from longlive.errors import ConfigError, PositionError
from longlive.tuning.config import StreamConfig
from longlive.tuning.parts import EmbeddedPair
from longlive.tuning.streaming import Stream
from longlive.tuning.student import Student


def test_a_video_switches_where_a_chunk_begins_and_a_new_one_begins_at_its_end():
    assert StreamConfig(length=60).switches == (21, 39)
    assert StreamConfig(length=21).switches == ()
    assert StreamConfig(length=240).switches[-1] == 219
    alone = tuple(EmbeddedPair(pair.first, pair.first) for pair in tiny_tuning.make_parts().pairs)
    assert tiny_tuning.make_trainer(pairs=alone)._begin_videos().switch is None
    trainer = tiny_tuning.make_trainer()
    assert trainer._begin_videos().switch in tiny_tuning.CONFIG.stream.switches
    lengths = []
    while trainer.num_batches < 3:
        trainer.step()
        assert trainer.batches[0] is not None
        lengths.append(trainer.batches[0].length)
    assert max(lengths) <= tiny_tuning.CONFIG.stream.length


def test_a_video_does_not_outgrow_the_table_of_positions():
    student, codec = Student(tiny_tuning.make_networks()[0], RolloutConfig()), tiny_tuning.make_parts().codec
    with pytest.raises(PositionError, match="the video would reach frame 2000"):
        Stream(student, codec, StreamConfig(length=2000))


def test_a_clip_of_part_blocks_or_shorter_than_the_window_is_refused():
    student = Student(tiny_tuning.make_networks()[0], RolloutConfig())
    codec = tiny_tuning.make_parts().codec
    with pytest.raises(ConfigError, match="clip is 20 and overlap is 3; they must be multiples of the block, 3"):
        Stream(student, codec, StreamConfig(clip=20))
    with pytest.raises(ConfigError, match="window of 12 frames is longer than a clip of 9"):
        Stream(student, codec, StreamConfig(clip=9))
