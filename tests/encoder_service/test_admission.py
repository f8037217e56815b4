"""The door of a replica."""

from __future__ import annotations

import pytest

from encoder_service.admission import Admission
from sam.errors import Overloaded


def test_a_place_is_free_again_when_a_call_ends_in_any_way() -> None:
    """Calls beyond the number allowed are refused until one of those inside is over, be it by an exception."""
    door = Admission(max_calls=1, max_bytes=100)

    def fail_inside() -> None:
        with door.admit(1):
            with pytest.raises(Overloaded), door.admit(1):
                raise AssertionError("a second call was let in")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_inside()
    with door.admit(1):
        pass


def test_bytes_are_counted_together() -> None:
    """Calls whose pictures would be too many bytes together are refused, however few the calls are."""
    door = Admission(max_calls=10, max_bytes=100)
    with door.admit(60):
        with pytest.raises(Overloaded), door.admit(41):
            raise AssertionError("too many bytes were let in")
        with door.admit(40):
            pass


def test_one_large_call_alone_is_let_in() -> None:
    """A picture over the bound for all together is somebody else's to judge: alone it comes in."""
    with Admission(max_calls=10, max_bytes=100).admit(101):
        pass
