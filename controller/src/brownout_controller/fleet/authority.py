"""The controller's certificate authority: it makes every identity, and of a request it reads only the public key."""

import datetime
import ipaddress
import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from brownout_agent.agent.identity import SERVER_NAME, pin_of, write_durably
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

AGENT_LIFE = datetime.timedelta(hours=24)
SERVER_LIFE = datetime.timedelta(days=30)
AUTHORITY_LIFE = datetime.timedelta(days=3650)
_BACKDATED = datetime.timedelta(minutes=5)
"""Clocks of hosts run behind; a certificate must be good at once."""
_AGENT_PREFIX = "/agent/"


class RequestRefused(Exception):
    """A certificate request that the authority will not sign."""


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A private key and the certificate for it, both PEM."""

    key_pem: bytes
    certificate_pem: bytes


class Authority:
    """One authority for one cluster, kept in a folder that is its owner's alone."""

    def __init__(self, folder: Path) -> None:
        """Open the authority in `folder`, making it if there is none."""
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._key_path, self._certificate_path = folder / "authority.key", folder / "authority.pem"
        cluster_path = folder / "cluster.json"
        if not self._certificate_path.exists():
            cluster = str(uuid.uuid4())
            write_durably(cluster_path, json.dumps({"cluster": cluster}).encode())
            pair = _make_authority(cluster)
            write_durably(self._key_path, pair.key_pem)
            write_durably(self._certificate_path, pair.certificate_pem)
        self.cluster: str = json.loads(cluster_path.read_text())["cluster"]
        self.certificate_pem = self._certificate_path.read_bytes()
        self._certificate = x509.load_pem_x509_certificate(self.certificate_pem)
        key = serialization.load_pem_private_key(self._key_path.read_bytes(), password=None)
        assert isinstance(key, ec.EllipticCurvePrivateKey), "we made it"
        self._key = key

    @property
    def pin(self) -> str:
        """What agents compare before they trust anything."""
        return pin_of(self._certificate)

    def server_pair(self) -> KeyPair:
        """A fresh key and certificate for this controller; its chain carries the authority, so agents can pin it."""
        key = ec.generate_private_key(ec.SECP256R1())
        names = [
            x509.DNSName(SERVER_NAME),
            x509.DNSName("localhost"),
            x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
            x509.UniformResourceIdentifier(f"spiffe://{self.cluster}/controller/{uuid.uuid4()}"),
        ]
        certificate = self._sign(key.public_key(), names, ExtendedKeyUsageOID.SERVER_AUTH, SERVER_LIFE)
        return KeyPair(_private_pem(key), certificate + self.certificate_pem)

    def agent_certificate(self, request_pem: bytes, agent_id: str) -> bytes:
        """A client certificate (PEM) for the public key of a request; its names are ours, never the request's.

        Raises:
            RequestRefused: not a request, a wrong signature, or a key that is not P-256.
        """
        try:
            request = x509.load_pem_x509_csr(request_pem)
        except ValueError as error:
            raise RequestRefused(f"not a certificate request: {error}") from error
        key = request.public_key()
        if not request.is_signature_valid:
            raise RequestRefused("the request is not signed by its own key")
        if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
            raise RequestRefused("the key is not on P-256")
        names = [x509.UniformResourceIdentifier(f"spiffe://{self.cluster}{_AGENT_PREFIX}{agent_id}")]
        return self._sign(key, names, ExtendedKeyUsageOID.CLIENT_AUTH, AGENT_LIFE)

    def agent_id_of(self, certificate_pem: bytes) -> str | None:
        """The agent that a peer's certificate names, or None when it names none of this cluster.

        The transport has verified the signature; this reads the role.
        """
        certificate = x509.load_pem_x509_certificate(certificate_pem)
        try:
            names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except x509.ExtensionNotFound:
            return None
        prefix = f"spiffe://{self.cluster}{_AGENT_PREFIX}"
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
        return next((uri.removeprefix(prefix) for uri in uris if uri.startswith(prefix)), None)

    def _sign(
        self,
        key: ec.EllipticCurvePublicKey,
        names: Sequence[x509.GeneralName],
        usage: x509.ObjectIdentifier,
        life: datetime.timedelta,
    ) -> bytes:
        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(self._certificate.subject)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _BACKDATED)
            .not_valid_after(now + life)
            .add_extension(x509.SubjectAlternativeName(names), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=True)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
        )
        return builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def _make_authority(cluster: str) -> KeyPair:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"Brownout authority {cluster}")])
    now = datetime.datetime.now(datetime.UTC)
    usage = x509.KeyUsage(
        digital_signature=False, content_commitment=False, key_encipherment=False, data_encipherment=False,
        key_agreement=False, key_cert_sign=True, crl_sign=True, encipher_only=False, decipher_only=False,
    )  # fmt: skip
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(now + AUTHORITY_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return KeyPair(_private_pem(key), certificate.public_bytes(serialization.Encoding.PEM))


def _private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
