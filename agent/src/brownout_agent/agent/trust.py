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
from collections.abc import Iterable
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
    controllers_pem = controllers_of(shown, pin)
    intermediates = x509.load_pem_x509_certificates(controllers_pem)
    if not any(_signed(chain[0], intermediate) for intermediate in intermediates) or not _is_controller(chain[0]):
        raise NotTrusted(f"{host}:{port} shows a certificate that is no controller's. Next: ask who runs it")
    return controllers_pem + root.public_bytes(serialization.Encoding.PEM)


def controllers_of(bundle_pem: bytes, pin: str = "") -> bytes:
    """Of a bundle of roots and intermediates, the controllers' intermediates (PEM): what a connection may rest on.

    An intermediate counts when a root of the same bundle (the one with the pin, if one is given) signed it, and it may
    sign for servers only.

    Raises:
        NotTrusted: there is none.
    """
    bundle = _read(bundle_pem)
    roots = [root for root in _roots(bundle) if not pin or pin_of(root) == pin]
    found = [one for one in bundle if _signs_for_servers(one) and any(_signed(one, root) for root in roots)]
    if not found:
        raise NotTrusted("no controllers' authority stands below the root. Next: brownout-agent join ...")
    return b"".join(one.public_bytes(serialization.Encoding.PEM) for one in found)


def check_succession(kept_pem: bytes, told_pem: bytes) -> None:
    """Let a bundle pass that may take the place of the kept one.

    A controller's word alone adds no root: one of them must be known, and a known root must have signed each new one.
    Only who rotates has a root's key; a controller that was stolen may have but the intermediates'.

    Raises:
        NotTrusted: it must not; nothing of it may be kept.
    """
    known = {pin_of(root): root for root in _roots(_read(kept_pem))}
    told = _read(told_pem)
    roots = _roots(told)
    if not any(pin_of(root) in known for root in roots):
        raise NotTrusted(
            "this controller tells of authorities among which is no root that this host knows. Next: ask who runs it; "
            "if the authority was founded anew, join again with a new token"
        )
    for root in roots:
        if not any(_signs_for_servers(one) and _signed(one, root) for one in told):
            raise NotTrusted(
                f"this controller tells of a root, {pin_of(root)}, without a controllers' authority below it"
            )
        if pin_of(root) not in known and not any(_vouches(one, root, known.values()) for one in told):
            raise NotTrusted(
                f"this controller tells of a new root, {pin_of(root)}, that no root known to this host has signed. "
                "Next: ask who runs it; a rotation that an earlier version began must be taken back (docs/identity.md)"
            )


def check_certificate(certificate_pem: bytes, key_pem: bytes, agent_id: str) -> None:
    """Let a certificate pass that can take the place of the one in use: for this key and this agent.

    Raises:
        NotTrusted: it is of no use here; the one in use is to be kept.
    """
    try:
        certificate = x509.load_pem_x509_certificate(certificate_pem)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, x509.ExtensionNotFound) as error:
        raise NotTrusted(f"this controller gives a certificate that is none: {error}") from error
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    key = serialization.load_pem_private_key(key_pem, password=None)
    if certificate.public_key() != key.public_key() or not any(uri.endswith(f"/agent/{agent_id}") for uri in uris):
        raise NotTrusted(f"this controller gives a certificate that is not agent {agent_id}'s")


def _read(bundle_pem: bytes) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(bundle_pem)
    except ValueError as error:
        raise NotTrusted(f"the authorities cannot be read: {error}") from error


def _roots(bundle: Iterable[x509.Certificate]) -> list[x509.Certificate]:
    return [one for one in bundle if one.issuer == one.subject]


def _vouches(certificate: x509.Certificate, root: x509.Certificate, known: Iterable[x509.Certificate]) -> bool:
    """Whether a known root says by this certificate that `root` is one.

    An intermediate of a known root says nothing of the kind, though it may well be for a key that was stolen.
    """
    try:
        basic = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    except x509.ExtensionNotFound:
        return False
    is_for_root = certificate.subject == root.subject and pin_of(certificate) == pin_of(root)
    above_others = basic.ca and basic.path_length != 0 and not _is_bound_to_a_use(certificate)
    return is_for_root and above_others and any(_signed(certificate, one) for one in known)


def _is_bound_to_a_use(certificate: x509.Certificate) -> bool:
    try:
        certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage)
    except x509.ExtensionNotFound:
        return False
    return True


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
