"""`samovar certs`: certificates for trying out TLS, from an authority that forgets how to sign."""

from __future__ import annotations

import ipaddress
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

HOSTS = ("localhost", "127.0.0.1", "::1", "encoder", "decoder", "gateway")
"""What the server's certificate is for in any case: this machine, and the services of the compose file."""

CA, SERVER, SERVER_KEY, CLIENT, CLIENT_KEY = "ca.pem", "server.pem", "server-key.pem", "client.pem", "client-key.pem"

_SKEW = timedelta(minutes=5)
"""Certificates are valid from a little earlier: clocks differ."""


def write_certificates(folder: Path, hosts: tuple[str, ...] = HOSTS, *, days: float = 30) -> list[Path]:
    """Write an authority's certificate, and a server's and a client's with their keys.

    The authority's own key is not kept: nobody can sign more in its name.

    Args:
        folder: where to; made if it is not there.
        hosts: the names and addresses of the servers.
        days: how long the certificates are valid; below 0, they have expired already.

    Returns:
        The files.

    Raises:
        FileExistsError: one of the files is there already.
    """
    paths = [folder / name for name in (CA, SERVER, SERVER_KEY, CLIENT, CLIENT_KEY)]
    for path in paths:
        if path.exists():
            raise FileExistsError(path)
    folder.mkdir(parents=True, exist_ok=True)
    now = datetime.now(UTC)
    begins, ends = min(now, now + timedelta(days=days)) - _SKEW, now + timedelta(days=days)
    ca_key = ec.generate_private_key(ec.SECP256R1())
    ca_name = _name("Samovar trial authority")
    ca = (
        _builder(ca_name, ca_name, ca_key.public_key(), begins, ends)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .sign(ca_key, hashes.SHA256())
    )
    files = {CA: _pem(ca)}
    # A server's also goes as a client's: with it a service asks itself for its health.
    purposes = {
        SERVER: [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH],
        CLIENT: [ExtendedKeyUsageOID.CLIENT_AUTH],
    }
    for file, key_file, title in ((SERVER, SERVER_KEY, "Samovar server"), (CLIENT, CLIENT_KEY, "Samovar client")):
        key = ec.generate_private_key(ec.SECP256R1())
        builder = _builder(_name(title), ca_name, key.public_key(), begins, ends)
        if file == SERVER:
            names = x509.SubjectAlternativeName([_host(host) for host in hosts])
            builder = builder.add_extension(names, critical=False)
        certificate = (
            builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(purposes[file]), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
            .sign(ca_key, hashes.SHA256())
        )
        files[file] = _pem(certificate)
        files[key_file] = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    for name, content in files.items():
        with open(folder / name, "xb", opener=_private if "key" in name else None) as file_:
            file_.write(content)
    return paths


@click.command()
@click.argument("folder", metavar="DIR", type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--host",
    "hosts",
    multiple=True,
    metavar="NAME",
    help=f"A name or an address of your servers, besides {', '.join(HOSTS)}. May be repeated.",
)
@click.option("--days", type=click.IntRange(min=1), default=30, show_default=True, help="How long they are valid.")
def command(folder: Path, hosts: tuple[str, ...], days: int) -> None:
    """Write certificates for trying out TLS into DIR: an authority, a server's and a client's.

    The authority's key is not kept, so that nobody can sign more with it. For anything but a trial, use an authority of
    your own.
    """
    try:
        paths = write_certificates(folder, (*HOSTS, *hosts), days=days)
    except FileExistsError as error:
        raise click.ClickException(f"{error} is there already. Choose another folder, or remove it.") from None
    except (OSError, ValueError) as error:
        raise click.ClickException(f"No certificates can be written: {error}.") from None
    for path in paths:
        click.echo(path)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, begins: datetime, ends: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begins)
        .not_valid_after(ends)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
