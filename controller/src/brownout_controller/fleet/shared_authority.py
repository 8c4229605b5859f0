"""One authority for several controllers: the keys that they sign with lie sealed in their database (see `keys`).

One of them has the authority's folder, and with it the root's key: it puts there what it signs with, and again at every
step of a rotation. The others need the key file alone, and follow.
"""

import datetime
from pathlib import Path

from brownout_agent.agent.identity import write_durably
from cryptography.fernet import Fernet

from brownout_controller.audit.checkpoint import KEY_FILE, SealingKey
from brownout_controller.fleet.authority import AGENT_LIFE, Authority, AuthorityError, read_own, rotation_path
from brownout_controller.fleet.keys import Keys, Shared, WrongKey, is_key, seal, unseal
from brownout_controller.fleet.rotation import Rotation, RotationRefused
from brownout_controller.store.authorities import Authorities, KeptAuthority

AUTHORITY_KEY = "BROWNOUT_AUTHORITY_KEY"
"""The environment variable that names the key file."""


class FollowingAuthority(Authority):
    """That of a controller without a folder of its own. It follows every step that the owner of the root takes."""

    def __init__(self, kept: Authorities, key: bytes, agent_life: datetime.timedelta = AGENT_LIFE) -> None:
        """Read what lies in the database.

        Raises:
            AuthorityError: nothing, or it is sealed with another key.
            StoreError: the database does not answer.
        """
        self._kept = kept
        self._key = key
        self._agent_life = agent_life
        self._keys = self._load()

    def refresh(self) -> bool:
        """Read again what counts; whether that has changed. An earlier step, put back by somebody, does not count.

        Raises:
            AuthorityError: it cannot be opened any more.
            StoreError: the database does not answer.
        """
        keys = self._load()
        if keys.rotation.began_ns <= self.rotation.began_ns:
            return False
        self._keys = keys
        return True

    def rotate(self, rotation: Rotation) -> None:
        """Raises RotationRefused."""
        raise RotationRefused(
            "the root's key is not here; next: brownout ca rotate on the controller that has the folder `authority`"
        )

    def _load(self) -> Keys:
        return _shared_by_others(self._kept.kept(), self._key).keys


class LeadingAuthority(Authority):
    """The authority of the controller that has the folder; what it signs with is kept sealed for the others."""

    def __init__(
        self, folder: Path, kept: Authorities, key: bytes, agent_life: datetime.timedelta = AGENT_LIFE
    ) -> None:
        """Open the folder, making it if there is none.

        Raises:
            AuthorityError: the folder cannot be used, or what lies in the database is sealed with another key.
            StoreError: the database does not answer.
        """
        super().__init__(folder, agent_life)
        self._kept = kept
        self._key = key
        self._shared: Rotation | None = None
        sealed = claim(kept, self)
        if sealed is not None:
            self._shared = _open(sealed, key).keys.rotation
        self._share()

    def refresh(self) -> bool:
        """Read again what counts; whether that has changed. The others are told.

        Raises:
            OSError, ValueError, KeyError, AuthorityError: it cannot be read now.
            StoreError: it could not be shared; it will be, at the next look.
        """
        changed = super().refresh()
        self._share()
        return changed

    def _share(self) -> None:
        if self._shared != self.rotation:
            SealingKey(self.folder)  # made, if this is its first use
            audit_key_pem = read_own(self.folder / KEY_FILE)
            self._kept.keep(seal(Shared(self.keys, audit_key_pem), self._key))
            self._shared = self.rotation


def claim(kept: Authorities, authority: Authority) -> bytes | None:
    """Make this authority's cluster the database's; what is sealed there already.

    Raises:
        AuthorityError: it is another cluster's.
        StoreError: the database does not answer.
    """
    found = kept.claim(authority.cluster)
    if found.cluster != authority.cluster:
        raise AuthorityError(
            f"the database is cluster {found.cluster}'s, and the authority in {authority.folder} is of cluster "
            f"{authority.cluster}: its agents would not know this controller. Next: move that folder away and start "
            "with the --authority-key FILE of the others"
        )
    return found.sealed


def shared(folder: Path, kept: Authorities, key_file: Path | None) -> Authority:
    """The authority of a controller on a database that others may share.

    Raises:
        AuthorityError: it cannot be used, or this controller may not found another one; the text says what to do.
        StoreError: the database does not answer.
    """
    found = kept.kept()
    if rotation_path(folder).exists() or found is None:
        if key_file is not None:
            return LeadingAuthority(folder, kept, _key_of(key_file, found is None or found.sealed is None))
        authority = Authority(folder)
        claim(kept, authority)
        return authority
    return FollowingAuthority(kept, _key_of(_named(key_file, found, folder), make=False))


def bring_audit_key(folder: Path, kept: Authorities, key_file: Path | None) -> None:
    """Put the cluster's audit key into the folder of a controller that does not have the authority's own.

    Raises:
        AuthorityError: it is not to be had; the text says what to do.
        StoreError: the database does not answer.
        OSError: it cannot be kept.
    """
    found = None if (folder / KEY_FILE).exists() or rotation_path(folder).exists() else kept.kept()
    if found is None:
        return
    shared = _shared_by_others(found, _key_of(_named(key_file, found, folder), make=False))
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_durably(folder / KEY_FILE, shared.audit_key_pem)


def _named(key_file: Path | None, found: KeptAuthority, folder: Path) -> Path:
    if key_file is None:
        raise AuthorityError(
            f"this database is cluster {found.cluster}'s, whose keys are not in {folder}. Next: give --authority-key "
            f"FILE (or ${AUTHORITY_KEY}), a copy of the one that its first controller was started with"
        )
    return key_file


def _shared_by_others(kept: KeptAuthority | None, key: bytes) -> Shared:
    if kept is None or kept.sealed is None:
        raise AuthorityError(
            "no authority is shared in this database; next: start its first controller with --authority-key FILE"
        )
    return _open(kept.sealed, key)


def _key_of(path: Path, make: bool) -> bytes:
    """The key in a file; `make` it where there is none."""
    try:
        if make and not path.exists():
            write_durably(path, Fernet.generate_key())
        key = read_own(path).strip()
    except OSError as error:
        raise AuthorityError(f"cannot read the authority's key {path}: {error.strerror or error}") from error
    if not is_key(key):
        raise AuthorityError(f"{path} holds no key. Next: copy the one of the cluster's first controller")
    return key


def _open(sealed: bytes, key: bytes) -> Shared:
    try:
        return unseal(sealed, key)
    except WrongKey as error:
        raise AuthorityError(
            f"the authority in the database cannot be opened: {error}. Next: copy the key file of its first controller"
        ) from error
    except (ValueError, KeyError) as error:
        raise AuthorityError(
            f"the authority in the database cannot be read: {error}; is it another release's?"
        ) from error
