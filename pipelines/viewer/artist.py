"""The one thread that renders for all visitors; nothing that it does waits for any of them.

Who looks at what is said from any thread; pictures are handed to ``on_drawn`` in the thread that renders, which is also
the only one that touches the checkpoint.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable
from typing import Protocol

from inf_nerf.errors import InputError
from inf_nerf.render.parallel import available_cores
from inf_nerf.train.opened import StoredCheckpoint
from inf_nerf.view.followed import FollowedRun
from inf_nerf.view.pictures import Drawn, Unwanted, View, draw
from inf_nerf.view.refinement import Frames, Job

POLL_SECONDS = 2.0  # between looks for a newer checkpoint

log = logging.getLogger(__name__)


class Audience(Protocol):
    """Who gets what is rendered; called in the thread that renders, so none of this may wait.

    Nobody may keep a checkpoint: its nodes have to go before those of the next one come.
    """

    def drawn(self, job: Job[View], picture: Drawn, checkpoint: StoredCheckpoint) -> None:
        """A picture of somebody's view."""

    def failed(self, client: Hashable, sentence: str) -> None:
        """Why somebody sees nothing new."""

    def advanced(self, checkpoint: StoredCheckpoint) -> None:
        """Another checkpoint, or the same within another budget, is open."""


class Artist:
    """Renders within a ``with`` block."""

    def __init__(self, run: FollowedRun, audience: Audience) -> None:
        self._run = run
        self._audience = audience
        self._frames = Frames[View]()
        self._errands: deque[Callable[[FollowedRun], None]] = deque()
        self._changed = threading.Condition()
        self._is_over = False
        self._polled = time.monotonic()
        self._thread = threading.Thread(target=self._work, name="artist", daemon=True)

    def __enter__(self) -> "Artist":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._is_over = True
            self._changed.notify()
        self._thread.join()
        self._run.close()

    def look(self, client: Hashable, view: View) -> None:
        """A client looks at a view from now on."""
        with self._changed:
            self._frames.look(client, view)
            self._changed.notify()

    def leave(self, client: Hashable) -> None:
        """A client is gone."""
        with self._changed:
            self._frames.leave(client)

    def errand(self, what: Callable[[FollowedRun], None]) -> None:
        """Do something else with the run, soon, before further pictures."""
        with self._changed:
            self._errands.append(what)
            self._changed.notify()

    def _work(self) -> None:
        while not self._is_over:
            errand, job = self._await_work()
            try:
                if errand is not None:
                    errand(self._run)
                elif job is not None:
                    self._draw(job)
                self._poll()
            except Exception:  # whatever it is, the other visitors go on
                log.exception("The viewer could not render")
                if job is not None:
                    self._give_up(job, "The picture could not be rendered; the log of the viewer says why.")

    def _await_work(self) -> tuple[Callable[[FollowedRun], None] | None, Job[View] | None]:
        """What to do next; nothing when it is time to look for a newer checkpoint, or all is over."""
        with self._changed:
            while not self._is_over:
                if self._errands:
                    return self._errands.popleft(), None
                job = self._frames.next()
                left = self._polled + POLL_SECONDS - time.monotonic()
                if job is not None or left <= 0:
                    return None, job
                self._changed.wait(left)
        return None, None

    def _draw(self, job: Job[View]) -> None:
        def is_wanted() -> bool:
            with self._changed:
                return not self._is_over and not self._errands and self._frames.is_wanted(job)

        def question(checkpoint: StoredCheckpoint) -> Drawn:
            return draw(checkpoint, job.view, job.divisor, is_wanted=is_wanted, workers=available_cores())

        before = self._run.checkpoint.path
        try:
            picture = self._run.ask(question)
        except Unwanted:
            return
        except InputError as error:
            self._give_up(job, str(error))
            return
        if self._run.checkpoint.path != before:
            self._advanced()
        with self._changed:
            self._frames.done(job, picture.seconds)
        self._audience.drawn(job, picture, self._run.checkpoint)

    def _give_up(self, job: Job[View], sentence: str) -> None:
        with self._changed:
            self._frames.failed(job)
        self._audience.failed(job.client, sentence)

    def _poll(self) -> None:
        if time.monotonic() - self._polled >= POLL_SECONDS:
            self._polled = time.monotonic()
            try:
                if self._run.advance():
                    self._advanced()
            except InputError as error:  # what is open goes on being shown
                log.warning("%s", error)

    def _advanced(self) -> None:
        log.info("Showing step %d now", self._run.checkpoint.step)
        with self._changed:
            self._frames.look_again()
        self._audience.advanced(self._run.checkpoint)

    def set_budget(self, budget: str, client: Hashable) -> None:
        """Hold no more of the model than ``budget`` says from now on; ``client`` hears why if that cannot be."""

        def errand(run: FollowedRun) -> None:
            try:
                run.set_budget(budget)
            except InputError as error:
                self._audience.failed(client, str(error))
            self._advanced()

        self.errand(errand)
