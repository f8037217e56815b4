"""Finds what must never be in a history: another picture's mask, another prompt's, no answer, or two."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence

from tests.faults.history import History, Request
from tests.faults.pictures import Picture, in_frame


def violations(history: History) -> list[str]:
    """Return what is wrong with a history whose requests have all ended, one line each."""
    requests = list(history)
    return [*_unanswered(requests), *_crossed(requests)]


def assert_right(history: History) -> None:
    """Fail if anything is wrong with a history."""
    found = violations(history)
    assert not found, f"{len(found)} violations, e.g.\n" + "\n".join(found[:10])


def wrong_masks(history: History) -> int:
    """Count the answers that are about another picture or prompt than asked for."""
    return len(_crossed(list(history)))


def answered_twice(request_ids: Iterable[str]) -> list[str]:
    """Return the request ids that a gateway's log has more than one final answer for."""
    return [request_id for request_id, times in Counter(request_ids).items() if times > 1]


def _unanswered(requests: Sequence[Request]) -> list[str]:
    return [f"{len(request.answers)} answers to {request}" for request in requests if len(request.answers) != 1]


def _crossed(requests: Sequence[Request]) -> list[str]:
    bound = _binder(requests)
    found = []
    for request in requests:
        if not request.ok:
            continue
        answer = request.answer
        pictures = [request.picture] if request.picture else bound(request)
        if answer.reading is not None:
            if answer.reading.shown not in {picture.shown for picture in pictures}:
                found.append(f"a mask of none of {pictures} to {request}")
            if answer.reading.point != in_frame(request.point):
                found.append(f"a mask of the point {answer.reading.point}, not {in_frame(request.point)}, to {request}")
        elif request.verb == "segment":
            found.append(f"no mask to {request}")
        if answer.digest and answer.digest not in {picture.digest for picture in pictures}:
            found.append(f"a digest of none of {pictures} to {request}")
    return found


def _binder(requests: Sequence[Request]) -> Callable[[Request], list[Picture]]:
    """Return what tells which pictures a request by name may have been answered about.

    A name is bound at some moment of each request that carries both. Of one that failed, or that went past the store
    and says so, nobody knows: it may have bound the name then, may do so later, or never. So of the requests sent
    before the answer came, all count but those that were certainly moved away from before the request was sent:
    another one, which certainly bound the name, began after they had ended, and ended before it.
    """
    binds: dict[tuple[str, str], list[Request]] = defaultdict(list)
    for request in requests:
        if request.image_id and (request.picture or request.verb == "forget"):
            binds[request.tenant, request.image_id].append(request)

    def pictures(asked: Request) -> list[Picture]:
        until = asked.answer.at
        candidates = [bind for bind in binds[asked.tenant, asked.image_id] if bind.invoked <= until]
        done = [bind for bind in candidates if _certain(bind)]
        # What the last of the completed ones began after is gone.
        began = max((bind.invoked for bind in done if bind.answer.at < asked.invoked), default=0.0)
        return [bind.picture for bind in candidates if bind.picture and not (_certain(bind) and bind.answer.at < began)]

    return pictures


def _certain(bind: Request) -> bool:
    return bind.ok and bind.answer.cache != "bypass"
