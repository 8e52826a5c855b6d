"""What to render next for several people who look at one model: a coarse picture at once, finer ones while views rest.

A picture's fineness is the divisor of the whole size: 8 is an eighth of the width and of the height.  Nothing here
renders, waits or knows a clock; whoever renders asks :meth:`Frames.next`, asks :meth:`Frames.is_wanted` while at it,
and says how long it took.
"""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

DIVISORS = (16, 8, 4, 2, 1)  # coarse to fine
FIRST_SECONDS = 0.12  # a view's first picture is the finest one that is expected to take no longer
FIRST_DIVISOR = 8  # while nothing is known about the speed
MEMORY = 0.7  # part of the measured speed that is kept from picture to picture


class Sized(Protocol):
    """A view; all that is asked of it is how large its finest picture is."""

    @property
    def num_pixels(self) -> int: ...


View = TypeVar("View", bound=Sized)


@dataclass(frozen=True)
class Job(Generic[View]):
    """A picture to render."""

    client: Hashable
    view: View
    divisor: int
    number: int  # of the view among all that anybody had
    is_first: bool  # that the client sees of this view


@dataclass
class _Looking(Generic[View]):
    """One client."""

    view: View
    number: int
    shown: int | None = None  # divisor of the finest picture sent of this view
    served: int = 0  # when it last got a picture, or made way, counted in pictures
    was_put_off: bool = False  # whether its last finer picture made way for somebody else's first


class Frames(Generic[View]):
    """The views of all clients and how far each was refined.

    Who waited longest comes first; of equals, who has no picture of the view, then whose picture is coarsest.  A finer
    picture is given up when its view changes, and makes way for another client's first one, but not twice in a row; a
    first picture is never given up while its client is there, lest one who keeps moving sees nothing.
    """

    def __init__(self) -> None:
        self._clients: dict[Hashable, _Looking[View]] = {}
        self._views = 0
        self._pictures = 0
        self._seconds_per_pixel: float | None = None

    def look(self, client: Hashable, view: View) -> None:
        """A client, perhaps a new one, looks at ``view`` from now on."""
        self._views += 1
        before = self._clients.get(client)
        served = before.served if before is not None else 0
        self._clients[client] = _Looking(view, self._views, served=served)

    def look_again(self) -> None:
        """The model changed: all views begin anew."""
        for client, looking in list(self._clients.items()):
            self.look(client, looking.view)

    def leave(self, client: Hashable) -> None:
        """A client, if it was there, is gone."""
        self._clients.pop(client, None)

    def next(self) -> Job[View] | None:
        """The picture to render now; None while all that is looked at is as fine as it gets."""
        waiting = {client: looking for client, looking in self._clients.items() if looking.shown != DIVISORS[-1]}
        if not waiting:
            return None

        def urgency(client: Hashable) -> tuple[int, bool, int]:
            looking = waiting[client]
            return looking.served, looking.shown is not None, -(looking.shown or 0)

        client = min(waiting, key=urgency)
        looking = waiting[client]
        divisor = self._first(looking.view) if looking.shown is None else _finer(looking.shown)
        return Job(client, looking.view, divisor, looking.number, looking.shown is None)

    def is_wanted(self, job: Job[View]) -> bool:
        """Whether to go on with a picture that is being rendered."""
        looking = self._clients.get(job.client)
        if looking is None:
            return False
        if job.is_first:
            return True
        if looking.number != job.number:
            return False
        others = any(other.shown is None for client, other in self._clients.items() if client != job.client)
        if others and not looking.was_put_off:
            looking.was_put_off, looking.served = True, self._pictures
            return False
        return True

    def done(self, job: Job[View], seconds: float) -> None:
        """A picture was sent, which took ``seconds`` to render."""
        self._pictures += 1
        pace = seconds / max(1, job.view.num_pixels // job.divisor**2)
        before = self._seconds_per_pixel
        self._seconds_per_pixel = pace if before is None else MEMORY * before + (1 - MEMORY) * pace
        looking = self._clients.get(job.client)
        if looking is not None:
            looking.served = self._pictures
            if looking.number == job.number:
                looking.shown, looking.was_put_off = job.divisor, False

    def failed(self, job: Job[View]) -> None:
        """A picture cannot be rendered: nothing more of its view is tried."""
        looking = self._clients.get(job.client)
        if looking is not None and looking.number == job.number:
            looking.shown = DIVISORS[-1]

    def _first(self, view: View) -> int:
        if self._seconds_per_pixel is None:
            return FIRST_DIVISOR
        affordable = FIRST_SECONDS / self._seconds_per_pixel  # pixels
        return next((divisor for divisor in reversed(DIVISORS) if view.num_pixels <= affordable * divisor**2), 16)


def _finer(divisor: int) -> int:
    return DIVISORS[DIVISORS.index(divisor) + 1]
