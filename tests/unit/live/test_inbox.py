"""An inbox takes messages from any thread, a bounded number of them, until its run is over."""

import threading

import pytest

from longlive.errors import MessageError
from longlive.live.inbox import MAX_VIEWERS, MAX_WAITING, Inbox
from longlive.live.messages import Pause, Playhead, Prepare, RewindTo


def list_messages(inbox: Inbox) -> list:
    return [sent.message for sent in inbox.drain()]


def test_messages_come_out_in_their_order_and_viewers_last():
    inbox = Inbox()
    for message in (RewindTo(1), Playhead(0.5, "0" * 8), RewindTo(2)):
        inbox.put(message)
    assert list_messages(inbox) == [RewindTo(1), RewindTo(2), Playhead(0.5, "0" * 8)]
    assert list_messages(inbox) == []


def test_it_knows_when_a_message_came():
    inbox = Inbox()
    inbox.put(Pause())
    inbox.put(Pause())
    first, second = inbox.drain()
    assert 0 < first.time <= second.time


def test_of_the_places_of_a_viewer_the_last_one_counts():
    inbox = Inbox()
    for second in range(1000):
        inbox.put(Playhead(second, "0" * 8))
    assert list_messages(inbox) == [Playhead(999, "0" * 8)]


def test_of_the_prompts_to_prepare_the_last_one_counts():
    inbox = Inbox()
    for number in range(1000):
        inbox.put(Prepare(f"a ring {number}"))
        inbox.put(Pause()) if number == 3 else None
    assert list_messages(inbox) == [Pause(), Prepare("a ring 999")]


def test_a_full_inbox_refuses_more_but_hears_its_viewers():
    inbox = Inbox()
    for number in range(MAX_WAITING):
        inbox.put(RewindTo(number))
    with pytest.raises(MessageError, match="64 messages wait already"):
        inbox.put(Pause())
    inbox.put(Playhead(1, "0" * 8))
    assert len(inbox.drain()) == MAX_WAITING + 1
    inbox.put(Pause())


def test_the_number_of_viewers_is_bounded():
    inbox = Inbox()
    for number in range(MAX_VIEWERS):
        inbox.put(Playhead(1, f"{number:08x}"))
    with pytest.raises(MessageError, match="32 viewers wait already"):
        inbox.put(Playhead(1, "f" * 8))
    inbox.put(Playhead(2, "0" * 8))
    inbox.put(Pause())


def test_a_patient_sender_waits_for_room():
    inbox = Inbox()
    for number in range(MAX_WAITING):
        inbox.put(RewindTo(number))
    sender = threading.Thread(target=inbox.put, args=(Pause(),), kwargs={"patience": 60})
    sender.start()
    assert len(inbox.drain()) == MAX_WAITING
    sender.join(60)
    assert list_messages(inbox) == [Pause()]


def test_waiting_ends_with_a_message():
    inbox = Inbox()
    sender = threading.Timer(0.05, inbox.put, (Pause(),))
    sender.start()
    inbox.wait(60)
    assert list_messages(inbox) == [Pause()]


def test_a_closed_inbox_says_that_the_run_is_over():
    inbox = Inbox()
    assert inbox.close()
    with pytest.raises(MessageError, match="this run is over; begin another one"):
        inbox.put(Pause())
    with pytest.raises(MessageError, match="this run is over"):
        inbox.put(Playhead(1, "0" * 8))


def test_a_run_does_not_end_over_a_message_that_just_came():
    inbox = Inbox()
    inbox.put(Pause())
    assert not inbox.close(only_if_empty=True)
    assert list_messages(inbox) == [Pause()]
    inbox.put(Playhead(1, "0" * 8))  # is no wish
    assert inbox.close(only_if_empty=True)
