"""One computation for one key, however many ask for it at once."""

from __future__ import annotations

import asyncio

import pytest

from encoder_service.single_flight import SingleFlight


class _Work:
    """A computation that counts its starts, waits to be released, and notes that it was cancelled."""

    def __init__(self, outcome: object = "value") -> None:
        self.outcome = outcome
        self.starts = 0
        self.cancelled = False
        self.started = asyncio.Event()
        self.release = asyncio.Event()

    async def __call__(self) -> object:
        self.starts += 1
        self.started.set()
        try:
            await self.release.wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome


def test_many_who_ask_at_once_share_one_computation() -> None:
    """A hundred askers for one key start it once and all get its value."""

    async def scenario() -> None:
        flights: SingleFlight[str, object] = SingleFlight()
        work = _Work()
        askers = [asyncio.create_task(flights.run("a", work)) for _ in range(100)]
        await work.started.wait()
        assert flights.waiters("a") == 100
        assert flights.waiters("b") == 0
        work.release.set()
        assert await asyncio.gather(*askers) == ["value"] * 100
        assert work.starts == 1
        assert len(flights) == 0

    asyncio.run(scenario())


def test_keys_do_not_share() -> None:
    """Askers for two keys start two computations."""

    async def scenario() -> None:
        flights: SingleFlight[str, object] = SingleFlight()
        one, two = _Work("one"), _Work("two")
        one.release.set()
        two.release.set()
        assert list(await asyncio.gather(flights.run("a", one), flights.run("b", two))) == ["one", "two"]

    asyncio.run(scenario())


def test_a_cancelled_leader_does_not_end_what_others_wait_for() -> None:
    """When the first asker is cancelled, the second still gets the value of the one computation."""

    async def scenario() -> None:
        flights: SingleFlight[str, object] = SingleFlight()
        work = _Work()
        leader = asyncio.create_task(flights.run("a", work))
        await work.started.wait()
        follower = asyncio.create_task(flights.run("a", work))
        await asyncio.sleep(0)
        leader.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leader
        work.release.set()
        assert await follower == "value"
        assert work.starts == 1
        assert not work.cancelled

    asyncio.run(scenario())


def test_the_last_one_to_go_cancels_the_computation() -> None:
    """When every asker has been cancelled, so is the computation, and the next asker starts afresh."""

    async def scenario() -> None:
        flights: SingleFlight[str, object] = SingleFlight()
        work = _Work()
        askers = [asyncio.create_task(flights.run("a", work)) for _ in range(3)]
        await work.started.wait()
        for asker in askers:
            asker.cancel()
        await asyncio.gather(*askers, return_exceptions=True)
        assert len(flights) == 0
        fresh = _Work("fresh")
        fresh.release.set()
        assert await flights.run("a", fresh) == "fresh"
        assert work.cancelled

    asyncio.run(scenario())


def test_a_failure_reaches_all_and_is_not_kept() -> None:
    """Every asker gets the exception, and the next one to ask starts afresh."""

    async def scenario() -> None:
        flights: SingleFlight[str, object] = SingleFlight()
        work = _Work(KeyError("broken"))
        askers = [asyncio.create_task(flights.run("a", work)) for _ in range(3)]
        work.release.set()
        outcomes = await asyncio.gather(*askers, return_exceptions=True)
        assert all(isinstance(outcome, KeyError) for outcome in outcomes)
        fresh = _Work("fresh")
        fresh.release.set()
        assert await flights.run("a", fresh) == "fresh"

    asyncio.run(scenario())


def test_an_askers_own_time_limit_ends_only_its_own_waiting() -> None:
    """A time limit around one asker's call leaves the computation to the others."""

    async def scenario() -> None:
        flights: SingleFlight[str, object] = SingleFlight()
        work = _Work()
        patient = asyncio.create_task(flights.run("a", work))
        await work.started.wait()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await flights.run("a", work)
        work.release.set()
        assert await patient == "value"

    asyncio.run(scenario())
