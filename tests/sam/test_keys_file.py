"""The file of API keys: what it may say, and that what is wrong with it is told without repeating it."""

from __future__ import annotations

from pathlib import Path

import pytest

from sam.auth import KeyRing
from sam.errors import StartupError, Unauthenticated
from sam.key_limits import KeyLimits
from sam.keys_file import HASHED, KnownKey, digest_of, read_keys
from sam.settings import AuthSettings

DIGEST = digest_of("open-sesame").hex()


def written(folder: Path, *lines: str) -> Path:
    """Return a file with these lines."""
    file = folder / "keys"
    file.write_text("\n".join(lines) + "\n")
    return file


def test_plain_and_hashed_keys_stand_side_by_side(tmp_path: Path) -> None:
    """Each line is a key or the hash of one; comments, blank lines and a byte order mark are nothing."""
    file = written(
        tmp_path, "\ufeff# ours", "plain", "", f"  {HASHED}{DIGEST}  ", f"{HASHED}{digest_of('x').hex().upper()}"
    )
    ring = KeyRing.from_file(file)
    for key in ("plain", "open-sesame", "x"):
        ring.admit(key)
    for wrong in (f"{HASHED}{DIGEST}", DIGEST, "Plain", "# ours"):
        with pytest.raises(Unauthenticated):
            ring.admit(wrong)


def test_bare_keys_of_any_kind_are_still_keys(tmp_path: Path) -> None:
    """Keys that have spaces or signs in them are taken as they stand, as they always were."""
    keys = ["my secret key", "c2VjcmV0==", "a=b", "k:1,2;{3}", "x" * 1024]
    ring = KeyRing.from_file(written(tmp_path, *keys, keys[0]))
    for key in keys:
        ring.admit(key)


def test_a_line_says_who_holds_a_key_and_what_he_may_ask(tmp_path: Path) -> None:
    """After a key come its holder's name and limits, in any order; the settings fill in what is not said."""
    file = written(
        tmp_path,
        f"{HASHED}{DIGEST} name=alice rate=2.5/s concurrency=4",
        "two words\tconcurrency=1  name=bob",
        "third rate=30/min",
    )
    alice, bob, third = read_keys(file, KeyLimits(7, 9))
    assert alice == KnownKey(bytes.fromhex(DIGEST), "alice", KeyLimits(2.5, 4))
    assert bob == KnownKey(digest_of("two words"), "bob", KeyLimits(7, 1))
    assert third == KnownKey(digest_of("third"), "", KeyLimits(0.5, 9))
    ring = KeyRing([alice, bob, third])
    assert [ring.name_of(key) for key in ("open-sesame", "two words", "third", "stranger")] == ["alice", "bob", "", ""]
    assert "open" not in repr(alice) + repr(vars(ring))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (f"{HASHED}treasure", "64 hexadecimal digits"),
        (f"{HASHED}{DIGEST}00", "64 hexadecimal digits"),
        ("treasure rate=10", "rate="),
        ("treasure rate=0/s", "rate="),
        ("treasure rate=-1/s", "rate="),
        ("treasure rate=nan/s", "rate="),
        ("treasure concurrency=0", "concurrency="),
        ("treasure concurrency=1.5", "concurrency="),
        ("treasure name=", "name="),
        ("treasure name=a\x07b", "name="),
        ("treasure name=a name=b", "twice"),
        ("treasure rat=10/s", "nothing else"),
        ("trösure", "ASCII"),
        ("treasure" * 200, "ASCII"),
        ("first rate=9/s", "line 1"),
    ],
)
def test_what_cannot_be_understood_is_named_by_its_line(tmp_path: Path, line: str, said: str) -> None:
    """A line that is wrong stops the start and is named by its number; nothing of it is repeated."""
    file = written(tmp_path, "first", "# second", line)
    with pytest.raises(StartupError) as caught:
        KeyRing.from_file(file)
    message = str(caught.value)
    assert f"{file}, line 3: " in message
    assert said in message
    for secret in ("treasure", "tr\u00f6sure", "first", DIGEST):
        assert secret not in message


def test_a_file_of_anything_else_is_refused(tmp_path: Path) -> None:
    """Bytes that are no text are no keys."""
    file = tmp_path / "keys"
    file.write_bytes(b"\xff\xfe\x00k\x00e\x00y")
    with pytest.raises(StartupError, match="not a text file"):
        KeyRing.from_file(file)


def test_limits_without_keys_are_a_mistake(tmp_path: Path) -> None:
    """Limits for each key, where nobody needs one, would limit nobody: the start says so."""
    with pytest.raises(StartupError, match="--api-keys-file"):
        KeyRing.of(AuthSettings(key_rate_per_s=1))
    KeyRing.of(AuthSettings(key_rate_per_s=1, api_keys_file=written(tmp_path, "a")))
