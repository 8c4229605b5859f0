"""The authority that several controllers share: who has which key, who follows whom, and who is refused."""

import time
from pathlib import Path

import pytest
from brownout_agent.agent.identity import new_key, request_for
from brownout_controller.fleet.authority import Authority, AuthorityError, read_request
from brownout_controller.fleet.rotation import RotationRefused
from brownout_controller.fleet.shared_authority import FollowingAuthority, LeadingAuthority, bring_audit_key, shared
from brownout_controller.store.authorities import Authorities
from brownout_controller.store.database import Database


@pytest.fixture
def kept(database: Database) -> Authorities:
    return Authorities(database)


def test_the_first_leads_and_the_next_follows_through_a_whole_rotation(kept: Authorities, tmp_path: Path) -> None:
    key = tmp_path / "key"
    first, second = shared(tmp_path / "a", kept, key), shared(tmp_path / "b", kept, key)
    assert isinstance(first, LeadingAuthority)
    assert isinstance(second, FollowingAuthority)
    assert not (tmp_path / "b").exists()
    for phase in ("init", "update_clients", "update_servers", "standby"):
        Authority(tmp_path / "a").rotate(first.rotation.advanced(time.time_ns()))  # as `ca rotate` does it
        assert first.refresh()
        assert second.refresh()
        assert not second.refresh()
        assert second.rotation.phase == phase
        assert (second.pin, second.bundle_pem, second.clients_pem) == (first.pin, first.bundle_pem, first.clients_pem)


def test_what_one_issues_the_other_knows(kept: Authorities, tmp_path: Path) -> None:
    first, second = (shared(tmp_path / name, kept, tmp_path / "key") for name in "ab")
    for issuer, reader in ((first, second), (second, first)):
        issued = issuer.issue(read_request(request_for(new_key())), "11111111-1111-1111-1111-111111111111")
        peer = reader.peer_of(issued.certificate_pem)
        assert peer is not None
        assert peer.agent_id == "11111111-1111-1111-1111-111111111111"


def test_the_root_key_is_not_shared_and_a_follower_cannot_rotate(kept: Authorities, tmp_path: Path) -> None:
    first, second = (shared(tmp_path / name, kept, tmp_path / "key") for name in "ab")
    root = (tmp_path / "a/1/root.pem").read_bytes()
    generation = second.keys.generations[1]
    assert generation.root_pem in root
    assert generation.agents.pem not in root
    with pytest.raises(RotationRefused, match="the root's key is not here"):
        second.rotate(first.rotation.advanced(time.time_ns()))


def test_an_earlier_step_that_somebody_puts_back_is_not_followed(kept: Authorities, tmp_path: Path) -> None:
    first, second = (shared(tmp_path / name, kept, tmp_path / "key") for name in "ab")
    found = kept.kept()
    assert found is not None
    assert found.sealed is not None
    first.rotate(first.rotation.advanced(time.time_ns()))
    assert second.refresh()
    kept.keep(found.sealed)
    assert not second.refresh()
    assert second.rotation.phase == "init"


def test_who_has_another_key_or_none_or_another_cluster_is_refused_and_founds_nothing(
    kept: Authorities, tmp_path: Path
) -> None:
    shared(tmp_path / "a", kept, tmp_path / "key")
    other = tmp_path / "other"
    other.write_bytes(b"A" * 43 + b"=")
    other.chmod(0o600)
    with pytest.raises(AuthorityError, match="sealed with another key"):
        shared(tmp_path / "b", kept, other)
    with pytest.raises(AuthorityError, match="Next: give --authority-key FILE"):
        shared(tmp_path / "b", kept, None)
    with pytest.raises(AuthorityError, match="cannot read the authority's key"):
        shared(tmp_path / "b", kept, tmp_path / "none")
    assert not (tmp_path / "b").exists()
    Authority(tmp_path / "c")
    with pytest.raises(AuthorityError, match="its agents would not know this controller"):
        shared(tmp_path / "c", kept, tmp_path / "key")
    (tmp_path / "key").chmod(0o644)
    with pytest.raises(AuthorityError, match="is open to others"):
        shared(tmp_path / "b", kept, tmp_path / "key")


def test_one_controller_needs_no_key_and_another_one_then_learns_why_it_cannot_follow(
    kept: Authorities, tmp_path: Path
) -> None:
    assert type(shared(tmp_path / "a", kept, None)) is Authority
    (tmp_path / "key").write_bytes(b"A" * 43 + b"=")
    (tmp_path / "key").chmod(0o600)
    with pytest.raises(AuthorityError, match="next: start its first controller with --authority-key FILE"):
        shared(tmp_path / "b", kept, tmp_path / "key")


def test_the_audit_key_is_one_for_all(kept: Authorities, tmp_path: Path) -> None:
    shared(tmp_path / "a", kept, tmp_path / "key")
    bring_audit_key(tmp_path / "b", kept, tmp_path / "key")
    assert (tmp_path / "b/audit-key.pem").read_bytes() == (tmp_path / "a/audit-key.pem").read_bytes()
    assert (tmp_path / "b/audit-key.pem").stat().st_mode & 0o077 == 0
    with pytest.raises(AuthorityError, match="--authority-key"):
        bring_audit_key(tmp_path / "c", kept, None)
