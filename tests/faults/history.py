"""What clients asked and what they were told, written down as it happens, to be checked afterwards."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from tests.faults.pictures import Picture, Reading

Tier = Literal["gateway", "encoder", "decoder"]
Verb = Literal["segment", "embed", "forget"]

OK = "OK"


@dataclass(frozen=True)
class Answer:
    """The end of a request.

    Attributes:
        at: when it came, on the clock of `time.monotonic`.
        status: `OK`, a reason of the services' error tree, or what happened to the connection.
        code: the HTTP status, the gRPC code's name, or an empty string if there was no answer from a service.
        digest: which picture the answer says that it is about.
        reading: what its mask shows; None if there is none.
        cache: where the embedding came from, in the words of `X-Cache`.
        message: the error's text.
    """

    at: float
    status: str
    code: str = ""
    digest: str = ""
    reading: Reading | None = None
    cache: str = ""
    message: str = ""


@dataclass
class Request:
    """One request.

    Attributes:
        number: its place in the history; also its `X-Request-ID`.
        tier: which service was asked.
        verb: what was asked of it.
        tenant: the API key sent.
        image_id: the name sent; empty if none was.
        picture: the picture sent; None for a request by name alone.
        point: the prompt, in the picture's own pixels.
        invoked: when it was sent, on the clock of `time.monotonic`.
        answers: what came back. More or less than one is a fault.
    """

    number: int
    request_id: str
    tier: Tier
    verb: Verb
    tenant: str
    image_id: str
    picture: Picture | None
    point: tuple[float, float]
    invoked: float
    answers: list[Answer] = field(default_factory=list)

    def end(self, answer: Answer) -> None:
        """Write an answer down."""
        self.answers.append(answer)

    @property
    def answer(self) -> Answer:
        """The first answer."""
        return self.answers[0]

    @property
    def ok(self) -> bool:
        """Whether it was answered and did what was asked."""
        return bool(self.answers) and self.answer.status == OK

    @property
    def seconds(self) -> float:
        """How long the answer took."""
        return self.answer.at - self.invoked

    def __str__(self) -> str:
        what = f"{self.verb} {self.picture or 'by id'} as {self.image_id or 'nothing'!r}"
        told = f"{self.answer.status} {self.answer.code} {self.answer.message}" if self.answers else "no answer"
        return f"{self.request_id} ({self.tier}, {what}): {told}"


class History:
    """All requests of one run."""

    _runs = itertools.count()

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self._run = next(self._runs)

    def invoke(
        self, tier: Tier, verb: Verb, *, tenant: str, image_id: str, picture: Picture | None, point: tuple[float, float]
    ) -> Request:
        """Write down that a request is being sent."""
        number = len(self.requests)
        request_id = f"run{self._run}-{number}"
        request = Request(number, request_id, tier, verb, tenant, image_id, picture, point, time.monotonic())
        self.requests.append(request)
        return request

    def __len__(self) -> int:
        return len(self.requests)

    def __iter__(self) -> Iterator[Request]:
        return iter(self.requests)

    def since(self, moment: float) -> list[Request]:
        """Return the requests sent after a moment of the monotonic clock."""
        return [request for request in self.requests if request.invoked >= moment]

    @property
    def failed(self) -> list[Request]:
        """The requests that did not succeed."""
        return [request for request in self.requests if not request.ok]

    def statuses(self) -> dict[str, int]:
        """Count the requests by how they ended."""
        return dict(Counter(request.answer.status if request.answers else "no answer" for request in self.requests))

    def told_failures(self) -> str:
        """Say how requests failed, for the table; nothing if none did."""
        kinds = [f"{count} {status}" for status, count in sorted(self.statuses().items()) if status != OK]
        return f" ({', '.join(kinds)})" if kinds else ""


def percentile(seconds: list[float], share: float) -> float:
    """Return the value below which `share` of the values are; 0 of none."""
    ordered = sorted(seconds)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0
