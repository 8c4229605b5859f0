"""Whether an order is taken on, before anything of it is recorded or touched."""

import asyncio
import logging
import math
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

from pydantic import ValidationError

from brownout_agent.epochs import EpochRefused
from brownout_agent.faults import catalogue
from brownout_agent.faults.contract import Facts, Fault, FaultParameters, Host, Refusal
from brownout_agent.injector.journal import Entry, Mark
from brownout_agent.injector.ledger import Ledger, LedgerError
from brownout_agent.injector.order import Order
from brownout_agent.injector.own_copy import OwnCopy
from brownout_agent.injector.policy import DURATION_CEILING_S, LEASE_CEILING_S, Policy, Situation
from brownout_agent.injector.stop_file import RELEASE, StopFile
from brownout_agent.injector.threads import in_thread
from brownout_agent.kernel.clock import boot_id, boottime_ns

PREPARE_TIMEOUT_S = 5.0

log = logging.getLogger(__name__)


class Admission:
    """Who may pass: compiled-in limits, the STOP file, the policy, and what this host has obeyed before."""

    def __init__(self, policy: Policy, ledger: Ledger, own_copy: OwnCopy) -> None:
        self.policy = policy
        self.stop_file = StopFile(policy.stop_file)
        self._ledger = ledger
        self._own_copy = own_copy

    @property
    def halted(self) -> str:
        """Why this host takes no orders until a person releases it; empty when it does."""
        return self.stop_file.reason() or ""

    def is_owner(self, epoch: int) -> bool:
        """Whether no controller with a larger epoch than this was ever obeyed here."""
        try:
            return epoch >= self._ledger.epoch
        except LedgerError as error:
            log.error("%s", error)
            return False

    def check(self, order: Order, running: int, past: Iterable[Entry]) -> tuple[Fault[Any], FaultParameters]:
        """The fault that an order names and its parameters, if it may pass beside `running` others.

        `past` is what the journal tells of earlier faults. Nothing is noted: an order may be checked twice.

        Raises:
            Refusal: it may not.
        """
        if halted := self.halted:
            raise Refusal(f"this host is halted: {halted}", RELEASE)
        fault = catalogue().get(order.kind)
        if fault is None:
            raise Refusal(f"this host knows no fault `{order.kind}`; it knows {', '.join(catalogue())}")
        if not 0 < order.duration_s <= DURATION_CEILING_S:
            raise Refusal(f"a duration of {order.duration_s:g} s; the limits are 0 and {DURATION_CEILING_S:g} s")
        if not 0 < order.lease_s <= LEASE_CEILING_S:
            raise Refusal(f"a lease of {order.lease_s:g} s; the limits are 0 and {LEASE_CEILING_S:g} s")
        try:
            parameters = fault.Parameters.model_validate(order.parameters)
        except ValidationError as error:
            raise Refusal(f"{order.kind}: {_first_of(error)}") from error
        with self._asking_the_ledger() as ledger:
            try:
                ledger.check_epoch(order.epoch, order.agent_id)
            except EpochRefused as error:
                remedy = f"another controller owns this host; if it must not, join again, or remove {ledger.path}"
                raise Refusal(str(error), remedy) from error
            begun = ledger.begun_within_a_day(time.time_ns())
        situation = Situation(datetime.now(UTC), running, begun, idle_s(past, boot_id(), boottime_ns()))
        self.policy.check(order, fault, parameters, situation)
        return fault, parameters

    def take(self, order: Order) -> Order:
        """Note, durably, that an order is about to be obeyed; returns it as this host's policy bounds it.

        Raises:
            Refusal: that could not be noted, so it must not be obeyed.
        """
        with self._asking_the_ledger() as ledger:
            ledger.take(order.epoch, time.time_ns(), self.policy.per_day, order.agent_id)
        try:
            self._own_copy.obey(order)
        except OSError as error:
            raise Refusal(f"this host's own copy of the order cannot be kept: {error}", "make room") from error
        return replace(order, lease_s=self.policy.lease_s(order.lease_s))

    @contextmanager
    def _asking_the_ledger(self) -> Iterator[Ledger]:
        try:
            yield self._ledger
        except EpochRefused as error:  # the owner has changed while the order was looked at
            raise Refusal(str(error)) from error
        except LedgerError as error:
            remedy = f"make room or mend it; removing {self._ledger.path} forgets epochs and counts"
            raise Refusal(f"what this host has obeyed cannot be kept: {error}", remedy) from error


def idle_s(past: Iterable[Entry], this_boot: str, now_ns: int) -> float:
    """Seconds since the latest fault of `past` ended, by CLOCK_BOOTTIME; one of another boot ended with that boot."""
    ended = [entry.at_boottime_ns if entry.boot_id == this_boot else 0 for entry in past if entry.mark is Mark.CLEAN]
    return (now_ns - max(ended)) / 1e9 if ended else math.inf


async def prepare(fault: Fault[Any], parameters: FaultParameters, host: Host) -> Facts:
    """What the fault finds on this host, within PREPARE_TIMEOUT_S.

    Raises:
        Refusal: unsafe, impossible, too slow, or a mistake of the fault's own; nothing was touched.
    """
    looking = in_thread(partial(fault.prepare, parameters, host))  # names are resolved there
    try:
        async with asyncio.timeout(PREPARE_TIMEOUT_S):
            return await asyncio.wrap_future(looking)
    except Refusal:
        raise
    except TimeoutError:
        raise Refusal(f"{fault.kind} was still looking at this host after {PREPARE_TIMEOUT_S:g} s") from None
    except OSError as error:
        raise Refusal(f"{fault.kind} could not look at this host: {error}") from error
    except Exception as error:
        log.exception("%s: prepare failed", fault.kind)
        raise Refusal(f"{fault.kind} has a mistake: {type(error).__name__}: {error}") from error


def _first_of(error: ValidationError) -> str:
    """What is wrong first, with the parameter where it is one alone."""
    first = error.errors()[0]
    name, message = ".".join(str(part) for part in first["loc"]), first["msg"].removeprefix("Value error, ")
    return f"parameter {name}: {message}" if name else message
