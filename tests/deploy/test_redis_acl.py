"""Redis with least privilege: what the compose file starts serves the services, and does nothing else for anybody."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from sam.embedding_store.redis import COMMANDS
from tests.deploy.acl_redis import SCRIPTS, AclRedis, start_acl_redis
from tests.faults.deployment import stub
from tests.integration.processes import spawn, stack
from tests.integration.test_split_roles import picture, segment

CONNECTING = {"client|setname"}
"""What redis-py needs, besides HELLO, when it connects."""

ASKED_IN_VAIN = b"client|setinfo"
"""What it sends as well, and can do without."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AclRedis]:
    """The Redis of the compose file, and an administrator besides, who looks at what was refused."""
    running = start_acl_redis(tmp_path_factory.mktemp("redis"), "user admin on >admin ~* &* +@all")
    yield running
    running.stop()


def test_the_list_of_users_says_no_more_than_is_needed() -> None:
    """One user, for the keys and channels of the services, and exactly the commands that they send."""
    default, samovar = (SCRIPTS / "users.acl").read_text().splitlines()
    assert default == "user default off"
    words = samovar.split()
    assert words[:4] == ["user", "samovar", "on", "-@all"]
    assert {word[1:] for word in words if word.startswith("+")} == set(COMMANDS) | CONNECTING
    assert [word for word in words[4:] if not word.startswith("+")] == [
        "resetkeys",
        "~sam:*",
        "resetchannels",
        "&sam:*",
    ]


def test_the_services_run_under_it(server: AclRedis, tmp_path: Path) -> None:
    """Embedding, clicking, waiting for another replica and forgetting work from end to end, and nothing is refused."""
    with server.client("admin", "admin") as admin:
        admin.execute_command("ACL", "LOG", "RESET")
        environment = stub(encode_s=0.3) | {"SAMOVAR_REDIS_PASSWORD_FILE": str(server.password_file)}
        with stack(tmp_path, server.url, encoders=2, decoders=2, environment=environment) as processes:
            with processes.gateway.http(timeout=60) as http:
                first = segment(http, image=picture(), image_id="a").raise_for_status()
                assert first.headers["X-Cache"] == "miss"
                for _ in range(4):
                    again = segment(http, image_id="a").raise_for_status()
                    assert (again.headers["X-Cache"], again.json()["masks"]) == ("hit", first.json()["masks"])
                assert segment(http, image_id="a", has_mask_input=True).is_success
                assert http.get("/sam/embeddings/a.npy").is_success
                assert http.delete("/sam/embeddings/a?purge=true").is_success
                assert segment(http, image_id="a").status_code == 404
            processes.stop()
            logs = "".join(one.log.read_text() for one in (*processes.encoders, *processes.decoders))
        refused = [entry[entry.index(b"object") + 1] for entry in map(_flat, admin.execute_command("ACL", "LOG"))]
        assert set(refused) <= {ASKED_IN_VAIN}
    assert server.password_file.read_text() not in logs


def _flat(entry: Any) -> list[bytes]:
    """Return an entry of a log as a list of names and values, whichever protocol brought it."""
    return [part for pair in entry.items() for part in pair] if isinstance(entry, dict) else list(entry)


@pytest.mark.parametrize(
    "command",
    [
        "EVAL return(1) 0",
        "SCRIPT LOAD return(1)",
        "FUNCTION LIST",
        "KEYS sam:*",
        "SCAN 0",
        "CONFIG GET dir",
        "CONFIG SET dir /tmp",
        "RESTORE sam:x 0 x",
        "DUMP sam:x",
        "DEBUG SLEEP 0",
        "FLUSHALL",
        "FLUSHDB",
        "SAVE",
        "SHUTDOWN",
        "MODULE LIST",
        "REPLICAOF NO ONE",
        "MONITOR",
        "CLIENT LIST",
        "CLIENT KILL TYPE normal",
        "ACL LIST",
        "INFO",
        "SELECT 1",
        "RENAME sam:x sam:y",
        "MIGRATE 127.0.0.1 6379 sam:x 0 10",
        "GET secret",
        "SET other:key value",
        "DEL other:key",
        "PUBLISH other:channel x",
    ],
)
def test_everything_else_is_refused(server: AclRedis, command: str) -> None:
    """Whoever has the services' password can neither run scripts, list keys, configure nor read what is not theirs."""
    refusals = r"(?i)no permissions|not allowed"
    with server.client() as client, pytest.raises(redis.exceptions.ResponseError, match=refusals):
        client.execute_command(*command.split())


def test_nobody_else_gets_in(server: AclRedis, tmp_path: Path) -> None:
    """Without a password, with a wrong one, and as the default user nothing is answered; a service says so and ends."""
    for username, password in (("default", ""), ("default", "x"), ("samovar", "x"), ("samovar", "")):
        with server.client(username, password) as client, pytest.raises(redis.exceptions.AuthenticationError):
            client.ping()
    (tmp_path / "wrong").write_text("wrong-password\n")
    for file, words in (("wrong", "refuses this user"), ("gone", "cannot be read")):
        settings = {"SAMOVAR_REDIS_URL": server.url, "SAMOVAR_REDIS_PASSWORD_FILE": str(tmp_path / file)}
        process = spawn(["-m", "encoder_service", "--port", "0"], tmp_path, 0, stub() | settings)
        assert process.popen.wait(60) == 1
        said = process.log.read_text()
        assert words in said.splitlines()[-1]
        assert "wrong-password" not in said


def test_the_password_is_random_and_stays(tmp_path: Path) -> None:
    """Each deployment has a password of its own, which a new start keeps; and one that was put there is taken."""
    made = []
    for folder in ("one", "other", "one"):
        (tmp_path / folder).mkdir(exist_ok=True)
        server = start_acl_redis(tmp_path / folder)
        made.append(server.password_file.read_text())
        command_line = Path(f"/proc/{server.process.pid}/cmdline")
        if command_line.exists():
            assert made[-1] not in command_line.read_text()
        server.stop()
    assert made[0] == made[2] != made[1]
    assert all(len(password) == 64 for password in made)
    own = tmp_path / "own"
    (own / "data").mkdir(parents=True)
    (own / "data" / "password").write_text("of my own\n")
    server = start_acl_redis(own)
    with server.client(password="of my own") as client:
        assert client.ping()
    server.stop()
