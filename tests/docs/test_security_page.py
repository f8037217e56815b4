"""docs/security.md says what is true: its commands run, one after another, and its files are what it says they are."""

from __future__ import annotations

import re
import shlex
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

from gateway.settings import GatewaySettings
from sam.embedding_store.redis import COMMANDS
from sam.key_limits import NO_LIMITS, KeyLimits
from sam.keys_file import digest_of, read_keys
from sam.tls import Tls
from samovar.settings import ServeSettings
from tests.deploy.compose import ROOT, load_compose, variables_used
from tests.docs.snippets import DOCS, Snippet, at, run, snippets
from tests.faults.deployment import stub
from tests.integration.processes import Process, service
from tests.photographs import photograph

PAGE = "security.md"
TEXT = (DOCS / PAGE).read_text()


def test_every_command_runs_as_printed(tmp_path: Path) -> None:
    """From an empty folder with a photograph, each block does what the page says, against the server it has started."""
    (tmp_path / "photo.jpg").write_bytes(photograph().read_bytes())
    port, ran = 9001, 0
    with ExitStack() as running:
        for snippet in snippets(PAGE):
            if snippet.marker == "starts the server":
                running.close()
                port = running.enter_context(served(snippet, tmp_path)).port
            elif snippet.marker == "with Docker":
                names_what_is_there(snippet, tmp_path)
            elif snippet.language in ("sh", "python"):
                run(at(snippet.text, port), snippet.language, tmp_path)
                ran += 1
    assert ran >= 7
    assert (tmp_path / "mask.png").read_bytes()[:4] == b"\x89PNG"
    assert "UNAUTHENTICATED" in (tmp_path / "refused.json").read_text()
    alice, batch = read_keys(tmp_path / "api-keys", NO_LIMITS)
    assert (alice.name, alice.limits, batch.name) == ("alice", KeyLimits(10, 4), "batch")


def served(snippet: Snippet, folder: Path) -> AbstractContextManager[Process]:
    """Start what a block starts, with a model that costs nothing, on ports of the test's own."""
    program, command, *words = shlex.split(snippet.text.replace("\\\n", " "))
    assert (program, command) == ("samovar", "serve")
    # The reader is in that folder, the process is not.
    arguments = tuple(str(folder / word) if (folder / word).exists() else word for word in words)
    tls = Tls(folder / "certs" / "ca.pem") if "--http-tls-cert" in words else None
    return service("samovar", folder, stub(), arguments=("serve", *arguments), tls=tls)


def names_what_is_there(snippet: Snippet, folder: Path) -> None:
    """Check that the files of a command for Docker exist, and that the blocks before it have made all the secrets."""
    for file in re.findall(r"-f (\S+)", snippet.text):
        assert (ROOT / file).exists()
    assert "chown 10001 secrets/*" in snippet.text
    for secret in load_compose("docker-compose.secure.yml")["secrets"].values():
        assert (folder / secret["file"]).exists()


def test_the_example_of_a_file_of_keys_is_one(tmp_path: Path) -> None:
    """The file that the page shows can be read, and says what the text says of it."""
    (example,) = [snippet.text for snippet in snippets(PAGE) if "an-old-plain-key" in snippet.text]
    (tmp_path / "keys").write_text(example)
    alice, nobody, bob = read_keys(tmp_path / "keys", NO_LIMITS)
    assert (alice.name, alice.limits) == ("alice", KeyLimits(10, 4))
    assert (nobody.name, nobody.limits) == ("", KeyLimits(0.5))
    assert (bob.name, bob.digest) == ("bob", digest_of("an-old-plain-key"))


def test_what_the_page_names_exists() -> None:
    """Settings, variables of the compose file and commands of Redis are those of the code."""
    settings = set(ServeSettings.model_fields) | set(GatewaySettings.model_fields)
    named = set(re.findall(r"`((?:http|grpc|key|share|cors|api)_[a-z_]+)`", TEXT)) - {"api_key"}
    assert named - {"key_rate", "key_concurrency"} <= settings
    assert {name for name in settings if "_tls_" in name} <= named
    assert {"ENCODER_MEMORY", "DECODER_MEMORY", "GATEWAY_MEMORY", "REDIS_MEMORY", "PIDS"} <= variables_used()
    (sentence,) = re.findall(r"only these commands: ([^.]*)\.", TEXT)
    listed = set(re.findall(r"[A-Z]+(?: [A-Z]+)?", sentence))
    assert listed == {command.upper() for command in COMMANDS} | {"CLIENT SETNAME"}
    for page in (TEXT, (ROOT / "SECURITY.md").read_text()):
        for target in re.findall(r"`(deploy/[a-z/.]+|docker-compose[a-z.]*)`", page):
            assert (ROOT / target).exists(), target


def test_links_of_the_threat_model_lead_somewhere() -> None:
    """Every relative link of SECURITY.md names a file."""
    for target in re.findall(r"\]\(([^)\s#]+)", (ROOT / "SECURITY.md").read_text()):
        assert (ROOT / target).exists(), target
