"""An authority of a cluster's own, and for each of its nodes a key and a certificate; see docs/clusters.md."""

import argparse
import datetime
import ipaddress
import os
import sys
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

CLOCK_SKEW = datetime.timedelta(hours=1)


def main() -> int:
    """Writes the files of all nodes; 1 if the folder is there already."""
    parser = argparse.ArgumentParser(prog="jobs/certificates.py", description=__doc__)
    parser.add_argument("--to", type=Path, required=True, help="folder to make")
    parser.add_argument("--days", type=int, default=365, help="days that they are good for")
    parser.add_argument("hosts", nargs="+", metavar="HOST", help="a node's address, as Ray is told it: an IP or a name")
    asked = parser.parse_args()
    if asked.to.exists():
        print(f"error: {asked.to} exists; name a new folder", file=sys.stderr)
        return 1
    make(asked.to, asked.hosts, asked.days)
    print(f"{asked.to}: ca.crt for every node, HOST.crt and HOST.key for each its own; keep ca.key to yourself")
    return 0


def make(folder: Path, hosts: list[str], days: int) -> None:
    """Fills a new folder with ca.crt, ca.key, and HOST.crt and HOST.key of every host; keys for their owner only."""
    folder.mkdir(parents=True, mode=0o700)
    authority = ec.generate_private_key(ec.SECP256R1())
    name = _name("genray cluster")
    root = _builder(name, name, authority, days).add_extension(x509.BasicConstraints(ca=True, path_length=0), True)
    certificate = root.add_extension(x509.SubjectKeyIdentifier.from_public_key(authority.public_key()), False).sign(
        authority, hashes.SHA256()
    )
    _write(folder, "ca", authority, certificate)
    usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
    for host in hosts:
        key = ec.generate_private_key(ec.SECP256R1())
        names = x509.SubjectAlternativeName([_alternative(host), x509.DNSName("localhost"), _alternative("127.0.0.1")])
        node = _builder(_name(host), name, key, days).add_extension(names, False).add_extension(usage, False)
        node = node.add_extension(x509.BasicConstraints(ca=False, path_length=None), True)
        node = node.add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key()), False)
        _write(folder, host, key, node.sign(authority, hashes.SHA256()))


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    made = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key.public_key())
    made = made.serial_number(x509.random_serial_number()).not_valid_before(now - CLOCK_SKEW)
    return made.not_valid_after(now + datetime.timedelta(days=days))


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text[:64])])


def _alternative(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _write(folder: Path, name: str, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> None:
    (folder / f"{name}.crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    with os.fdopen(os.open(folder / f"{name}.key", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(pem)


if __name__ == "__main__":
    sys.exit(main())
