"""`samovar doctor`: what serving needs here, looked at before it is needed."""

from __future__ import annotations

import asyncio
import http.client
import os
import shutil
import stat
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from enum import Enum
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import click

from sam.command import settings_command
from sam.embedding_store import open_redis
from sam.embedding_store.redis_clients import describe
from sam.errors import StartupError, StoreUnavailable
from sam.published import DEFAULT_MODEL, PUBLISHED, starter_checkpoint, verify
from samovar.access import check_access
from samovar.ports import check_ports
from samovar.settings import ServeSettings

PROBE_TIMEOUT_S = 5.0
"""How long the weights' address may take to answer: it is only asked whether it is there."""


class Verdict(Enum):
    """How bad a finding is. Only PROBLEM keeps the service from starting, and makes the exit status 1."""

    GOOD = ("ok", "green")
    NOTE = ("note", "yellow")
    PROBLEM = ("PROBLEM", "red")


class Finding(NamedTuple):
    """What one check found, and what to do about it."""

    verdict: Verdict
    what: str
    advice: str = ""


Check = Callable[[ServeSettings], Iterator[Finding]]


def check_python(_: ServeSettings) -> Iterator[Finding]:
    """Check the packages that are imported late."""
    version = sys.version.split()[0]
    missing = [name for name in ("torch", "segment_anything", "aiohttp", "fastapi", "cv2") if find_spec(name) is None]
    if missing:
        advice = "Run 'make serve' once, or pip install 'samovar[all]'."
        yield Finding(Verdict.PROBLEM, f"Python {version} lacks {', '.join(missing)}", advice)
    else:
        yield Finding(Verdict.GOOD, f"Python {version} with every package")


def check_device(settings: ServeSettings) -> Iterator[Finding]:
    """Check what the image encoder would run on."""
    if find_spec("torch") is None:
        return
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if torch.cuda.is_available():
        used = settings.device != "cpu"
        yield Finding(
            Verdict.GOOD if used else Verdict.NOTE,
            f"torch {torch.__version__} with {torch.cuda.get_device_name(0)}",
            "" if used else "It is not used: drop --device cpu.",
        )
    elif settings.device == "cuda":
        advice = "Check the driver with nvidia-smi, install torch with 'make serve TORCH=cuda', or drop --device cuda."
        yield Finding(Verdict.PROBLEM, f"torch {torch.__version__} sees no GPU, but --device says cuda", advice)
    else:
        advice = "A new picture takes seconds; clicks on known pictures stay fast."
        yield Finding(Verdict.GOOD, f"torch {torch.__version__} on {cores} CPU cores, no GPU", advice)


def check_weights(settings: ServeSettings) -> Iterator[Finding]:
    """Check the checkpoint that would be served, or that it could be downloaded."""
    if settings.checkpoint is not None:
        yield _own_checkpoint(settings.checkpoint)
        return
    starter = starter_checkpoint() is not None
    model = settings.model or DEFAULT_MODEL
    if model not in PUBLISHED:
        verdict = Verdict.GOOD if starter else Verdict.PROBLEM
        advice = "" if starter else "This build carries none: choose vit_b, vit_l or vit_h."
        yield Finding(verdict, "the bundled starter checkpoint", advice)
        return
    known = PUBLISHED[model]
    path = settings.weights_dir / known.file_name
    if path.exists():
        try:
            verify(path, known)
            yield Finding(Verdict.GOOD, f"{path} is the published checkpoint of {model}")
        except StartupError as error:
            yield Finding(Verdict.PROBLEM, f"the checkpoint of {model}", str(error))
        return
    size = f"{known.size_bytes / 2**20:,.0f} MiB"
    what = f"the checkpoint of {model} is not in {settings.weights_dir}"
    cause = _why_unreachable(settings.weights_url.rstrip("/") + "/" + known.file_name)
    if cause is None:
        yield Finding(Verdict.NOTE, what, f"The first start downloads it: {size} from {settings.weights_url}.")
        yield from _room(settings.weights_dir, known.size_bytes)
    elif settings.model is None and starter:
        yield Finding(Verdict.NOTE, what, f"{settings.weights_url} says: {cause}. The bundled starter will be served.")
    else:
        advice = (
            f"{settings.weights_url} says: {cause}. Name a mirror with --weights-url, put the file there yourself, "
        )
        yield Finding(Verdict.PROBLEM, what, f"{advice}or give one of your own with --checkpoint.")


def _why_unreachable(url: str) -> str | None:
    request = urllib.request.Request(url, method="HEAD")  # noqa: S310 (the operator's own setting)
    try:
        with urllib.request.urlopen(request, timeout=PROBE_TIMEOUT_S):  # noqa: S310 (the operator's own setting)
            return None
    except urllib.error.HTTPError as error:
        error.close()
        return f"HTTP {error.code}"
    except (OSError, ValueError, http.client.HTTPException) as error:
        return str(getattr(error, "reason", error))


def _own_checkpoint(checkpoint: str) -> Finding:
    if checkpoint.startswith("random:"):
        return Finding(Verdict.NOTE, f"--checkpoint {checkpoint}", "The masks mean nothing: tests and benchmarks only.")
    if not Path(checkpoint).is_file():
        return Finding(Verdict.PROBLEM, f"there is no checkpoint file {checkpoint}", "Check --checkpoint.")
    return Finding(Verdict.GOOD, f"{checkpoint} is there; its digest will be the model's fingerprint")


def _room(folder: Path, needed_bytes: int) -> Iterator[Finding]:
    existing = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    if not os.access(existing, os.W_OK):
        yield Finding(Verdict.PROBLEM, f"{existing} cannot be written to", "Choose another folder with --weights-dir.")
    free = shutil.disk_usage(existing).free
    if free < needed_bytes:
        yield Finding(Verdict.PROBLEM, f"{existing} has only {free / 2**20:,.0f} MiB left", "Make room for it.")


def check_store(settings: ServeSettings) -> Iterator[Finding]:
    """Check that Redis answers, if there is to be one."""
    if settings.redis_url is None:
        advice = "Not shared, lost on exit. The services on their own need --redis-url."
        yield Finding(Verdict.GOOD, "embeddings are kept in the process of 'samovar serve'", advice)
        return
    where = describe(settings.redis_url)
    try:
        asyncio.run(_reach(settings))
        yield Finding(Verdict.GOOD, f"Redis at {where} answers")
    except (StoreUnavailable, StartupError) as error:
        advice = f"{error} Start it, or check --redis-url: its host, port, user and password."
        yield Finding(Verdict.PROBLEM, f"Redis at {where}", advice)


async def _reach(settings: ServeSettings) -> None:
    backend = open_redis(settings)
    try:
        await backend.reach()
    finally:
        await backend.close()


def look_at_access(settings: ServeSettings) -> Iterator[Finding]:
    """Check the files of keys and certificates."""
    try:
        yield Finding(Verdict.GOOD, check_access(settings))
    except StartupError as error:
        yield Finding(Verdict.PROBLEM, "keys and certificates", str(error))
        return
    for name in ("api_keys_file", "http_tls_key", "grpc_tls_key", "grpc_tls_client_key", "redis_password_file"):
        file: Path | None = getattr(settings, name)
        if file is not None and file.exists() and file.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            advice = "Let the services' user alone read it: chmod 600."
            yield Finding(Verdict.NOTE, f"others on this machine may read {file}", advice)


def check_listening(settings: ServeSettings) -> Iterator[Finding]:
    """Check that the ports of `samovar serve` are free."""
    for flag, port in settings.ports.items():
        try:
            check_ports(settings.host, {flag: port})
            yield Finding(Verdict.GOOD, f"{flag} {port} is free")
        except (StartupError, OverflowError) as error:
            advice = f"{error} 'samovar serve' may be running already."
            yield Finding(Verdict.PROBLEM, f"{flag} {port}", advice)


CHECKS: tuple[Check, ...] = (check_python, check_device, check_weights, check_store, look_at_access, check_listening)


def run(settings: ServeSettings) -> None:
    """Run every check, say what each found, and exit with 1 if one found a problem."""
    problems = 0
    for check in CHECKS:
        for verdict, what, advice in check(settings):
            label, colour = verdict.value
            click.echo(f"{click.style(f'{label:>7}', fg=colour)}  {what}")
            if advice:
                click.echo(f"{'':>7}  {advice}")
            problems += verdict is Verdict.PROBLEM
    if problems:
        raise click.exceptions.Exit(1)


command = settings_command(
    "doctor",
    ServeSettings,
    run,
    "Check what 'samovar serve' needs on this machine: packages, device, weights, Redis, keys, certificates, ports. "
    "Takes its flags, starts nothing, downloads nothing. Exit status 0: it would serve. 1: it would not, and the lines "
    "say what to do.",
)
