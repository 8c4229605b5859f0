"""Plans that were made, approvals of them, and limits above which they are needed."""

import json
import time
import zlib
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Table, insert, select, update
from sqlalchemy.engine import Connection
from sqlalchemy.exc import IntegrityError

from brownout_controller.access.approvals import Approval, BlastLimit
from brownout_controller.access.decisions import Place
from brownout_controller.store.access import NS_PER_S, Stale
from brownout_controller.store.database import Database
from brownout_controller.store.run_access import place_json, place_of_json
from brownout_controller.store.schema import access


@dataclass(frozen=True, slots=True)
class KeptPlan:
    """A plan, what it was made from, and who made it first. `document` is what people see of it."""

    digest: str
    author: str
    made_ns: int
    place: Place
    request: dict[str, Any]
    """experiment (text), variables, seed: enough to make it again."""
    document: dict[str, Any]


@dataclass(frozen=True, slots=True)
class KeptLimit:
    """An environment's limit; version 0 is the default that nobody has set."""

    environment: str
    limit: BlastLimit
    version: int


class ApprovalStore:
    """Plans, approvals and limits of one cluster."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def keep_plan(self, plan: KeptPlan) -> KeptPlan:
        """Keep a plan; of one that is kept already the first author stays. Returns what is kept."""
        if (kept := self.plan(plan.digest)) is not None:
            return kept
        row = {
            "digest": plan.digest,
            "author": plan.author,
            "made_ns": plan.made_ns,
            "place": place_json(plan.place),
            "request": _pack(plan.request),
            "document": _pack(plan.document),
        }
        try:
            with self._database.writing() as connection:
                _insert_once(connection, access.plans, row)
        except _Taken:  # somebody has made the same plan at the same moment
            kept = self.plan(plan.digest)
            assert kept is not None
            return kept
        return plan

    def plan(self, digest: str) -> KeptPlan | None:
        """One plan."""
        table = access.plans
        with self._database.reading() as connection:
            row = connection.execute(select(table).where(table.c.digest == digest)).mappings().first()
        if row is None:
            return None
        place = place_of_json(row["place"])
        request, document = _unpack(row["request"]), _unpack(row["document"])
        return KeptPlan(row["digest"], row["author"], row["made_ns"], place, request, document)

    def approve(self, digest: str, approver: str, ttl_s: int) -> Approval:
        """Keep an approval."""
        now_ns = time.time_ns()
        expires_ns = now_ns + ttl_s * NS_PER_S
        row = {"digest": digest, "approver": approver, "given_ns": now_ns, "expires_ns": expires_ns}
        with self._database.writing() as connection:
            key = connection.execute(insert(access.approvals), row).inserted_primary_key
        assert key is not None
        return Approval(int(key[0]), digest, approver, now_ns, expires_ns)

    def approval(self, approval_id: int) -> Approval | None:
        """One approval."""
        table = access.approvals
        with self._database.reading() as connection:
            row = connection.execute(select(table).where(table.c.approval_id == approval_id)).mappings().first()
        return None if row is None else Approval(**row)

    def approvals(self, digest: str | None = None, limit: int = 100) -> list[Approval]:
        """The latest approvals, of one plan or of all, newest first."""
        table = access.approvals
        query = select(table).order_by(table.c.approval_id.desc()).limit(limit)
        with self._database.reading() as connection:
            rows = connection.execute(query if digest is None else query.where(table.c.digest == digest)).mappings()
            return [Approval(**row) for row in rows]

    def withdraw(self, approval_id: int) -> bool:
        """Take an approval back; False when it was taken back before."""
        table = access.approvals
        change = update(table).where(table.c.approval_id == approval_id, table.c.withdrawn_ns.is_(None))
        with self._database.writing() as connection:
            return connection.execute(change.values(withdrawn_ns=time.time_ns())).rowcount == 1

    def limit_of(self, environment: str) -> KeptLimit:
        """The limit of an environment."""
        table = access.blast_limits
        with self._database.reading() as connection:
            row = connection.execute(select(table).where(table.c.environment == environment)).mappings().first()
        if row is None:
            return KeptLimit(environment, BlastLimit(), 0)
        return KeptLimit(environment, BlastLimit(row["hosts"], row["percent"]), row["version"])

    def set_limit(self, environment: str, limit: BlastLimit, version: int) -> KeptLimit:
        """Set the limit of an environment, if nobody else did since `version`.

        Raises:
            Stale: somebody did.
        """
        table = access.blast_limits
        values = {"hosts": limit.hosts, "percent": limit.percent, "version": version + 1}
        fits = (table.c.environment == environment) & (table.c.version == version)
        stale = Stale(f"the limit of `{environment}` was changed by somebody else since; read it again")
        with self._database.writing() as connection:
            if version == 0:
                try:
                    _insert_once(connection, table, {"environment": environment, **values})
                except _Taken as taken:
                    raise stale from taken
            elif connection.execute(update(table).where(fits).values(**values)).rowcount != 1:
                raise stale
        return KeptLimit(environment, limit, version + 1)


class _Taken(Exception):
    """There is a row with this key."""


def _insert_once(connection: Connection, table: Table, row: dict[str, Any]) -> None:
    """Insert a row; raises _Taken, which undoes the transaction, where one with its key is there."""
    try:
        connection.execute(insert(table), row)
    except IntegrityError as error:
        raise _Taken from error


def _pack(document: dict[str, Any]) -> bytes:
    return zlib.compress(json.dumps(document).encode())


def _unpack(packed: bytes) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(zlib.decompress(packed))
    return document
