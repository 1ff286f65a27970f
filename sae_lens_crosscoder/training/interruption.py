"""SIGINT and SIGTERM wait until the step in progress is done, so that what is saved is a state of the run."""

import logging
import signal
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from sae_lens.training._interruption import InterruptedException

from sae_lens_crosscoder.crosscoders.collectives import SINGLE_PROCESS, Collectives

logger = logging.getLogger(__name__)


class TrainingInterrupted(InterruptedException):
    """Training was told to stop, and stopped behind a whole step."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"Training was interrupted by {signal.Signals(signal_number).name}.")
        self.exit_code = 128 + signal_number
        """What a shell expects of a program that a signal ended."""


class Interruption:
    """True if any rank received a signal."""

    def __init__(self, collectives: Collectives) -> None:
        self._collectives = collectives
        self._signal_number: int | None = None

    def raise_if_requested(self) -> None:
        """Raise a TrainingInterrupted; for all processes, which must all ask."""
        signal_number = self._collectives.max_int(self._signal_number or 0)
        if signal_number:
            raise TrainingInterrupted(signal_number)

    def request(self, signal_number: int, frame: Any) -> None:
        """Handle a signal; the second one stops at once.

        It does with several processes, because torchrun passes on the signal that the terminal has sent to them, too.
        """
        if self._signal_number is not None and self._collectives.n_processes == 1:
            raise KeyboardInterrupt
        self._signal_number = signal_number
        at_once = "; a second signal stops it at once, unsaved" if self._collectives.n_processes == 1 else ""
        logger.warning("Training stops behind the step in progress%s.", at_once)


@contextmanager
def interruptible(collectives: Collectives = SINGLE_PROCESS) -> Generator[Interruption]:
    """Make SIGINT and SIGTERM a request, which the block looks at when it suits it."""
    interruption = Interruption(collectives)
    try:
        previous = {number: signal.signal(number, interruption.request) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread, where signals cannot be caught
        previous = {}
    try:
        yield interruption
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
