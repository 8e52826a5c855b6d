"""The factor on the loss that keeps gradients from vanishing in float16."""

from collections.abc import Sequence

FIRST = 2.0**16
STEPS_BETWEEN_DOUBLINGS = 2000  # both as in torch.amp.GradScaler


class LossScale:
    """1 for ever in the precisions that need no scale, whose exponents reach as far as float32's.

    In float16 it is halved when a gradient overflows and doubled after a long time without.  All ranks call the same
    methods in the same steps, so it is the same on all of them.
    """

    def __init__(self, precision: str) -> None:
        self._needed = precision == "float16"
        self._good_steps = 0
        self.value = FIRST if self._needed else 1.0

    def state(self) -> list[float]:
        """What :meth:`restore` needs."""
        return [self.value, self._good_steps]

    def restore(self, state: Sequence[float]) -> None:
        """Go on where ``state`` was taken; what was saved with another precision does not matter."""
        if self._needed and state[0] > 1:
            self.value, self._good_steps = float(state[0]), int(state[1])

    def lower(self) -> bool:
        """After a step that is not finite: halve the scale; False if the scale is not to blame, being 1."""
        self._good_steps = 0
        if self.value <= 1:
            return False
        self.value /= 2
        return True

    def keep(self) -> None:
        """After a step that is finite: double the scale if there were many in a row."""
        self._good_steps += self._needed
        if self._needed and self._good_steps % STEPS_BETWEEN_DOUBLINGS == 0:
            self.value *= 2
