"""What is done to a host that has a kernel of its own: steps of its clock, and the power cut."""

import contextlib
import time
from collections.abc import Iterator

from tests.support.deaths import Phase
from tests.support.deaths_trial import Censored, HostFailed, Scene, Since, Strike
from tests.support.uml import UmlHost

CLOCK_FAULT_S = 12.0
"""A fault's time where it must end by itself in spite of a step of the clock."""
_HOUR_S = 3600.0
_TEN_YEARS_S = 10 * 365.25 * 24 * _HOUR_S
STEPS_S = {
    "clock +1 h": _HOUR_S,
    "clock -1 h": -_HOUR_S,
    "clock +10 y": _TEN_YEARS_S,
    "clock -10 y": -_TEN_YEARS_S,
}


def strikes(host: UmlHost) -> dict[str, Strike]:
    """By column: what is done to this host, and from when the bound counts."""
    return {"power cut": _power_cut(host), **{name: _step(host, seconds) for name, seconds in STEPS_S.items()}}


@contextlib.contextmanager
def watched(scene: Scene, host: UmlHost) -> Iterator[None]:
    """While inside, the scene is kept up to date by what the host tells of its kernel."""

    async def look(there: set[str], is_busy: bool) -> None:
        scene.see(there, is_busy=is_busy, began_s=time.monotonic())
        await scene.tell()

    host.on_look = look
    try:
        yield
    finally:
        host.on_look = host.nobody_looks


def _step(host: UmlHost, seconds: float) -> Strike:
    """A step ends no fault and keeps none on: each ends when its time is up, or when it is stopped."""

    async def strike(scene: Scene) -> Since:
        host.step_clock(seconds)
        if scene.phase is Phase.UNDO:
            return scene.all_since(time.monotonic())
        # In mid-injection some are not on yet, but will be.
        if scene.phase is Phase.INJECT and not await scene.until(scene.all_are_told, 30):
            raise Censored("not every fault came about")
        return scene.due()

    return strike


def _power_cut(host: UmlHost) -> Strike:
    """The bound is the moment at which the host takes orders again: by then the boot reap must be through."""

    async def strike(scene: Scene) -> Since:
        await host.power_cut()
        cut_s = time.monotonic()
        try:
            await host.boot()
            await host.controller.wait_ready(host.name)
        except AssertionError as error:
            raise HostFailed(str(error)) from error
        scene.bound_s = time.monotonic() - cut_s
        if host.reaped["code"]:
            raise HostFailed(f"the boot reap says {host.reaped}")
        await scene.until(lambda: scene.busy_s < host.reaped_s, 1)
        scene.gone_at_s = dict.fromkeys(scene.gone_at_s | scene.all_since(0), host.reaped_s)
        return scene.all_since(cut_s)

    return strike
