"""Laws of the queue: one pass at a time, in the order of arrival; a cancelled one gives up its place at once."""

import asyncio
import json
import threading

import pytest

from sae_lens_crosscoder.serving.errors import RequestError
from sae_lens_crosscoder.serving.queue import PassQueue


class Gate:
    """Work that runs until it is let go, and notes when it runs and ends."""

    def __init__(self, log, name):
        self.log, self.name, self.open = log, name, threading.Event()

    def __call__(self):
        self.log.append(f"{self.name} starts")
        try:
            for step in range(1000):
                yield {"event": self.name, "step": step}
                if self.open.wait(0.005):
                    return
        finally:
            self.log.append(f"{self.name} ends")


async def told(one):
    return [json.loads(line) async for line in one.lines()]


def positions(events):
    return [event["position"] for event in events if event["event"] == "queued"]


def test_passes_run_one_at_a_time_in_order_and_hear_their_positions():
    log = []

    async def main():
        queue = PassQueue(3)
        gates = [Gate(log, name) for name in "abc"]
        passes = [queue.add(gate) for gate in gates]
        assert len(queue) == 3
        for gate in gates:
            gate.open.set()
        heard = await asyncio.gather(*map(told, passes))
        assert len(queue) == 0
        queue.close()
        return heard

    a, b, c = asyncio.run(main())
    assert log == [f"{name} {what}" for name in "abc" for what in ("starts", "ends")]
    assert (positions(a), positions(b), positions(c)) == ([0], [1, 0], [2, 1, 0])
    assert [each[-1]["event"] for each in (a, b, c)] == ["a", "b", "c"]


def test_a_full_queue_refuses_and_a_place_that_is_left_is_free_again():
    async def main():
        queue = PassQueue(2)
        gates = [Gate([], name) for name in "abc"]
        first, second = queue.add(gates[0]), queue.add(gates[1])
        with pytest.raises(RequestError) as caught:
            queue.add(gates[2])
        assert (caught.value.status, caught.value.value, caught.value.limit) == (429, 2, 2)
        second.cancel()
        third = queue.add(gates[2])
        for gate in gates:
            gate.open.set()
        await asyncio.gather(told(first), told(second), told(third))
        queue.close()

    asyncio.run(main())


def test_cancelling_frees_the_place_of_one_that_runs_and_of_one_that_waits():
    log = []

    async def main():
        queue = PassQueue(3)
        running, waiting, last = (queue.add(Gate(log, name)) for name in "abc")
        await asyncio.sleep(0.05)
        waiting.cancel()
        assert len(queue) == 2
        assert positions(await told(waiting)) == [1]
        running.cancel()
        running.cancel()  # twice is harmless
        await told(running)
        while "c starts" not in log:
            await asyncio.sleep(0.005)
        last.cancel()
        heard = await told(last)
        assert len(queue) == 0
        queue.close()
        return heard

    assert positions(asyncio.run(main())) == [2, 1, 0]
    assert log == ["a starts", "a ends", "c starts", "c ends"]


@pytest.mark.parametrize("error", [RuntimeError("a secret path"), RequestError(422, "too long", "prompt", 9, 8)])
def test_an_error_is_the_last_line_and_the_next_pass_runs(error, caplog):
    def fails():
        yield {"event": "begun"}
        raise error

    async def main():
        queue = PassQueue(2)
        heard = await asyncio.gather(*map(told, [queue.add(fails), queue.add(lambda: iter_of({"event": "b"}))]))
        queue.close()
        return heard

    first, second = asyncio.run(main())
    assert [event["event"] for event in first] == ["queued", "begun", "error"]
    assert second[-1] == {"event": "b"}
    is_ours = isinstance(error, RuntimeError)
    assert first[-1]["error"]["limit"] == (None if is_ours else 8)
    assert "a secret path" not in json.dumps(first)
    assert ("a secret path" in caplog.text) == is_ours  # where the one who runs the server sees it


def test_a_number_that_json_lacks_is_an_error_and_no_line():
    async def main():
        queue = PassQueue(1)
        heard = await told(queue.add(lambda: iter_of({"event": "x", "value": float("nan")})))
        queue.close()
        return heard

    assert [event["event"] for event in asyncio.run(main())] == ["queued", "error"]


def test_closing_ends_all_passes():
    log = []

    async def main():
        queue = PassQueue(3)
        passes = [queue.add(Gate(log, name)) for name in "abc"]
        await asyncio.sleep(0.03)
        queue.close()
        await asyncio.gather(*map(told, passes))
        return len(queue)

    assert asyncio.run(main()) == 0
    assert log == ["a starts", "a ends"]


def iter_of(*events):
    yield from events
