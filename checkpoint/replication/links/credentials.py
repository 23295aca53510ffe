"""A host's key and certificate for TLS, as `uffdtrack keys` has made them."""

from __future__ import annotations

import contextlib
import os
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from checkpoint.files import open_regular
from uffdtrack.errors import InvalidInputError, PermissionDeniedError

MARK = "uffdtrack:"
"""A URI in each certificate's subjectAltName begins so: behind it is which of the two it is."""
_MAKE = "`uffdtrack keys` makes a pair"


@dataclass(frozen=True, slots=True)
class Credentials:
    """Key, certificate and CA of one end.

    Attributes:
        path: the file that has them.
        name: of this end, by its certificate: "active" or "standby".
        server, client: for the end that listens, and the one that connects. Both ask for a certificate of the
            same CA, and speak TLS 1.3 only.
    """

    path: Path
    name: str
    server: ssl.SSLContext
    client: ssl.SSLContext

    @classmethod
    def load(cls, path: Path, name: str) -> Credentials:
        """Read a file, or the one of that name in a directory.

        Args:
            name: "active" or "standby".

        Raises:
            InvalidInputError: there is none, others may read it, it has expired, or is none of ours.
            PermissionDeniedError: we may not read it.
        """
        if path.is_dir():
            path = path / f"{name}.pem"
        try:
            with open_regular(path) as file:
                mode = os.fstat(file.fileno()).st_mode
        except PermissionError as error:
            raise PermissionDeniedError(f"may not read {path}. Run as its owner") from error
        except ValueError as error:
            raise InvalidInputError(f"{path} is no file with a key and certificates; {_MAKE}") from error
        except OSError as error:
            raise InvalidInputError(f"cannot read {path}: {error.strerror}; {_MAKE}") from error
        if mode & 0o077:
            raise InvalidInputError(f"others may read the key in {path}: chmod 600 {path}")
        try:
            server = _context(path, ssl.PROTOCOL_TLS_SERVER)
            client = _context(path, ssl.PROTOCOL_TLS_CLIENT)
        except (ssl.SSLError, OSError, ValueError) as error:
            raise InvalidInputError(
                f"{path} is not a key with its certificate and its CA; {_MAKE}"
            ) from error
        return cls(path, name_in(_own_certificate(path, server, client)), server, client)


def _context(path: Path, protocol: int) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(path, password=_no_password)
    context.load_verify_locations(path)
    if protocol == ssl.PROTOCOL_TLS_SERVER:
        context.num_tickets = 0  # no session is taken up again: each link shows its certificates
    return context


def _no_password() -> str:
    raise ValueError("the key has a password")


def _own_certificate(path: Path, server: ssl.SSLContext, client: ssl.SSLContext) -> dict[str, Any]:
    """The certificate in a file, as the other end would see it: we take up a link with ourselves.

    Raises:
        InvalidInputError: the other end would not take it.
    """
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    check_hostname, client.check_hostname = client.check_hostname, False
    try:
        ends = [
            client.wrap_bio(to_client, to_server),
            server.wrap_bio(to_server, to_client, server_side=True),
        ]
        for end in (ends[0], ends[1], ends[0], ends[1]):
            with contextlib.suppress(ssl.SSLWantReadError):
                end.do_handshake()
        found = ends[0].getpeercert()
    except ssl.SSLCertVerificationError as error:
        raise InvalidInputError(f"the certificate in {path}: {error.verify_message}; {_MAKE}") from error
    except ssl.SSLError as error:
        raise InvalidInputError(f"the certificate in {path} is of no use: {error.reason}; {_MAKE}") from error
    finally:
        client.check_hostname = check_hostname
    if not found or not name_in(found):
        raise InvalidInputError(f"the certificate in {path} was not made by `uffdtrack keys`")
    return dict(found)


def name_in(certificate: Any) -> str:
    """Which of a pair a certificate (as SSLSocket.getpeercert() has it) is; "" if it is of no pair."""
    names = (value for kind, value in certificate.get("subjectAltName", ()) if kind == "URI")
    return next((value.removeprefix(MARK) for value in names if value.startswith(MARK)), "")
