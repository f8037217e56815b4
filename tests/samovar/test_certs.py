"""`samovar certs`: certificates to try TLS with."""

from __future__ import annotations

from pathlib import Path

from cryptography import x509

from samovar.certs import CA, CLIENT, CLIENT_KEY, SERVER, SERVER_KEY
from tests.samovar.processes import run_samovar


def test_a_folder_of_certificates(tmp_path: Path) -> None:
    """It writes five files; the keys are the owner's to read alone, and the authority has none."""
    done = run_samovar("certs", "certs", "--host", "sam.example", "--host", "10.1.2.3", "--days", "2", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    written = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "certs").iterdir()}
    assert set(written) == {CA, SERVER, SERVER_KEY, CLIENT, CLIENT_KEY}
    assert {name for name, mode in written.items() if mode == 0o600} == {SERVER_KEY, CLIENT_KEY}
    assert done.stdout.split() == [f"certs/{name}" for name in (CA, SERVER, SERVER_KEY, CLIENT, CLIENT_KEY)]
    server = x509.load_pem_x509_certificate((tmp_path / "certs" / SERVER).read_bytes())
    names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert {"localhost", "encoder", "decoder", "sam.example"} <= set(names.get_values_for_type(x509.DNSName))
    assert {"127.0.0.1", "10.1.2.3"} <= {str(ip) for ip in names.get_values_for_type(x509.IPAddress)}
    assert 2 <= (server.not_valid_after_utc - server.not_valid_before_utc).total_seconds() / 86_400 < 2.1


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    """Where one of the files is already, nothing is written, and one line says so."""
    (tmp_path / CLIENT_KEY).write_text("precious")
    done = run_samovar("certs", ".", folder=tmp_path)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert CLIENT_KEY in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == [CLIENT_KEY]
