"""Ctrl-C and SIGTERM: finish the current step, save and stop."""

import signal
import sys
from types import FrameType
from typing import Self

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(Exception):  # noqa: N818 - like KeyboardInterrupt, nothing went wrong
    """A training that was asked to stop, and has saved its state if it can."""


class Interruption:
    """Within ``with Interruption() as stop`` a first signal only sets ``stop.signal``.

    A second one, whichever it is, ends the program at once with a KeyboardInterrupt.
    """

    signal: int | None = None

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._note) for number in _SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def __bool__(self) -> bool:
        """Whether a signal has come."""
        return self.signal is not None

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self.signal is not None:
            raise KeyboardInterrupt
        self.signal = number
        sys.stderr.write("\nheard: stops at the next save; a second time leaves at once.\n")
