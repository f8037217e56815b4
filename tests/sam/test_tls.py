"""The files of TLS are looked at before they are used."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization

from sam.errors import StartupError
from sam.settings import HttpTlsSettings, RpcClientSettings, RpcTlsSettings
from sam.tls import ServerTls, Tls
from samovar.certs import CA, CLIENT, CLIENT_KEY, SERVER, SERVER_KEY, write_certificates


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Certificates that are valid, in this folder; others in `others`, expired ones in `old`; and what is none."""
    folder = tmp_path_factory.mktemp("certificates")
    write_certificates(folder)
    write_certificates(folder / "others")
    write_certificates(folder / "old", days=-1)
    (folder / "empty.pem").write_text("")
    (folder / "torn.pem").write_bytes((folder / SERVER).read_bytes()[:200])
    key = serialization.load_pem_private_key((folder / SERVER_KEY).read_bytes(), None)
    encryption = serialization.BestAvailableEncryption(b"password")
    encrypted = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
    (folder / "encrypted.pem").write_bytes(encrypted)
    return folder


def server(folder: Path, **names: str) -> ServerTls | None:
    """Return what a gRPC service is told, by names of files."""
    files = {f"grpc_tls_{setting}": folder / name for setting, name in names.items()}
    return ServerTls.of_grpc(RpcTlsSettings.model_validate(files))


def test_without_settings_there_is_none(files: Path) -> None:
    """Neither end speaks TLS unless it is told to."""
    assert ServerTls.of_grpc(RpcTlsSettings()) is None
    assert ServerTls.of_http(HttpTlsSettings()) is None
    assert Tls.of_grpc(RpcClientSettings()) is None


def test_what_is_fine_is_taken(files: Path) -> None:
    """Valid files of either end are accepted, with a client's authority and without."""
    plain, mutual = server(files, cert=SERVER, key=SERVER_KEY), server(files, cert=SERVER, key=SERVER_KEY, client_ca=CA)
    assert plain is not None
    assert mutual is not None
    assert (plain.kind, mutual.kind) == ("on", "mutual")
    Tls(files / CA).check()
    Tls(files / CA, files / CLIENT, files / CLIENT_KEY).check()
    # A server's own certificate is one for asking itself, too.
    Tls(files / CA, files / SERVER, files / SERVER_KEY).check()


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ({"cert": SERVER}, "both --grpc-tls-cert and --grpc-tls-key"),
        ({"client_ca": CA}, "both --grpc-tls-cert and --grpc-tls-key"),
        ({"cert": "gone.pem", "key": SERVER_KEY}, "gone.pem cannot be read: No such file"),
        ({"cert": SERVER, "key": "gone.pem"}, "gone.pem cannot be read: No such file"),
        ({"cert": "empty.pem", "key": SERVER_KEY}, "empty.pem holds no certificate"),
        ({"cert": SERVER_KEY, "key": SERVER_KEY}, f"{SERVER_KEY} holds no certificate"),
        ({"cert": SERVER, "key": SERVER}, f"{SERVER} holds no private key"),
        ({"cert": "torn.pem", "key": SERVER_KEY}, "cannot be read as PEM"),
        ({"cert": SERVER, "key": "encrypted.pem"}, "encrypted.pem is encrypted"),
        ({"cert": SERVER, "key": f"others/{SERVER_KEY}"}, "is not that of the certificate"),
        ({"cert": f"old/{SERVER}", "key": f"old/{SERVER_KEY}"}, "certificate has expired"),
        ({"cert": CLIENT, "key": CLIENT_KEY}, "unsuitable certificate purpose"),
        ({"cert": SERVER, "key": SERVER_KEY, "client_ca": f"old/{CA}"}, "expired on"),
        ({"cert": SERVER, "key": SERVER_KEY, "client_ca": SERVER_KEY}, "holds no certificate"),
        ({"cert": SERVER, "key": SERVER_KEY, "client_ca": "torn.pem"}, "cannot be read as PEM"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(files: Path, names: dict[str, str], said: str) -> None:
    """Whatever is wrong with a server's files is one line that names the file."""
    with pytest.raises(StartupError) as caught:
        server(files, **names)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("tls", "said"),
    [
        (Tls(f"old/{CA}"), "expired on"),
        (Tls(CA, f"old/{CLIENT}", f"old/{CLIENT_KEY}"), "certificate has expired"),
        (Tls(CA, CLIENT), "one of the two is missing"),
        (Tls(CA, CLIENT, f"others/{CLIENT_KEY}"), "is not that of the certificate"),
        (Tls("gone.pem"), "cannot be read"),
    ],
)
def test_a_clients_files_are_looked_at_as_well(files: Path, tls: Tls, said: str) -> None:
    """Whatever is wrong with a client's files is told before it calls."""
    ca, cert, key = (file and files / file for file in (tls.ca, tls.cert, tls.key))
    with pytest.raises(StartupError, match=said):
        Tls(ca, cert, key).context()


def test_half_a_clients_settings_are_refused(files: Path) -> None:
    """A client's certificate without the authority of the services is a mistake, not plain text."""
    with pytest.raises(StartupError, match="--grpc-tls-ca"):
        Tls.of_grpc(RpcClientSettings(grpc_tls_client_cert=files / CLIENT, grpc_tls_client_key=files / CLIENT_KEY))
