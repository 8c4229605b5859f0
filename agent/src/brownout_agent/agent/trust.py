"""Whom this agent obeys: controllers of one cluster, known by the pinned root above them.

A cluster has a root authority (the pin is its) and below it one intermediate for agents and one for controllers.
What an agent trusts on a connection are the controllers' intermediates alone: gRPC shows a client no certificate of its
peer, so the role must follow from who signed. A certificate that the agents' intermediate signed is nobody here,
whatever names it carries; and the authority puts SERVER_NAME and `spiffe://CLUSTER/controller/ID` on controllers only.
"""

import hashlib
import re
import socket
import ssl
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import ExtendedKeyUsageOID

SERVER_NAME = "controller.brownout.internal"
"""The name in every controller's certificate; it is compared with what a controller shows, wherever it listens."""
_CONTROLLER = re.compile(r"spiffe://[0-9a-z.-]+/controller/[0-9a-f-]+")
_FETCH_TIMEOUT_S = 5.0


class NotTrusted(Exception):
    """Certificates that lead to no controller of this cluster; the text says where they fail."""


def pin_of(certificate: x509.Certificate) -> str:
    """`sha256:` and the hex digest of the certificate's public key (SubjectPublicKeyInfo, DER)."""
    spki = certificate.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return f"sha256:{hashlib.sha256(spki).hexdigest()}"


def fetch_authority(host: str, port: int, pin: str) -> bytes:
    """The authorities of a controller (PEM, root and intermediate), taken from its handshake.

    They are believed only because the root has the pin and the chain below it is a controller's.

    Raises:
        OSError: the controller does not answer.
        NotTrusted: nothing it showed has this pin, or it is no controller below it.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # the pin decides, below
    context.set_alpn_protocols(["h2"])
    with socket.create_connection((host, port), timeout=_FETCH_TIMEOUT_S) as raw, context.wrap_socket(raw) as tls:
        chain = [x509.load_der_x509_certificate(der) for der in _unverified_chain(tls)]
    root = next((certificate for certificate in chain if pin_of(certificate) == pin), None)
    if root is None:
        raise NotTrusted(
            f"{host}:{port} shows no authority with the pin {pin}: this is another controller, or somebody in between. "
            "Next: compare with `brownout token create` on the controller"
        )
    shown = b"".join(certificate.public_bytes(serialization.Encoding.PEM) for certificate in chain[1:])
    intermediates = x509.load_pem_x509_certificates(controllers_of(shown, pin))
    if not any(_signed(chain[0], intermediate) for intermediate in intermediates) or not _is_controller(chain[0]):
        raise NotTrusted(f"{host}:{port} shows a certificate that is no controller's. Next: ask who runs it")
    return shown


def controllers_of(bundle_pem: bytes, pin: str = "") -> bytes:
    """Of a bundle of roots and intermediates, the controllers' intermediates (PEM): what a connection may rest on.

    An intermediate counts when a root of the same bundle (the one with the pin, if one is given) signed it, and it may
    sign for servers only.

    Raises:
        NotTrusted: there is none.
    """
    try:
        bundle = x509.load_pem_x509_certificates(bundle_pem)
    except ValueError as error:
        raise NotTrusted(f"the authorities cannot be read: {error}") from error
    roots = [one for one in bundle if one.issuer == one.subject and (not pin or pin_of(one) == pin)]
    found = [one for one in bundle if _signs_for_servers(one) and any(_signed(one, root) for root in roots)]
    if not found:
        raise NotTrusted("no controllers' authority stands below the root. Next: brownout-agent join ...")
    return b"".join(one.public_bytes(serialization.Encoding.PEM) for one in found)


def _signs_for_servers(certificate: x509.Certificate) -> bool:
    try:
        usages = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        basic = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    except x509.ExtensionNotFound:
        return False
    return basic.ca and list(usages) == [ExtendedKeyUsageOID.SERVER_AUTH]


def _is_controller(certificate: x509.Certificate) -> bool:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return False
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    return any(_CONTROLLER.fullmatch(uri) for uri in uris)


def _signed(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _unverified_chain(tls: ssl.SSLSocket) -> list[bytes]:
    # Public since Python 3.13 (gh-109109); before that the same call stands on the inner object.
    if hasattr(tls, "get_unverified_chain"):
        return list(tls.get_unverified_chain())
    inner: Any = getattr(tls, "_sslobj")  # noqa: B009 - mypy's stub hides it
    return [ssl.PEM_cert_to_DER_cert(certificate.public_bytes()) for certificate in inner.get_unverified_chain()]
