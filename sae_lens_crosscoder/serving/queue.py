"""One pass of the models at a time, in the order in which they were asked for."""

import asyncio
import json
import logging
import threading
from collections.abc import AsyncIterator, Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

from sae_lens_crosscoder.serving.errors import RequestError

logger = logging.getLogger(__name__)

Event = dict[str, Any]
Work = Callable[[], Generator[Event]]


class PassQueue:
    """Passes in the order of arrival, of which the first runs, in a thread of its own.

    All methods belong to one event loop.

    Args:
        max_passes: largest number of passes that run or wait.
    """

    def __init__(self, max_passes: int) -> None:
        self.max_passes = max_passes
        self._passes: list[ModelPass] = []
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="models")

    def __len__(self) -> int:
        """Number of passes that run or wait."""
        return len(self._passes)

    def add(self, work: Work) -> "ModelPass":
        """Let the work run after all passes before it.

        Raises:
            RequestError: if the queue is full.
        """
        if len(self._passes) >= self.max_passes:
            message = f"{len(self._passes)} requests wait already, and the limit is {self.max_passes}: ask again later."
            raise RequestError(429, message, "queue", len(self._passes), self.max_passes)
        added = ModelPass(work, self)
        self._passes.append(added)
        added.tell_position(len(self._passes) - 1)
        if len(self._passes) == 1:
            self._start(added)
        return added

    def close(self) -> None:
        """Cancel all passes, and wait for the one that runs."""
        for each in self._passes[::-1]:
            each.cancel()
        self._worker.shutdown(wait=True)

    def withdraw(self, waiting: "ModelPass") -> None:
        """Drop a pass that waits; one that runs ends by itself."""
        if waiting in self._passes[1:]:
            self._passes.remove(waiting)
            waiting.end()
            self._tell_positions()

    def _start(self, first: "ModelPass") -> None:
        running = asyncio.get_running_loop().run_in_executor(self._worker, first.run)
        running.add_done_callback(lambda _: self._finish(first))

    def _finish(self, finished: "ModelPass") -> None:
        self._passes.remove(finished)
        finished.end()
        self._tell_positions()
        if self._passes:
            self._start(self._passes[0])

    def _tell_positions(self) -> None:
        for position, each in enumerate(self._passes):
            each.tell_position(position)


class ModelPass:
    """One request's turn with the models, and what it has to tell."""

    def __init__(self, work: Work, queue: PassQueue) -> None:
        self._work, self._queue = work, queue
        self._loop = asyncio.get_running_loop()
        self._lines: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._cancelled = threading.Event()
        self._position: int | None = None

    def cancel(self) -> None:
        """Leave the queue, or stop at the next event."""
        self._cancelled.set()
        self._queue.withdraw(self)

    async def lines(self) -> AsyncIterator[bytes]:
        """Events as lines of JSON until the pass is over: its position whenever it changes, then those of its work."""
        while (line := await self._lines.get()) is not None:
            yield line

    def tell_position(self, position: int) -> None:
        """Tell the number of passes before this one."""
        if position != self._position:
            self._position = position
            self._lines.put_nowait(_line({"event": "queued", "position": position}))

    def end(self) -> None:
        """Tell that nothing more comes."""
        self._lines.put_nowait(None)

    def run(self) -> None:
        """Do the work, in the thread of the models; an error becomes the last event."""
        try:
            with closing(self._work()) as events:
                while not self._cancelled.is_set() and (event := next(events, None)) is not None:
                    self._tell(event)
        except RequestError as error:
            self._tell({"event": "error", **error.as_json()})
        except Exception as error:  # a thread has nobody above it; the log shows the whole error
            logger.exception("A request failed")
            message = f"The models failed ({type(error).__name__}): the server's log says where."
            self._tell({"event": "error", **RequestError(500, message).as_json()})

    def _tell(self, event: Event) -> None:
        self._loop.call_soon_threadsafe(self._lines.put_nowait, _line(event))


def _line(event: Event) -> bytes:
    return json.dumps(event, separators=(",", ":"), allow_nan=False).encode() + b"\n"
