"""Handles SIGINT and SIGTERM between steps, so that checkpoints are complete states of the run."""

import logging
import signal
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from sae_lens.training._interruption import InterruptedException

from sae_lens_crosscoder.crosscoders.collectives import SINGLE_PROCESS, Collectives

logger = logging.getLogger(__name__)


class TrainingInterrupted(InterruptedException):
    """Training was interrupted by a signal, and stopped after a complete step."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"Training was interrupted by {signal.Signals(signal_number).name}.")
        self.exit_code = 128 + signal_number
        """The exit code of a program that a signal ended."""


class Interruption:
    """Records a signal to any of the processes that train together."""

    def __init__(self, collectives: Collectives) -> None:
        self._collectives = collectives
        self._signal_number: int | None = None

    def raise_if_requested(self) -> None:
        """Raise a TrainingInterrupted in all processes; every process must call this."""
        signal_number = self._collectives.max_int(self._signal_number or 0)
        if signal_number:
            raise TrainingInterrupted(signal_number)

    def request(self, signal_number: int, frame: Any) -> None:
        """Handle a signal: the first waits for the step, the second interrupts at once.

        With several processes the second waits too, because torchrun repeats the signal that the terminal sent.
        """
        if self._signal_number is not None and self._collectives.n_processes == 1:
            raise KeyboardInterrupt
        self._signal_number = signal_number
        hint = " Press Ctrl-C again to stop now without saving." if self._collectives.n_processes == 1 else ""
        logger.warning("Stopping after the current step.%s", hint)


@contextmanager
def interruptible(collectives: Collectives = SINGLE_PROCESS) -> Generator[Interruption]:
    """Turn SIGINT and SIGTERM into a request that the block checks between steps."""
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
