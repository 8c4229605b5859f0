"""A controller's part in firing, for as long as it lives."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from brownout_controller.firing.firing import Firing
from brownout_controller.firing.outbox import Order, Outbox
from brownout_controller.firing.schedule import Schedule
from brownout_controller.store.database import StoreError

LOOK_EVERY_S = 1.0
_AT_ONCE = 50

log = logging.getLogger(__name__)

Deliver = Callable[[Order], Awaitable[None]]
"""Carries an order out, or finds that it is; raises when neither can be said, and is asked again later."""


async def keep_firing(
    firing: Firing,
    outbox: Outbox,
    deliver: Deliver,
    veto: Callable[[Schedule], str] = lambda _: "",
    look_every_s: float = LOOK_EVERY_S,
) -> None:
    """Decide what is due and carry out what was fired, until cancelled. A database that is away is waited for."""
    while True:
        try:
            await asyncio.to_thread(_account, firing, veto)
            while orders := await asyncio.to_thread(outbox.take, _AT_ONCE):
                for order in orders:
                    await _deliver(order, outbox, deliver)
        except StoreError as error:
            log.warning("nothing can be fired now: %s", error)
        await asyncio.sleep(look_every_s)


def _account(firing: Firing, veto: Callable[[Schedule], str]) -> None:
    for schedule in firing.schedules():
        firing.account(schedule, firing.now_ns(), veto)


async def _deliver(order: Order, outbox: Outbox, deliver: Deliver) -> None:
    try:
        await deliver(order)
    except StoreError:
        raise
    except Exception:
        # Whatever it was, the order stays in the outbox and is taken again when its time is up.
        log.exception("the order of %s due at %d could not be carried out", order.schedule_id, order.due_ns)
        return
    await asyncio.to_thread(outbox.delivered, order.run_key)
