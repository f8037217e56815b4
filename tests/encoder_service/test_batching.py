"""The queue in front of the device."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import numpy as np
import pytest

from encoder_service.batching import DeviceQueue, QueueReport, at_once
from encoder_service.limits import QueueLimits
from encoder_service.waiting import Embedded, Entry, Ticket, WaitingPictures
from sam.errors import DeadlineExceeded, EncoderUnavailable, InternalError, Overloaded

PATIENCE_S = 20.0


def _image(value: int) -> np.ndarray:
    return np.full((2, 2, 3), value, dtype=np.uint8)


class _Device:
    """A model whose embedding repeats its picture's value; held back until it is released."""

    def __init__(self, held: bool = False, broken_value: int = -1) -> None:
        self.batches: list[list[int]] = []
        self.threads: set[int] = set()
        self.broken_value = broken_value
        self.broken = threading.Event()
        self.busy = threading.Event()
        self.free = threading.Event()
        if not held:
            self.free.set()

    def __call__(self, images: Sequence[np.ndarray]) -> np.ndarray:
        values = [int(image[0, 0, 0]) for image in images]
        self.threads.add(threading.get_ident())
        self.batches.append(values)
        self.busy.set()
        assert self.free.wait(PATIENCE_S)
        if self.broken_value in values or self.broken.is_set():
            raise RuntimeError("secret address 0xdeadbeef")
        return np.stack([np.full((256, 64, 64), value, dtype=np.float32) for value in values])

    async def wait_until_busy(self) -> None:
        assert await asyncio.to_thread(self.busy.wait, PATIENCE_S)


def _run(
    scenario: Callable[[DeviceQueue], Coroutine[Any, Any, None]],
    device: _Device,
    limits: QueueLimits = QueueLimits(),  # noqa: B008 - it is frozen
    batch_sizes: Sequence[int] = (1, 2, 4),
) -> None:
    async def body() -> None:
        queue = DeviceQueue(at_once(device), batch_sizes, limits)
        try:
            await asyncio.wait_for(scenario(queue), PATIENCE_S)
        finally:
            device.free.set()
            await queue.close()

    asyncio.run(body())


async def _queued(queue: DeviceQueue, count: int) -> None:
    while len(queue) != count:  # noqa: ASYNC110 - the queue has no event for this, and each turn lets the tasks run
        await asyncio.sleep(0)


def test_each_caller_gets_its_own_embedding() -> None:
    """Among a hundred pictures batched in passing, none is answered with another's embedding."""

    async def scenario(queue: DeviceQueue) -> None:
        results = await asyncio.gather(*(queue.embed(_image(value)) for value in range(64)))
        for value, result in enumerate(results):
            assert result.embedding.shape == (1, 256, 64, 64)
            assert (result.embedding == value).all()

    device = _Device()
    _run(scenario, device)
    assert len(device.threads) == 1


def test_what_waits_together_runs_together_in_fixed_sizes() -> None:
    """Seven pictures that queued while the device was busy run as batches of four, two and one."""

    async def scenario(queue: DeviceQueue) -> None:
        first = asyncio.create_task(queue.embed(_image(0)))
        await device.wait_until_busy()
        others = [asyncio.create_task(queue.embed(_image(value))) for value in range(1, 8)]
        await _queued(queue, 7)
        device.free.set()
        await asyncio.gather(first, *others)

    device = _Device(held=True)
    _run(scenario, device)
    assert device.batches == [[0], [1, 2, 3, 4], [5, 6], [7]]


def test_pictures_in_bulk_wait_for_others() -> None:
    """What is urgent runs first, each kind in order of arrival, and a picture that becomes urgent goes along."""

    async def scenario(queue: DeviceQueue) -> None:
        first = asyncio.create_task(queue.embed(_image(0)))
        await device.wait_until_busy()
        tickets = [Ticket(bulk=value < 4) for value in range(1, 7)]
        others = [
            asyncio.create_task(queue.embed(_image(value), ticket=ticket)) for value, ticket in enumerate(tickets, 1)
        ]
        await _queued(queue, 6)
        tickets[1].bulk = False
        device.free.set()
        await asyncio.gather(first, *others)

    device = _Device(held=True)
    _run(scenario, device, batch_sizes=(1,))
    assert [value for batch in device.batches for value in batch] == [0, 2, 4, 5, 6, 1, 3]


def test_pictures_in_bulk_leave_room_for_others() -> None:
    """Of four places bulk gets two; the others are for whom somebody waits."""

    async def scenario(queue: DeviceQueue) -> None:
        running = asyncio.create_task(queue.embed(_image(0)))
        await device.wait_until_busy()
        bulk = [asyncio.create_task(queue.embed(_image(1), ticket=Ticket(bulk=True))) for _ in range(2)]
        await _queued(queue, 2)
        with pytest.raises(Overloaded):
            await queue.embed(_image(1), ticket=Ticket(bulk=True))
        with pytest.raises(Overloaded):
            queue.check_room(0, bulk=True)
        queue.check_room(1)
        urgent = [asyncio.create_task(queue.embed(_image(2))) for _ in range(2)]
        await _queued(queue, 4)
        with pytest.raises(Overloaded):
            await queue.embed(_image(2))
        device.free.set()
        await asyncio.gather(running, *bulk, *urgent)

    device = _Device(held=True)
    _run(scenario, device, QueueLimits(max_images=4), batch_sizes=(1,))
    assert device.batches == [[0], [2], [2], [1], [1]]


def test_a_picture_in_bulk_finds_a_place_in_the_smallest_queue() -> None:
    """Where there is room for one picture only, it may be one in bulk; it would never be embedded otherwise."""

    async def scenario(queue: DeviceQueue) -> None:
        running = asyncio.create_task(queue.embed(_image(0)))
        await device.wait_until_busy()
        queue.check_room(0, bulk=True)
        bulk = asyncio.create_task(queue.embed(_image(1), ticket=Ticket(bulk=True)))
        await _queued(queue, 1)
        device.free.set()
        await asyncio.gather(running, bulk)

    device = _Device(held=True)
    _run(scenario, device, QueueLimits(max_images=1, max_bytes=_image(1).nbytes))
    assert device.batches == [[0], [1]]


def test_a_full_queue_refuses_by_count() -> None:
    """One picture more than allowed is refused at once, and says when to come back."""

    async def scenario(queue: DeviceQueue) -> None:
        running = asyncio.create_task(queue.embed(_image(0)))
        await device.wait_until_busy()
        waiting = asyncio.create_task(queue.embed(_image(1)))
        await _queued(queue, 1)
        with pytest.raises(Overloaded) as refusal:
            await queue.embed(_image(2))
        assert (refusal.value.retry_after_s or 0) >= 1
        device.free.set()
        await asyncio.gather(running, waiting)

    device = _Device(held=True)
    _run(scenario, device, QueueLimits(max_images=1))
    assert device.batches == [[0], [1]]


def test_a_full_queue_refuses_by_bytes() -> None:
    """A picture that would exceed the bytes allowed is refused at once."""

    async def scenario(queue: DeviceQueue) -> None:
        running = asyncio.create_task(queue.embed(_image(0)))
        await device.wait_until_busy()
        waiting = asyncio.create_task(queue.embed(_image(1)))
        await _queued(queue, 1)
        with pytest.raises(Overloaded):
            await queue.embed(_image(2))
        device.free.set()
        await asyncio.gather(running, waiting)

    device = _Device(held=True)
    _run(scenario, device, QueueLimits(max_bytes=_image(0).nbytes + 1))


def test_a_cancelled_caller_is_never_started_and_frees_its_place() -> None:
    """A caller that leaves while queued makes room at once, and its picture never reaches the device."""

    async def scenario(queue: DeviceQueue) -> None:
        running = asyncio.create_task(queue.embed(_image(0)))
        await device.wait_until_busy()
        gone = asyncio.create_task(queue.embed(_image(1)))
        await _queued(queue, 1)
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        assert len(queue) == 0
        follower = asyncio.create_task(queue.embed(_image(2)))
        await _queued(queue, 1)
        device.free.set()
        await asyncio.gather(running, follower)

    device = _Device(held=True)
    _run(scenario, device, QueueLimits(max_images=1))
    assert device.batches == [[0], [2]]


def test_callers_whose_deadline_passes_are_answered_in_time_and_never_started() -> None:
    """Fifty callers with short deadlines behind a long pass are all told so, and none is run."""

    async def scenario(queue: DeviceQueue) -> None:
        running = asyncio.create_task(queue.embed(_image(0)))
        await device.wait_until_busy()
        soon = time.monotonic() + 0.05
        late = [queue.embed(_image(9), deadline=soon) for _ in range(50)]
        outcomes = await asyncio.gather(*late, return_exceptions=True)
        assert all(isinstance(outcome, DeadlineExceeded) for outcome in outcomes)
        assert len(queue) == 0
        device.free.set()
        await running

    device = _Device(held=True)
    _run(scenario, device)
    assert device.batches == [[0]]


def test_a_deadline_already_past_is_not_started() -> None:
    """A picture queued too late on an idle device is not embedded."""

    async def scenario(queue: DeviceQueue) -> None:
        with pytest.raises(DeadlineExceeded):
            await queue.embed(_image(1), deadline=time.monotonic() - 1)

    device = _Device()
    _run(scenario, device)
    assert device.batches == []


def test_a_failing_picture_fails_alone() -> None:
    """When a batch fails, its pictures are tried one by one and only the broken one's caller hears of it."""

    async def scenario(queue: DeviceQueue) -> None:
        running = asyncio.create_task(queue.embed(_image(0)))
        await device.wait_until_busy()
        batch = [asyncio.create_task(queue.embed(_image(value))) for value in range(1, 5)]
        await _queued(queue, 4)
        device.free.set()
        await running
        outcomes = await asyncio.gather(*batch, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes].count(InternalError) == 1
        failure = outcomes[2]
        assert isinstance(failure, InternalError)
        assert "0xdeadbeef" not in str(failure)
        assert not queue.failing

    device = _Device(held=True, broken_value=3)
    _run(scenario, device)


def test_a_picture_that_fails_does_not_bring_the_device_into_disrepute() -> None:
    """After a picture that the model fails on, a blank one shows that the device works, and others are served."""

    async def scenario(queue: DeviceQueue) -> None:
        with pytest.raises(InternalError):
            await queue.embed(_image(3))
        await queue.embed(_image(4))
        assert not queue.failing

    device = _Device(broken_value=3)
    _run(scenario, device)
    assert device.batches == [[3], [0], [4]]


def test_a_failing_device_takes_no_work_until_it_works_again() -> None:
    """While a blank picture fails, callers are sent elsewhere, those who wait included; a later try ends that."""
    reports: list[bool] = []
    device = _Device(held=True)

    async def scenario() -> None:
        queue = DeviceQueue(at_once(device), (1,), QueueLimits(), on_failing=reports.append, probe_interval_s=0.01)
        running = asyncio.create_task(queue.embed(_image(1)))
        await device.wait_until_busy()
        waiting = asyncio.create_task(queue.embed(_image(2)))
        await _queued(queue, 1)
        device.broken.set()
        device.free.set()
        with pytest.raises(InternalError):
            await running
        with pytest.raises(EncoderUnavailable):
            await waiting
        with pytest.raises(EncoderUnavailable):
            await queue.embed(_image(3))
        device.broken.clear()
        while queue.failing:  # noqa: ASYNC110 - the device's thread ends this, within a probe or two
            await asyncio.sleep(0.005)
        assert (await queue.embed(_image(4))).embedding[0, 0, 0, 0] == 4
        await queue.close()

    asyncio.run(asyncio.wait_for(scenario(), PATIENCE_S))
    assert reports == [True, False]


def test_closing_finishes_what_is_queued_and_takes_nothing_more() -> None:
    """Pictures accepted before closing are embedded; later ones are refused as unavailable."""

    async def scenario(queue: DeviceQueue) -> None:
        tasks = [asyncio.create_task(queue.embed(_image(value))) for value in range(3)]
        await device.wait_until_busy()
        closing = asyncio.create_task(queue.close())
        await asyncio.sleep(0)
        with pytest.raises(EncoderUnavailable):
            await queue.embed(_image(9))
        device.free.set()
        results = await asyncio.gather(*tasks)
        assert [int(result.embedding[0, 0, 0, 0]) for result in results] == [0, 1, 2]
        await closing

    device = _Device(held=True)
    _run(scenario, device)


def test_times_are_reported_apart() -> None:
    """The time in the queue and the time on the device come with each embedding."""

    async def scenario(queue: DeviceQueue) -> None:
        first = asyncio.create_task(queue.embed(_image(0)))
        await device.wait_until_busy()
        second = asyncio.create_task(queue.embed(_image(1)))
        await _queued(queue, 1)
        device.free.set()
        running, waiting = await asyncio.gather(first, second)
        assert running.encode_s > 0
        assert waiting.queue_s > 0

    device = _Device(held=True)
    _run(scenario, device)


def test_batch_sizes_must_allow_a_single_picture() -> None:
    """Without a batch of one a lone picture would wait for ever, so such sizes are refused."""
    with pytest.raises(ValueError, match="must contain 1"):
        DeviceQueue(at_once(_Device()), (2, 4), QueueLimits())


class _Pipelined:
    """A device that is given passes while it computes; each waits for its own permission to end.

    A picture of value 250 or more fails, at its start if it is odd and otherwise at its end.
    """

    def __init__(self) -> None:
        self.started: list[list[int]] = []
        self.finished: list[list[int]] = []
        self._permissions = threading.Semaphore(0)
        self._changed = threading.Condition()

    def start(self, images: Sequence[np.ndarray]) -> Callable[[], np.ndarray]:
        values = [int(image[0, 0, 0]) for image in images]
        with self._changed:
            self.started.append(values)
            self._changed.notify_all()
        if any(value >= 250 and value % 2 for value in values):
            raise RuntimeError("cannot be started")
        return lambda: self._finish(values)

    def _finish(self, values: list[int]) -> np.ndarray:
        assert self._permissions.acquire(timeout=PATIENCE_S)
        self.finished.append(values)
        if any(value >= 250 for value in values):
            raise RuntimeError("failed on the way")
        return np.stack([np.full((256, 64, 64), value, dtype=np.float32) for value in values])

    def permit(self, passes: int = 1000) -> None:
        self._permissions.release(passes)

    async def has_started(self, passes: int) -> None:
        def wait() -> bool:
            with self._changed:
                return self._changed.wait_for(lambda: len(self.started) >= passes, PATIENCE_S)

        assert await asyncio.to_thread(wait)


class _Noted(QueueReport):
    """Notes how long the device was busy, and how long passes took."""

    def __init__(self) -> None:
        self.busy_s: list[float] = []

    def busy(self, seconds: float) -> None:
        self.busy_s.append(seconds)


def _run_two(
    scenario: Callable[[DeviceQueue], Coroutine[Any, Any, None]],
    device: _Pipelined,
    batch_sizes: Sequence[int] = (1, 2, 4),
    report: QueueReport | None = None,
    probe_interval_s: float = PATIENCE_S,
) -> None:
    async def body() -> None:
        queue = DeviceQueue(
            device.start,
            batch_sizes,
            QueueLimits(),
            in_flight=2,
            report=report,
            probe_interval_s=probe_interval_s,
        )
        try:
            await asyncio.wait_for(scenario(queue), PATIENCE_S)
        finally:
            device.permit()
            await queue.close()

    asyncio.run(body())


def _tasks(queue: DeviceQueue, values: Sequence[int], *, bulk: bool = False) -> list[asyncio.Task[Any]]:
    return [asyncio.create_task(queue.embed(_image(value), ticket=Ticket(bulk=bulk))) for value in values]


def test_a_second_pass_is_started_while_the_first_is_computed() -> None:
    """Two passes are in flight and no third; each caller gets its own embedding; the device counts as busy once."""
    report = _Noted()

    async def scenario(queue: DeviceQueue) -> None:
        began = time.monotonic()
        first = _tasks(queue, [1])
        await device.has_started(1)
        others = _tasks(queue, [2, 3, 4])
        await device.has_started(2)
        await _queued(queue, 1)
        assert device.started == [[1], [2, 3]]
        assert device.finished == []
        device.permit()
        results = await asyncio.gather(*first, *others)
        assert [int(result.embedding[0, 0, 0, 0]) for result in results] == [1, 2, 3, 4]
        assert device.started == device.finished == [[1], [2, 3], [4]]
        assert sum(report.busy_s) <= time.monotonic() - began

    device = _Pipelined()
    _run_two(scenario, device, report=report)
    assert len(report.busy_s) == 3


def test_an_urgent_picture_overtakes_what_is_queued_but_not_what_is_in_flight() -> None:
    """Behind two passes in bulk an urgent picture is the next, and shares its pass with no bulk."""

    async def scenario(queue: DeviceQueue) -> None:
        bulk = _tasks(queue, [1], bulk=True)
        await device.has_started(1)
        bulk += _tasks(queue, [2], bulk=True)
        await device.has_started(2)
        bulk += _tasks(queue, [3, 4, 5], bulk=True)
        urgent = _tasks(queue, [9])
        await _queued(queue, 4)
        device.permit()
        await asyncio.gather(*bulk, *urgent)

    device = _Pipelined()
    _run_two(scenario, device)
    assert device.started[:3] == [[1], [2], [9]]


def test_passes_in_bulk_stay_short() -> None:
    """Once it is known how long a picture takes, bulk comes in batches that an urgent picture can wait for."""
    waiting = WaitingPictures((1, 2, 4, 8), QueueLimits())
    loop = asyncio.new_event_loop()

    def fill(bulk: bool) -> None:
        waiting.take_all()
        for _ in range(8):
            entry = Entry(_image(0), Ticket(bulk=bulk), None, loop, loop.create_future(), 0.0)
            waiting.append(entry)

    for seconds, size in [(0.0, 8), (0.0025, 8), (0.011, 2), (1.6, 1)]:
        fill(bulk=True)
        assert len(waiting.take_batch(seconds)) == size
        fill(bulk=False)
        assert len(waiting.take_batch(seconds)) == 8
    loop.close()


@pytest.mark.parametrize("broken", [250, 251])
def test_a_batch_that_fails_in_flight_spares_the_other(broken: int) -> None:
    """A batch that fails is tried one by one once nothing else is in flight, and the pass beside it is not touched."""

    async def scenario(queue: DeviceQueue) -> None:
        first = _tasks(queue, [1])
        await device.has_started(1)
        second = _tasks(queue, [2, broken])
        await device.has_started(2)
        third = _tasks(queue, [3])
        device.permit()
        outcomes = await asyncio.gather(*first, *second, *third, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [Embedded, Embedded, InternalError, Embedded]
        assert not queue.failing

    device = _Pipelined()
    _run_two(scenario, device, batch_sizes=(1, 2))
    # The blank picture follows on the broken one at once, and the third has its turn before or after.
    alone = [values for values in device.started if values != [3]]
    assert alone == [[1], [2, broken], [2], [broken], [0]]


def test_a_caller_that_leaves_in_flight_is_not_tried_again() -> None:
    """Of a batch that fails, only pictures whose callers still wait are tried one by one."""

    async def scenario(queue: DeviceQueue) -> None:
        first = _tasks(queue, [1])
        await device.has_started(1)
        gone, broken = _tasks(queue, [2, 250])
        await device.has_started(2)
        gone.cancel()
        await asyncio.wait([gone])
        device.permit()
        await asyncio.gather(*first, broken, return_exceptions=True)

    device = _Pipelined()
    _run_two(scenario, device, batch_sizes=(1, 2))
    assert [2] not in device.started


def test_closing_waits_for_what_is_in_flight() -> None:
    """Both passes in flight and what is queued behind them are finished before the queue is closed."""

    async def scenario(queue: DeviceQueue) -> None:
        first = _tasks(queue, [1])
        await device.has_started(1)
        others = _tasks(queue, [2])
        await device.has_started(2)
        others += _tasks(queue, [3])
        await _queued(queue, 1)
        closing = asyncio.create_task(queue.close())
        await asyncio.sleep(0)
        assert not closing.done()
        device.permit()
        results = await asyncio.gather(*first, *others)
        assert [int(result.embedding[0, 0, 0, 0]) for result in results] == [1, 2, 3]
        await closing

    device = _Pipelined()
    _run_two(scenario, device)


def test_a_device_that_fails_with_two_in_flight_lets_go_of_all() -> None:
    """When pictures and the blank one fail, who waits is sent elsewhere, and nothing more is accepted."""

    async def scenario(queue: DeviceQueue) -> None:
        first = _tasks(queue, [250])
        await device.has_started(1)
        second = _tasks(queue, [252])
        await device.has_started(2)
        waiting = _tasks(queue, [4])
        await _queued(queue, 1)
        device.permit()
        outcomes = await asyncio.gather(*first, *second, *waiting, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [InternalError, InternalError, EncoderUnavailable]
        with pytest.raises(EncoderUnavailable):
            await queue.embed(_image(5))

    class Broken(_Pipelined):
        def _finish(self, values: list[int]) -> np.ndarray:
            super()._finish(values)
            raise RuntimeError("out of order")

    device = Broken()
    _run_two(scenario, device, batch_sizes=(1,))
