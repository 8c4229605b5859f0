"""Which authorities an agent takes on a controller's word: those of a rotation, and none that a thief can make."""

import datetime
import time
from pathlib import Path

import pytest
from brownout_agent.agent.identity import new_key, request_for
from brownout_agent.agent.trust import NotTrusted, check_certificate, check_succession
from brownout_controller.fleet.authority import Authority, read_request
from brownout_controller.fleet.certificates import CONTROLLERS, Signer, make_intermediate, make_root, make_vouch
from brownout_controller.fleet.keys import Shared, seal, unseal
from brownout_controller.fleet.rotation import Phase
from cryptography import x509
from cryptography.fernet import Fernet
from cryptography.hazmat.primitives import hashes, serialization

NOW = datetime.datetime.now(datetime.UTC)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "authority")


def advance(authority: Authority, times: int = 1) -> None:
    for _ in range(times):
        authority.rotate(authority.rotation.advanced(time.time_ns()))


def pem(*certificates: x509.Certificate) -> bytes:
    return b"".join(one.public_bytes(serialization.Encoding.PEM) for one in certificates)


def evil(root: Signer, cluster: str = "evil") -> bytes:
    """A root with a controllers' authority below it: sound in itself."""
    return pem(make_intermediate(root, cluster, CONTROLLERS, NOW).certificate, root.certificate)


def root_of(authority: Authority, number: int = 1) -> Signer:
    return Signer.from_pem((authority.folder / str(number) / "root.pem").read_bytes())


@pytest.mark.parametrize("back_after", [0, 1, 2, 3])
def test_every_step_of_a_rotation_and_of_its_way_back_is_taken(authority: Authority, back_after: int) -> None:
    kept = authority.bundle_pem
    for step in range(1, 6):
        if step == back_after + 1 and back_after:
            authority.rotate(authority.rotation.rolled_back(time.time_ns()))
        else:
            advance(authority)
        check_succession(kept, authority.bundle_pem)
        kept = authority.bundle_pem
        if authority.rotation.phase is Phase.STANDBY:
            return
    raise AssertionError("it came to no end")


def test_one_that_joined_in_the_midst_of_it_knows_the_new_root_and_takes_the_old_one_too(authority: Authority) -> None:
    advance(authority, 3)
    new = authority.keys.generations[2]
    check_succession(new.controllers.certificate_pem + new.root_pem, authority.bundle_pem)


def test_controllers_that_follow_tell_the_same_bundle(authority: Authority) -> None:
    advance(authority)
    key = Fernet.generate_key()
    opened = unseal(seal(Shared(authority.keys, b""), key), key).keys.generations
    assert [one.vouches_pem for one in opened.values()] == [b"", authority.keys.generations[2].vouches_pem]
    assert authority.keys.generations[2].vouches_pem in authority.bundle_pem


def test_a_bundle_without_a_known_root_is_not_taken_though_a_known_one_signed_it(authority: Authority) -> None:
    kept = authority.bundle_pem
    with pytest.raises(NotTrusted, match="no root that this host knows"):
        check_succession(kept, evil(make_root("evil", NOW)))
    advance(authority, 4)
    with pytest.raises(NotTrusted, match="no root that this host knows"):
        check_succession(kept, authority.bundle_pem)  # it slept through the whole rotation, and must join again


def test_a_root_beside_a_known_one_is_not_taken_on_nobodys_or_its_own_word(authority: Authority) -> None:
    kept = authority.bundle_pem
    root, other = make_root("evil", NOW), make_root("other", NOW)
    genuine = make_vouch(root_of(authority), other)
    impostor = make_root(authority.cluster, NOW)  # the known root's very name
    for told in (
        evil(root),
        evil(root) + pem(make_vouch(root, root)),
        evil(root) + pem(make_vouch(impostor, root)) + evil(impostor),
        evil(root) + pem(genuine),  # the known root's word, for another
    ):
        with pytest.raises(NotTrusted, match=r"a new root, .* that no root known to this host has signed"):
            check_succession(kept, kept + told)
    check_succession(kept, kept + evil(other) + pem(genuine))


def test_the_intermediate_that_a_stolen_controller_has_makes_no_root(authority: Authority) -> None:
    """Its certificate is signed by the known root and is an authority's; its key is the thief's."""
    kept = authority.bundle_pem
    for stolen in (authority.keys.generations[1].controllers, authority.keys.generations[1].agents):
        subject = stolen.certificate.subject
        itself = x509.CertificateBuilder(subject, subject, stolen.key.public_key(), 7, NOW, NOW + datetime.timedelta(9))
        itself = itself.add_extension(x509.BasicConstraints(ca=True, path_length=1), critical=True)
        root = Signer(stolen.key, itself.sign(stolen.key, hashes.SHA256()))
        with pytest.raises(NotTrusted, match="a new root"):
            check_succession(kept, kept + pem(stolen.certificate) + evil(root))


def test_a_known_root_without_its_controllers_and_what_is_no_certificate_is_not_taken(authority: Authority) -> None:
    kept = authority.bundle_pem
    with pytest.raises(NotTrusted, match="without a controllers' authority below it"):
        check_succession(kept, pem(root_of(authority).certificate))
    with pytest.raises(NotTrusted, match="cannot be read"):
        check_succession(kept, b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")


def test_a_certificate_that_is_not_for_this_key_and_agent_takes_no_ones_place(authority: Authority) -> None:
    key = new_key()
    given = authority.issue(read_request(request_for(key)), "agent-1").certificate_pem
    check_certificate(given, key, "agent-1")
    for certificate, own_key, agent_id in ((given, new_key(), "agent-1"), (given, key, "agent-2"), (given, key, "1")):
        with pytest.raises(NotTrusted, match="is not agent"):
            check_certificate(certificate, own_key, agent_id)
    for nothing in (b"", b"x", pem(root_of(authority).certificate)):
        with pytest.raises(NotTrusted, match="gives a certificate that is none"):
            check_certificate(nothing, key, "agent-1")
