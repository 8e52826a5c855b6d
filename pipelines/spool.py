"""A file of entries that wait to be sent, and the thread that sends them: nothing is lost while the other side is away.

An entry is a JSON object on a line of its own.  It is written before anything tries to send it, so a process that is
killed leaves it to the next one.  What was sent is forgotten when all of it was, so after a kill some entries may be
sent a second time: sending must be repeatable.  In memory is never more than one batch.
"""

import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

Entry = dict[str, Any]

BATCH = 64  # entries read and offered at once
FIRST_PAUSE = 1.0  # seconds until the next try while the other side is away; doubled up to the longest
LONGEST_PAUSE = 30.0
FAREWELL_SECONDS = 10.0  # for which a closing writer goes on trying while the other side is away
CLOSING_SECONDS = 120.0  # for which it may go on sending
STEP = "step"  # key of the training step that an entry is about

log = logging.getLogger(__name__)


class AwayError(Exception):
    """The other side does not answer; what was not sent stays."""


class Spool:
    """Entries in a file, in their order; one thread may put while another one sends.  One process at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._sent = 0  # bytes at the beginning of the file
        self._step: int | None = None
        self._waiting = 0
        for entry in self._entries():
            self._step = entry.get(STEP, self._step)
            self._waiting += not _is_mark(entry)

    def __len__(self) -> int:
        """Entries that were not sent."""
        return self._waiting

    @property
    def step(self) -> int | None:
        """Step of the newest entry that has one, whether it was sent or not."""
        return self._step

    def put(self, entry: Entry) -> None:
        """Append an entry; raises OSError where the file cannot be written."""
        line = (json.dumps(entry) + "\n").encode()
        with self._lock:
            with open(self.path, "ab+") as file:
                if file.tell() and not _ends_with_newline(file):  # what a killed process was writing
                    line = b"\n" + line
                file.write(line)
            self._waiting += 1
            self._step = entry.get(STEP, self._step)

    def peek(self) -> list[tuple[Entry, int]]:
        """The next entries, at most a batch, each with the place in the file where it ends."""
        found: list[tuple[Entry, int]] = []
        with self._lock:
            if not self.path.exists():
                return found
            with open(self.path, "rb") as file:
                file.seek(self._sent)
                while len(found) < BATCH and (line := file.readline()).endswith(b"\n"):
                    entry = _parse(line)
                    if entry is not None and not _is_mark(entry):
                        found.append((entry, file.tell()))
        return found

    def drop(self, entries: Sequence[tuple[Entry, int]]) -> None:
        """Forget entries that were sent, the first of those that :meth:`peek` gave."""
        if not entries:
            return
        with self._lock:
            self._sent = entries[-1][1]
            self._waiting -= len(entries)
            if self._waiting == 0:
                mark = b"" if self._step is None else (json.dumps({STEP: self._step}) + "\n").encode()
                # in place and not by a rename: a crash in between leaves entries that are sent again, or no mark
                with open(self.path, "r+b") as file:
                    file.write(mark)
                    file.truncate()
                self._sent = len(mark)

    def forget(self) -> None:
        """Begin anew, with no entry and no step."""
        with self._lock:
            self.path.unlink(missing_ok=True)
            self._sent, self._waiting, self._step = 0, 0, None

    def _entries(self) -> Iterator[Entry]:
        with suppress(FileNotFoundError), open(self.path, "rb") as file:
            for line in file:
                if line.endswith(b"\n") and (entry := _parse(line)) is not None:
                    yield entry


class SpoolWriter:
    """Sends what is in a spool in a background thread; nobody ever waits for it but :meth:`close`.

    ``send`` takes the next entries, sends the first ones of them and returns how many, at least one, or raises
    :class:`AwayError`; then it is asked again after a pause.  One warning is logged when the other side goes away.
    """

    def __init__(self, spool: Spool, send: Callable[[Sequence[Entry]], int], name: str) -> None:
        self._spool = spool
        self._send = send
        self._name = name
        self._away = False
        self._wake = threading.Event()
        self._closing: float | None = None  # when it began
        self._thread = threading.Thread(target=self._work, name="spool-writer", daemon=True)
        self._thread.start()

    def put(self, entry: Entry) -> None:
        """Have an entry sent; a file that cannot be written is a warning."""
        try:
            self._spool.put(entry)
        except OSError as error:
            log.warning("%s cannot be written (%s); %s misses a value.", self._spool.path, error.strerror, self._name)
        self._wake.set()

    def close(self) -> int:
        """Send what can be sent and end the thread; returns how many entries stay for another time."""
        self._closing = time.monotonic()
        self._wake.set()
        self._thread.join(CLOSING_SECONDS)
        return len(self._spool)

    def _work(self) -> None:
        pause = FIRST_PAUSE
        while self._closing is None or time.monotonic() - self._closing < CLOSING_SECONDS:
            self._wake.clear()
            try:
                entries = self._spool.peek()
                if not entries and self._closing is not None:
                    return
                if entries:
                    self._spool.drop(entries[: self._send([entry for entry, _ in entries])])
            except AwayError as error:
                self._went_away(error)
                if self._closing is not None and time.monotonic() - self._closing > FAREWELL_SECONDS:
                    return
                self._pause(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
                continue
            except Exception as error:  # such as a file that cannot be read
                log.warning("%s is no longer sent to %s (%s).", self._spool.path, self._name, error)
                return
            if entries and self._away:
                self._away, pause = False, FIRST_PAUSE
                log.info("%s can be written to again; what it missed is being sent.", self._name)
            if not entries:
                self._wake.wait()

    def _went_away(self, error: AwayError) -> None:
        if not self._away:
            self._away = True
            log.warning(
                "%s cannot be written to (%s); what it misses is kept in %s and sent when it can.",
                self._name,
                error,
                self._spool.path,
            )

    def _pause(self, seconds: float) -> None:
        """Wait, but no longer than a second from when the writer is to close."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if self._closing is not None:
                until = min(until, time.monotonic() + FIRST_PAUSE)
            time.sleep(0.1)


def _ends_with_newline(file: Any) -> bool:
    file.seek(-1, os.SEEK_END)
    return file.read(1) == b"\n"


def _is_mark(entry: Mapping[str, Any]) -> bool:
    """Whether an entry only says up to which step all was sent."""
    return entry.keys() <= {STEP}


def _parse(line: bytes) -> Entry | None:
    """The entry in a line, or None where it holds none: a process that was killed may leave anything."""
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) else None
