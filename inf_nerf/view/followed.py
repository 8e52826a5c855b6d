"""The newest checkpoint of a run, within a budget of memory, also while the run is being trained.

A training deletes old checkpoints, and a viewer reads nodes only when a view needs them: what was open may be gone when
it is read.  The newest one then takes its place.  One thread at a time may use a :class:`FollowedRun`.
"""

import logging
from collections.abc import Callable
from typing import TypeVar

from inf_nerf.errors import InputError
from inf_nerf.places import Place, RemotePath
from inf_nerf.render.budget import budget_bytes
from inf_nerf.train.manifest import MANIFEST, latest_checkpoint
from inf_nerf.train.opened import StoredCheckpoint, open_checkpoint

TRIES = 3  # checkpoints that may vanish one after the other while one question is answered

Result = TypeVar("Result")

log = logging.getLogger(__name__)


class FollowedRun:
    """A run, or one checkpoint, of which the newest state is open."""

    def __init__(self, named: Place, budget: str) -> None:
        """``named`` is a run directory or a checkpoint; ``budget`` as in :func:`budget_bytes`.

        Raises :class:`InputError` where there is no complete checkpoint, or for a budget that holds no node.
        """
        self._run = None if (named / MANIFEST).is_file() else named
        self._budget = budget
        newest = named if self._run is None else self._newest()
        if newest is None:
            raise InputError(f"{named} holds no complete checkpoint yet; wait for the first save of its training.")
        self._checkpoint: StoredCheckpoint | None = None
        self._replace(newest)

    @property
    def checkpoint(self) -> StoredCheckpoint:
        """What is open."""
        assert self._checkpoint is not None
        return self._checkpoint

    def advance(self) -> bool:
        """Open a newer checkpoint if there is one; returns whether there was."""
        newest = None if self._run is None else self._newest()
        if newest is None or str(newest) == str(self.checkpoint.path):
            return False
        try:
            self._replace(newest)
        except InputError as error:  # damaged, or deleted meanwhile: go on with what there was
            log.warning("%s", error)
            return False
        return True

    def set_budget(self, budget: str) -> None:
        """Hold no more than so much from now on; raises :class:`InputError`, and changes nothing, if that is no budget
        or too little."""
        path, before, self._budget = self.checkpoint.path, self._budget, budget
        try:
            self._replace(path)
        except InputError:
            self._budget = before
            self._replace(path)
            raise

    def ask(self, question: Callable[[StoredCheckpoint], Result]) -> Result:
        """``question`` of the open checkpoint, or of the newest if that was deleted meanwhile.

        Raises what the question raises where a file is damaged but not gone.
        """
        for _ in range(TRIES):
            try:
                return question(self.checkpoint)
            except InputError:
                if self._run is None or (self.checkpoint.path / MANIFEST).is_file():
                    raise
            self.advance()  # not above, where the error still holds the nodes that were open
        return question(self.checkpoint)

    def close(self) -> None:
        """Stop reading."""
        self.checkpoint.model.cache.close()

    def _newest(self) -> Place | None:
        assert self._run is not None
        if isinstance(self._run, RemotePath):
            self._run.system.invalidate_cache()  # or it goes on listing what it listed first
        return latest_checkpoint(self._run)

    def _replace(self, path: Place) -> None:
        """Open another checkpoint; the nodes of the one before are let go first, so that two never fill the memory."""
        opened = open_checkpoint(path)
        budget = budget_bytes(self._budget, opened.model_bytes)
        if self._checkpoint is not None:
            self.close()
        self._checkpoint = None
        self._checkpoint = opened.within(budget)
