"""The files of TLS: read, and found wanting, before anything is served or called.

A certificate that has expired, or a key of another one, would otherwise show as connections that fail without a word.
Everything here takes PEM files.
"""

from __future__ import annotations

import ssl
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sam.errors import StartupError

if TYPE_CHECKING:
    # Programs that use samovar.client have no settings to load.
    from sam.settings import HttpTlsSettings, RpcClientSettings, RpcTlsSettings


@dataclass(frozen=True, slots=True)
class ServerTls:
    """What a server shows its callers, and whose certificates it asks of them.

    Attributes:
        cert: its certificate, and those between it and the authority.
        key: the certificate's private key.
        client_ca: the authorities of its callers' certificates; None: callers need no certificate.
    """

    cert: Path
    key: Path
    client_ca: Path | None = None

    @classmethod
    def of_http(cls, settings: HttpTlsSettings) -> ServerTls | None:
        """Return what the settings name; None: plain HTTP.

        Raises:
            StartupError: a file cannot be used; the message says which, and why.
        """
        return cls._of(settings.http_tls_cert, settings.http_tls_key, None, "--http-tls")

    @classmethod
    def of_grpc(cls, settings: RpcTlsSettings) -> ServerTls | None:
        """Return what the settings name; None: plain text.

        Raises:
            StartupError: a file cannot be used; the message says which, and why.
        """
        return cls._of(settings.grpc_tls_cert, settings.grpc_tls_key, settings.grpc_tls_client_ca, "--grpc-tls")

    @classmethod
    def _of(cls, cert: Path | None, key: Path | None, client_ca: Path | None, flags: str) -> ServerTls | None:
        if cert is None or key is None:
            if cert or key or client_ca:
                raise StartupError(f"TLS needs both {flags}-cert and {flags}-key.")
            return None
        check_pair(cert, key, shown_by_server=True)
        if client_ca is not None:
            check_authorities(client_ca)
        return cls(cert, key, client_ca)

    @property
    def kind(self) -> str:
        """What the log calls it."""
        return "mutual" if self.client_ca else "on"


@dataclass(frozen=True, slots=True)
class Tls:
    """How a client speaks TLS.

    Attributes:
        ca: a file with the authorities that servers' certificates must come from; None: those that this machine trusts,
            and over gRPC those that come with gRPC.
        cert: a file with the client's own certificate, for servers that ask for one.
        key: the file of its private key.
        server_name: over gRPC, the name that servers' certificates must have, where it is not the address's.
    """

    ca: Path | str | None = None
    cert: Path | str | None = None
    key: Path | str | None = None
    server_name: str = ""

    @classmethod
    def of_grpc(cls, settings: RpcClientSettings) -> Tls | None:
        """Return what the settings name; None: plain text.

        Raises:
            StartupError: a file cannot be used; the message says which, and why.
        """
        cert, key, name = settings.grpc_tls_client_cert, settings.grpc_tls_client_key, settings.grpc_tls_server_name
        if settings.grpc_tls_ca is None:
            if cert or key or name:
                raise StartupError("Calling the services over TLS needs --grpc-tls-ca.")
            return None
        tls = cls(settings.grpc_tls_ca, cert, key, name)
        tls.check()
        return tls

    def check(self) -> None:
        """Check the files.

        Raises:
            StartupError: one cannot be used; the message says which, and why.
        """
        if self.ca is not None:
            check_authorities(Path(self.ca))
        if self.cert is not None and self.key is not None:
            check_pair(Path(self.cert), Path(self.key), shown_by_server=False)
        elif self.cert is not None or self.key is not None:
            raise StartupError("A client's certificate and its key go together: one of the two is missing.")

    def context(self) -> ssl.SSLContext:
        """Return the same for HTTP.

        Raises:
            StartupError: see `check`.
        """
        self.check()
        context = ssl.create_default_context(cafile=self.ca)
        if self.cert is not None:
            context.load_cert_chain(self.cert, self.key)
        return context


def check_pair(cert: Path, key: Path, *, shown_by_server: bool) -> list[str]:
    """Check that a certificate is valid now and for its purpose, and that the key is its own.

    Args:
        cert: the certificate, and those between it and the authority.
        key: its private key.
        shown_by_server: whether a server shows it, or else a client.

    Returns:
        The names of hosts that it is for.

    Raises:
        StartupError: it cannot be used.
    """
    _read(cert, "CERTIFICATE-----", "certificate")
    if "ENCRYPTED" in _read(key, "PRIVATE KEY-----", "private key"):
        raise StartupError(f"The private key {key} is encrypted: there is nobody to ask for its password.")
    showing = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if shown_by_server else ssl.PROTOCOL_TLS_CLIENT)
    looking = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT if shown_by_server else ssl.PROTOCOL_TLS_SERVER)
    showing.check_hostname = looking.check_hostname = False
    showing.verify_mode, looking.verify_mode = ssl.CERT_NONE, ssl.CERT_REQUIRED
    # The certificate is looked at for itself, whoever has signed it.
    looking.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    try:
        for context in (showing, looking):
            context.load_cert_chain(cert, key)
        looking.load_verify_locations(cert)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise StartupError(f"The private key {key} is not that of the certificate {cert}.") from None
        raise StartupError(f"The certificate {cert} or its key {key} cannot be read as PEM.") from None
    try:
        seen = _shake_hands(showing, looking, shown_by_server)
    except ssl.SSLCertVerificationError as error:
        raise StartupError(f"The certificate {cert} cannot be used: {error.verify_message}.") from None
    except ssl.SSLError as error:
        raise StartupError(f"The certificate {cert} cannot be used: {error.reason}.") from None
    return [name for kind, name in seen.get("subjectAltName", ()) if kind == "DNS"]


def check_authorities(ca: Path) -> None:
    """Check a file of authorities.

    Raises:
        StartupError: there is none in it, or one has expired.
    """
    _read(ca, "CERTIFICATE-----", "certificate")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_verify_locations(ca)
    except ssl.SSLError:
        raise StartupError(f"The certificates {ca} cannot be read as PEM.") from None
    for authority in context.get_ca_certs():
        ends = str(authority["notAfter"])
        if ssl.cert_time_to_seconds(ends) < time.time():
            raise StartupError(f"An authority in {ca} expired on {ends}.")


def _shake_hands(showing: ssl.SSLContext, looking: ssl.SSLContext, shown_by_server: bool) -> dict[str, Any]:
    """Let two ends meet in memory, as they would over the net; return what one sees of the other's certificate."""
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    shown = showing.wrap_bio(there, back, server_side=shown_by_server)
    looked = looking.wrap_bio(back, there, server_side=not shown_by_server)
    pending = [shown, looked]
    # A handshake takes three turns.
    for _ in range(8):
        for end in list(pending):
            try:
                end.do_handshake()
                pending.remove(end)
            except ssl.SSLWantReadError:
                continue
    return dict(looked.getpeercert() or {})


def _read(path: Path, mark: str, what: str) -> str:
    try:
        text = path.read_text(errors="replace")
    except OSError as error:
        raise StartupError(f"The {what} {path} cannot be read: {error.strerror}.") from None
    if mark not in text:
        raise StartupError(f"The file {path} holds no {what} in PEM form.")
    return text
