"""Makes the keys and certificates of two hosts, for TLS between them."""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from checkpoint.files import translate
from checkpoint.replication.links.address import is_host_name
from checkpoint.replication.links.credentials import MARK
from checkpoint.row import Row
from uffdtrack.errors import InvalidInputError

LOOPBACK = ("localhost", "127.0.0.1", "::1")
NAMES = ("active", "standby")
_VALID = datetime.timedelta(days=3650)
_CLOCKS_DIFFER = datetime.timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Authority:
    """A CA that signs the certificates of a pair, and is then forgotten: nobody can make a third one.

    Attributes:
        begins, ends: of the certificates.
    """

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate
    begins: datetime.datetime
    ends: datetime.datetime

    @classmethod
    def make(cls, valid: datetime.timedelta = _VALID) -> Authority:
        now = datetime.datetime.now(datetime.UTC)
        begins, ends = now - _CLOCKS_DIFFER, now + valid
        key = ec.generate_private_key(ec.SECP256R1())
        name = _named("uffdtrack pair")
        builder = (
            _builder(name, name, key.public_key(), begins, ends)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(signs=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        )
        return cls(key, builder.sign(key, hashes.SHA256()), begins, ends)

    def issue(self, name: str, hosts: Sequence[str]) -> bytes:
        """A key with its certificate and the CA's, as PEM.

        Args:
            name: which of the pair it is.
            hosts: names or numeric addresses, at which the other end may connect to it.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        own = self.key.public_key()
        builder = (
            _builder(
                _named(f"uffdtrack {name}"),
                self.certificate.subject,
                key.public_key(),
                self.begins,
                self.ends,
            )
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs=False), critical=True)
            .add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
                critical=False,
            )
            .add_extension(
                x509.SubjectAlternativeName(
                    [*map(_host, hosts), x509.UniformResourceIdentifier(MARK + name)]
                ),
                critical=False,
            )
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(own), critical=False)
        )
        parts = [
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            ),
            builder.sign(self.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM),
            self.certificate.public_bytes(serialization.Encoding.PEM),
        ]
        return b"".join(parts)


def _named(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    begins: datetime.datetime,
    ends: datetime.datetime,
) -> x509.CertificateBuilder:
    return x509.CertificateBuilder(issuer, subject, key, x509.random_serial_number(), begins, ends)


def _usage(signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs, key_cert_sign=signs, crl_sign=False, content_commitment=False,
        key_encipherment=False, data_encipherment=False, key_agreement=False, encipher_only=False,
        decipher_only=False,
    )  # fmt: skip


def _host(text: str) -> x509.GeneralName:
    """Raises: InvalidInputError: it is no name and no numeric address."""
    with contextlib.suppress(ValueError):
        return x509.IPAddress(ipaddress.ip_address(text))
    if is_host_name(text):
        return x509.DNSName(text)
    raise InvalidInputError(f"{text!r} is no name of a host, and no numeric address")


@dataclass(frozen=True, slots=True)
class KeysRow(Row):
    """One file that was made.

    Attributes:
        name: "active" or "standby".
        hosts: that its certificate is for.
        expires: when it ends, in ISO 8601.
    """

    schema: ClassVar[str] = "uffdtrack/keys/1"

    name: str
    file: str
    hosts: list[str]
    expires: str


def make_pair(directory: Path, hosts: Sequence[str] = (), force: bool = False) -> list[KeysRow]:
    """Make `active.pem` and `standby.pem`, each with a key, its certificate and the CA, mode 0600.

    Args:
        directory: is made if it is not there.
        hosts: of the active and the standby, several for one with commas between; none: loopback, for both.
        force: replace a pair that is there.

    Raises:
        InvalidInputError: keys are there, or a host is none.
        PermissionDeniedError, StorageError: we cannot write them.
    """
    if len(hosts) not in (0, 2):
        raise InvalidInputError("a pair is for two hosts: name both, or none for a pair on this host")
    of_each = [host.split(",") for host in hosts] or [list(LOOPBACK)] * 2
    authority = Authority.make()
    texts = [authority.issue(name, own) for name, own in zip(NAMES, of_each, strict=True)]
    paths = [directory / f"{name}.pem" for name in NAMES]
    there = [path for path in paths if os.path.lexists(path)]
    if there and not force:
        raise InvalidInputError(f"{there[0]} is there: --force replaces it, and then the other host's, too")
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path, text in zip(paths, texts, strict=True):
            _write(path, text)
    except OSError as error:
        raise translate(error, directory) from error
    return [
        KeysRow(name, str(path), own, authority.ends.isoformat(timespec="seconds"))
        for name, path, own in zip(NAMES, paths, of_each, strict=True)
    ]


def _write(path: Path, text: bytes) -> None:
    """A file that is there whole, or not at all."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        with open(fd, "wb") as file:
            file.write(text)
            file.flush()
            os.fsync(fd)
        os.replace(draft, path)
    except BaseException:
        os.unlink(draft)
        raise
