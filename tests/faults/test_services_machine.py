"""Everything that clients and fate do to the running services, in any order."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from tests.faults.checker import assert_right
from tests.faults.clients import HttpClient
from tests.faults.conftest import Report
from tests.faults.deployment import Deployment
from tests.faults.history import History, Request
from tests.faults.load import at_once, comes_true
from tests.faults.pictures import Picture, picture
from tests.faults.replica import Replica

IDS = ("a", "b", "c d/é")
PICTURES = tuple(picture(f"machine-{number}") for number in range(4))

_T = TypeVar("_T")

ids, pictures = st.sampled_from(IDS), st.sampled_from(PICTURES)


class ServicesMachine(RuleBasedStateMachine):
    """Sends requests between losses, and holds every answer to what was sent before.

    What carries its picture is answered, whatever is lost as long as a replica of each service is there. A name is
    answered, or unknown, or cannot be looked up just then; never with a picture that it does not stand for.
    """

    running: Deployment
    mortal = False
    """Whether encoders and decoders die, too: they take long to come back."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.history = History()
        self.http = self.run(HttpClient(self.history, self.running.urls, patience_s=30).__aenter__)
        self.bound: set[str] = set()
        self.redis_down = self.forgetful = False

    def run(self, make: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
        """Run on the machine's event loop."""
        return self.runner.run(make())

    @initialize()
    def empty(self) -> None:
        """Begin with nothing stored."""
        with self.running.redis.client() as client:
            client.flushall()

    @rule(wanted=pictures, image_id=ids)
    def segment(self, wanted: Picture, image_id: str) -> None:
        """Click on a picture that is sent along."""
        self._bound(self.run(lambda: self.http.segment(wanted, image_id)), image_id)

    @rule(wanted=pictures, image_id=ids)
    def embed(self, wanted: Picture, image_id: str) -> None:
        """Embed a picture, or give its name to it."""
        self._bound(self.run(lambda: self.http.embed(wanted, image_id)), image_id)

    @rule(image_id=ids)
    def click(self, image_id: str) -> None:
        """Click by name alone."""
        request = self.run(lambda: self.http.segment(None, image_id))
        if request.ok:
            return
        if self.redis_down:
            assert (request.answer.status, request.answer.code) == ("STORE_UNAVAILABLE", "503"), request
        else:
            assert request.answer.status == "EMBEDDING_NOT_FOUND", request
            assert image_id not in self.bound or self.forgetful, f"forgotten: {request}"

    @rule(first=pictures, second=pictures, image_id=ids)
    def race(self, first: Picture, second: Picture, image_id: str) -> None:
        """Give one name to two pictures at once."""
        pair = (first, second)
        requests = self.run(lambda: at_once(4, lambda number: self.http.segment(pair[number % 2], image_id)))
        for request in requests:
            self._bound(request, image_id)

    @precondition(lambda self: not self.redis_down)
    @rule(image_id=ids)
    def forget(self, image_id: str) -> None:
        """Forget a name."""
        request = self.run(lambda: self.http.forget(_quoted(image_id)))
        # The history knows the name as it is, not as a path has it.
        request.image_id = image_id
        assert request.ok or request.answer.status == "EMBEDDING_NOT_FOUND", request
        self.bound.discard(image_id)

    @precondition(lambda self: not self.redis_down)
    @rule()
    def evict(self) -> None:
        """Drop every embedding, as Redis may; names stay."""
        with self.running.redis.client() as client:
            for key in client.scan_iter("sam:v1:embedding:*"):
                client.delete(key)
        self.forgetful = True

    @precondition(lambda self: not self.redis_down)
    @rule()
    def flush(self) -> None:
        """Empty Redis."""
        self.empty()
        self.forgetful = True

    @precondition(lambda self: not self.redis_down)
    @rule()
    def kill_redis(self) -> None:
        """End Redis as a crash does."""
        self.running.redis.stop()
        self.redis_down = self.forgetful = True

    @precondition(lambda self: self.redis_down)
    @rule()
    def start_redis(self) -> None:
        """Start Redis again; within 5 s names are looked up by every gateway and decoder."""
        self.running.restart_redis()
        self.redis_down = False

        async def known() -> bool:
            answers = await at_once(8, lambda _: self.http.segment(None, "nobody's"))
            return all(request.answer.status == "EMBEDDING_NOT_FOUND" for request in answers)

        assert self.run(lambda: comes_true(known, within_s=5)), "the store did not come back"

    @precondition(lambda self: self.mortal and self._whole())
    @rule(which=st.integers(0, 3))
    def kill_replica(self, which: int) -> None:
        """End an encoder or a decoder as a crash does; one at a time."""
        self._replicas()[which].kill()

    @precondition(lambda self: self.mortal and not self._whole())
    @rule()
    def revive(self) -> None:
        """Start what was killed, which needs Redis."""
        if self.redis_down:
            self.start_redis()
        for replica in self._replicas():
            replica.restart()

    def teardown(self) -> None:
        """Hold the whole history to the rules, and leave everything running."""
        try:
            assert_right(self.history)
        finally:
            if self.redis_down:
                self.running.restart_redis()
            self.run(lambda: self.http.__aexit__(None, None, None))
            self.runner.close()

    def _bound(self, request: Request, image_id: str) -> None:
        assert request.ok, request
        if not self.redis_down:
            self.bound.add(image_id)

    def _replicas(self) -> list[Replica]:
        return [*self.running.encoders, *self.running.decoders]

    def _whole(self) -> bool:
        return all(replica.alive for replica in self._replicas())


class MortalServicesMachine(ServicesMachine):
    """The same, with encoders and decoders that die."""

    mortal = True


def _quoted(image_id: str) -> str:
    return image_id.replace(" ", "%20").replace("/", "%2F").replace("é", "%C3%A9")


def _run(machine: type[ServicesMachine], standing: Deployment, examples: int, steps: int) -> None:
    machine.running = standing
    chosen = settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        database=None,
        derandomize=True,
    )
    run_state_machine_as_test(machine, settings=chosen)


def test_services_never_mix_up_whatever_redis_does_quick(standing: Deployment) -> None:
    """Names given, moved, raced for and forgotten, while Redis is flushed, evicts, dies and comes back."""
    _run(ServicesMachine, standing, examples=3, steps=12)


@pytest.mark.faults
def test_services_never_mix_up_whatever_dies(standing: Deployment, report: Report) -> None:
    """The same at length, and with encoders and decoders that die and come back."""
    _run(ServicesMachine, standing, examples=25, steps=30)
    _run(MortalServicesMachine, standing, examples=6, steps=25)
    report.row(
        "services",
        injected="state machine: click, embed, move, race, forget; evict, flush, kill Redis (25 runs of 30 steps); and "
        "encoders and decoders (6 of 25)",
        counted="runs with a wrong answer, or none",
        required="0",
        seen="0",
        held=True,
    )
