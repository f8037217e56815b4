"""API keys and tenants."""

from __future__ import annotations

from pathlib import Path

import pytest

from sam.auth import KeyRing, tenant_of
from sam.errors import StartupError, Unauthenticated


def test_without_keys_everyone_may_call_and_keys_still_separate_tenants() -> None:
    """An empty ring admits any key, each as its own tenant, and no key as one more."""
    ring = KeyRing()
    assert not ring.required
    assert len({ring.admit(""), ring.admit("a"), ring.admit("b")}) == 3


def test_with_keys_only_their_holders_may_call(tmp_path: Path) -> None:
    """Of a file of keys each is admitted; no key, a part of one and another are not."""
    file = tmp_path / "keys"
    file.write_text("# team one\nalpha\n\n  beta  \n")
    ring = KeyRing.from_file(file)
    assert ring.required
    assert ring.admit("alpha") == tenant_of("alpha") != ring.admit("beta")
    for wrong in ("", "alph", "alphaa", "# team one", "gamma"):
        with pytest.raises(Unauthenticated):
            ring.admit(wrong)


def test_a_tenant_does_not_reveal_its_key() -> None:
    """The tenant's name is a digest."""
    assert "alpha" not in tenant_of("alpha")


@pytest.mark.parametrize("content", [None, "", "# only a comment\n"])
def test_a_keys_file_that_would_let_everyone_in_stops_the_start(tmp_path: Path, content: str | None) -> None:
    """A missing or empty keys file is refused, not taken for no file."""
    file = tmp_path / "keys"
    if content is not None:
        file.write_text(content)
    with pytest.raises(StartupError):
        KeyRing.from_file(file)
