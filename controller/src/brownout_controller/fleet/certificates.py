"""Making certificates: a root, an intermediate for each role, and the short-lived ones below them. No files here."""

import datetime
from collections.abc import Sequence
from dataclasses import dataclass

from brownout_agent.agent.identity import BACKDATED
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

AUTHORITY_LIFE = datetime.timedelta(days=3650)
AGENTS, CONTROLLERS = "agents", "controllers"
USAGES = {AGENTS: ExtendedKeyUsageOID.CLIENT_AUTH, CONTROLLERS: ExtendedKeyUsageOID.SERVER_AUTH}
"""What the intermediate of a role may sign for. TLS libraries hold everything below it to that (measured)."""


@dataclass(frozen=True, slots=True)
class Signer:
    """An authority: its key and its certificate."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @property
    def certificate_pem(self) -> bytes:
        """The certificate alone (PEM)."""
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def pem(self) -> bytes:
        """Key and certificate, as they are kept."""
        return private_pem(self.key) + self.certificate_pem

    @classmethod
    def from_pem(cls, pem: bytes) -> "Signer":
        """What `pem` gave.

        Raises:
            ValueError: it is damaged.
        """
        key = serialization.load_pem_private_key(pem, password=None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise ValueError("not a key on an elliptic curve")
        return cls(key, x509.load_pem_x509_certificate(pem))


def make_root(cluster: str, now: datetime.datetime) -> Signer:
    """A root authority, good for intermediates only."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"Brownout root {cluster}")])
    builder = _authority(name, name, key, now, path_length=1)
    return Signer(key, builder.sign(key, hashes.SHA256()))


def make_vouch(root: Signer, other: Signer) -> x509.Certificate:
    """One root's word that another is one of the same cluster: agents that know the first may then know the second.

    Known from an intermediate by its path length and by having no extended usage (`brownout_agent.agent.trust`).
    """
    begins = other.certificate.not_valid_before_utc + BACKDATED
    builder = _authority(other.certificate.subject, root.certificate.subject, other.key, begins, path_length=1)
    return builder.add_extension(_issuer(root), critical=False).sign(root.key, hashes.SHA256())


def make_intermediate(root: Signer, cluster: str, role: str, now: datetime.datetime) -> Signer:
    """The intermediate of one role (`agents`, `controllers`), good for that role's certificates only."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"Brownout {role} {cluster}")])
    builder = _authority(name, root.certificate.subject, key, now, path_length=0)
    builder = builder.add_extension(x509.ExtendedKeyUsage([USAGES[role]]), critical=True)
    builder = builder.add_extension(_issuer(root), critical=False)
    return Signer(key, builder.sign(root.key, hashes.SHA256()))


def sign_leaf(
    issuer: Signer,
    key: ec.EllipticCurvePublicKey,
    names: Sequence[x509.GeneralName],
    usage: x509.ObjectIdentifier,
    begins: datetime.datetime,
    life: datetime.timedelta,
) -> x509.Certificate:
    """A certificate for a key under the names that the authority gives it; backdated by `BACKDATED`."""
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(issuer.certificate.subject)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begins - BACKDATED)
        .not_valid_after(begins + life)
        .add_extension(x509.SubjectAlternativeName(names), critical=True)
        .add_extension(x509.ExtendedKeyUsage([usage]), critical=True)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_issuer(issuer), critical=False)
        .sign(issuer.key, hashes.SHA256())
    )


def private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """A private key (PEM, PKCS #8, not encrypted)."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _authority(
    name: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, now: datetime.datetime, path_length: int
) -> x509.CertificateBuilder:
    usage = x509.KeyUsage(
        digital_signature=False, content_commitment=False, key_encipherment=False, data_encipherment=False,
        key_agreement=False, key_cert_sign=True, crl_sign=True, encipher_only=False, decipher_only=False,
    )  # fmt: skip
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(now + AUTHORITY_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _issuer(signer: Signer) -> x509.AuthorityKeyIdentifier:
    return x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.key.public_key())
