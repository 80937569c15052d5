"""Makes the federation's keys, once, into volumes: nothing secret is in the image or the repository.

Every party gets a folder of its own, so that each container can be given what it needs and no more::

    ca/ca.crt                    the certificate that everybody trusts
    superlink/server.{pem,key}   the SuperLink's certificate and key
    superexec/secret             shared by SuperLink and server app only
    node-N/node                  a SuperNode's private key
    nodes/node-N.pub             the public keys that are registered

The certificate authority's own key is thrown away: nothing else can be signed with it.
"""

from __future__ import annotations

import ipaddress
import secrets
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fl_precode.private_file import write_private

VALID_DAYS = 365
READY = "nodes/ready"


def make_keys(root: Path, *, nodes: int, names: Sequence[str] = ("superlink", "localhost")) -> bool:
    """Make every key below ``root``, unless they are there already.

    Args:
        root: Holds one folder for each party, as listed above; they may be mounted volumes.
        nodes: SuperNodes.
        names: Host names under which the SuperLink is reached.

    Returns:
        Whether keys were made.

    Raises:
        OSError: If a folder cannot be written.
    """
    if (root / READY).exists():
        return False
    folders = ["ca", "superlink", "superexec", "nodes", *(f"node-{number}" for number in range(nodes))]
    for folder in folders:
        (root / folder).mkdir(parents=True, exist_ok=True, mode=0o700)
    authority, authority_key = _authority()
    server, server_key = _server_certificate(authority, authority_key, names)
    write_private(root / "ca" / "ca.crt", _pem(authority))
    write_private(root / "superlink" / "server.pem", _pem(server))
    write_private(root / "superlink" / "server.key", _private_pem(server_key))
    write_private(root / "superexec" / "secret", secrets.token_hex(32).encode())
    for number in range(nodes):
        key = ec.generate_private_key(ec.SECP384R1())
        write_private(root / f"node-{number}" / "node", _openssh_private(key))
        write_private(root / "nodes" / f"node-{number}.pub", _openssh_public(key))
    # Last: whoever was interrupted before this point begins anew.
    write_private(root / READY, b"")
    return True


def _authority() -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    key = ec.generate_private_key(ec.SECP384R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fl-precode federation")])
    usage = x509.KeyUsage(
        digital_signature=True, key_cert_sign=True, crl_sign=True, content_commitment=False, key_encipherment=False,
        data_encipherment=False, key_agreement=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip
    builder = (
        _builder(name, name, key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    return builder.sign(key, hashes.SHA384()), key


def _server_certificate(
    authority: x509.Certificate, authority_key: ec.EllipticCurvePrivateKey, names: Sequence[str]
) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    key = ec.generate_private_key(ec.SECP384R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0])])
    alternatives: list[x509.GeneralName] = [x509.DNSName(name) for name in names]
    alternatives.append(x509.IPAddress(ipaddress.ip_address("127.0.0.1")))
    builder = (
        _builder(subject, authority.subject, key.public_key())
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    return builder.sign(authority_key, hashes.SHA384()), key


def _builder(subject: x509.Name, issuer: x509.Name, public: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    # An hour back: the clocks of two machines differ.
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=VALID_DAYS))
    )


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    plain = serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)


def _openssh_private(key: ec.EllipticCurvePrivateKey) -> bytes:
    plain = serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, plain)


def _openssh_public(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH) + b"\n"


def main(arguments: Sequence[str]) -> None:
    """``python -m deploy.keys ROOT NODES``."""
    root, nodes = Path(arguments[0]), int(arguments[1])
    made = make_keys(root, nodes=nodes)
    print(f"keys of the SuperLink and {nodes} nodes {'made' if made else 'were there'} in {root}")  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1:])
