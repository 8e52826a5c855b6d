"""Entries arrive once and in their order, whatever happens to the other side or to the process."""

import json
import logging
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from pipelines import spool
from pipelines.spool import AwayError, Entry, Spool, SpoolWriter


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "spool.jsonl"


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool, "FIRST_PAUSE", 0.05)
    monkeypatch.setattr(spool, "LONGEST_PAUSE", 0.1)
    monkeypatch.setattr(spool, "FAREWELL_SECONDS", 0.3)


class Receiver:
    """Takes up to ``at_once`` entries a time while it is there."""

    def __init__(self, at_once: int = 3) -> None:
        self.received: list[Entry] = []
        self.there = threading.Event()
        self.asked = 0
        self._at_once = at_once

    def send(self, entries: Sequence[Entry]) -> int:
        self.asked += 1
        if not self.there.is_set():
            raise AwayError("nobody listens")
        self.received += entries[: self._at_once]
        return len(entries[: self._at_once])


def numbered(count: int, start: int = 0) -> list[Entry]:
    return [{"value": index} for index in range(start, start + count)]


def wait_until(condition: Any) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_spool_gives_what_was_put_until_it_is_dropped(file: Path) -> None:
    waiting = Spool(file)
    assert waiting.peek() == [] and len(waiting) == 0 and waiting.step is None
    assert not file.exists()
    for entry in numbered(5):
        waiting.put(entry)
    found = waiting.peek()
    assert [entry for entry, _ in found] == numbered(5)
    waiting.drop(found[:2])
    assert [entry for entry, _ in waiting.peek()] == numbered(3, start=2) and len(waiting) == 3
    waiting.drop(waiting.peek())
    assert waiting.peek() == [] and file.read_bytes() == b""


def test_a_batch_is_all_that_is_read_at_once(file: Path) -> None:
    waiting = Spool(file)
    for entry in numbered(spool.BATCH + 7):
        waiting.put(entry)
    assert len(waiting.peek()) == spool.BATCH
    waiting.drop(waiting.peek())
    assert [entry for entry, _ in waiting.peek()] == numbered(7, start=spool.BATCH)


def test_the_next_process_finds_what_one_that_was_killed_left(file: Path) -> None:
    first = Spool(file)
    for step in (1, 2):
        first.put({"step": step, "value": step})
    with open(file, "a") as torn:
        torn.write('{"step": 3, "val')
    second = Spool(file)
    assert (len(second), second.step) == (2, 2)
    second.put({"step": 4, "value": 4})
    assert [entry["value"] for entry, _ in second.peek()] == [1, 2, 4]
    third = Spool(file)
    assert (len(third), third.step) == (3, 4)


def test_the_last_step_is_remembered_when_all_is_sent(file: Path) -> None:
    waiting = Spool(file)
    waiting.put({"step": 7, "value": 1})
    waiting.put({"value": 2})
    waiting.drop(waiting.peek())
    assert (len(waiting), waiting.step) == (0, 7)
    again = Spool(file)
    assert (len(again), again.step, again.peek()) == (0, 7, [])
    again.put({"step": 3, "value": 3})  # training went back
    assert [entry["value"] for entry, _ in again.peek()] == [3]
    assert again.step == Spool(file).step == 3
    again.forget()
    assert Spool(file).step is None


def test_garbage_is_passed_over(file: Path) -> None:
    file.write_bytes(b'\0\0\n[1]\n{"value": 1}\n')
    waiting = Spool(file)
    assert [entry for entry, _ in waiting.peek()] == [{"value": 1}]
    waiting.drop(waiting.peek())
    assert waiting.peek() == [] and len(waiting) == 0


def test_a_writer_sends_all_in_order_and_leaves_nothing(file: Path) -> None:
    receiver = Receiver()
    receiver.there.set()
    writer = SpoolWriter(Spool(file), receiver.send, "receiver")
    for entry in numbered(200):
        writer.put(entry)
    assert writer.close() == 0
    assert receiver.received == numbered(200)
    assert file.read_bytes() == b""


def test_what_is_missed_is_kept_on_disk_and_sent_when_the_other_side_is_back(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    receiver = Receiver()
    receiver.there.set()
    with caplog.at_level(logging.INFO):
        writer = SpoolWriter(Spool(file), receiver.send, "The receiver")
        writer.put({"value": 0})
        wait_until(lambda: len(receiver.received) == 1)
        receiver.there.clear()
        for entry in numbered(20, start=1):
            writer.put(entry)
        wait_until(lambda: receiver.asked > 5)
        assert len(file.read_text().splitlines()) == 20
        receiver.there.set()
        wait_until(lambda: len(receiver.received) == 21)
        assert writer.close() == 0
    assert receiver.received == numbered(21)
    warnings = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert warnings == [
        f"The receiver cannot be written to (nobody listens); what it misses is kept in {file} and sent when it can."
    ]
    assert "can be written to again" in caplog.text


def test_closing_gives_up_soon_and_keeps_what_is_left_for_another_time(file: Path) -> None:
    away = Receiver()
    writer = SpoolWriter(Spool(file), away.send, "receiver")
    for entry in numbered(3):
        writer.put(entry)
    started = time.monotonic()
    assert writer.close() == 3
    assert time.monotonic() - started < 5
    there = Receiver()
    there.there.set()
    assert SpoolWriter(Spool(file), there.send, "receiver").close() == 0
    assert there.received == numbered(3)


def test_closing_tries_at_once_however_long_the_pause(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool, "FIRST_PAUSE", 60.0)
    monkeypatch.setattr(spool, "LONGEST_PAUSE", 60.0)
    receiver = Receiver()
    writer = SpoolWriter(Spool(file), receiver.send, "receiver")
    writer.put({"value": 1})
    wait_until(lambda: receiver.asked >= 1)
    monkeypatch.setattr(spool, "FIRST_PAUSE", 0.05)
    receiver.there.set()
    started = time.monotonic()
    assert writer.close() == 0
    assert time.monotonic() - started < 5


def test_putting_never_waits_for_a_slow_receiver(file: Path) -> None:
    released = threading.Event()

    def slow(entries: Sequence[Entry]) -> int:
        released.wait(10)
        return len(entries)

    writer = SpoolWriter(Spool(file), slow, "receiver")
    started = time.monotonic()
    for entry in numbered(300):
        writer.put(entry)
    assert time.monotonic() - started < 5
    released.set()
    assert writer.close() == 0


def test_a_file_that_cannot_be_written_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    receiver = Receiver()
    writer = SpoolWriter(Spool(tmp_path / "absent" / "spool.jsonl"), receiver.send, "The receiver")
    writer.put({"value": 1})
    assert writer.close() == 0
    assert "No such file or directory); The receiver misses a value." in caplog.text


def test_entries_are_lines_of_json(file: Path) -> None:
    Spool(file).put({"text": "two\nlines", "value": 1.5})
    assert json.loads(file.read_text()) == {"text": "two\nlines", "value": 1.5}
    assert len(file.read_text().splitlines()) == 1
