"""`samovar serve`: checks what fails fast, and only then imports what is heavy."""

from __future__ import annotations

from sam.command import settings_command
from sam.errors import StartupError
from sam.lifecycle import let_waiting_threads_sleep
from sam.logs import configure_logs
from sam.tracing import start_tracing
from samovar.ports import check_ports
from samovar.settings import ServeSettings


def run(settings: ServeSettings) -> None:
    """Serve until a signal.

    Raises:
        StartupError: a port is in use, or there is nothing to serve.
    """
    configure_logs(settings, "samovar")
    start_tracing("samovar")
    highest = max(settings.ports.values())
    if highest > 65535:
        raise StartupError(f"There is no port {highest}: with --port {settings.port}, give the gRPC ports as well.")
    check_ports(settings.host, settings.ports)
    let_waiting_threads_sleep()
    # Seconds of importing torch, for nothing if a port is in use.
    from samovar.local import serve

    serve(settings)


command = settings_command(
    "serve",
    ServeSettings,
    run,
    "Serve everything from one process: HTTP, and the encoder and the decoder over gRPC. Embeddings are kept in this "
    "process unless --redis-url is given. Ctrl-C stops it cleanly, a second one at once.",
)
