"""What is done to a host that is a namespace, and how it is mended afterwards."""

import asyncio
import contextlib
import signal
import time
from collections.abc import Callable, Iterator

from tests.support.deaths import Column, Phase
from tests.support.deaths_host import Host, of_host
from tests.support.deaths_kernel import ProcessReader, faults_there, holders
from tests.support.deaths_trial import Censored, Scene, Since, Strike

LOOK_EVERY_S = 0.05
SHORT_S = 10.0
"""A fault's time where its end is what is measured; all faults of a host come about within it, one after the other."""
RESTART_AFTER_S = 2.0
"""RestartSec= of the injector's unit."""


class Watch:
    """Looks at the kernel for the scene of every namespace, twenty times a second."""

    def __init__(self) -> None:
        self._scenes: list[tuple[Scene, Host]] = []
        self._reader = ProcessReader()

    @contextlib.contextmanager
    def on(self, scene: Scene, host: Host) -> Iterator[None]:
        """While inside, the scene is kept up to date."""
        self._scenes.append((scene, host))
        try:
            yield
        finally:
            self._scenes.remove((scene, host))

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            scenes = list(self._scenes)
            if scenes:
                await asyncio.to_thread(self._look, scenes)
            for scene, _ in scenes:
                await scene.tell()
            await asyncio.sleep(LOOK_EVERY_S)

    def _look(self, scenes: list[tuple[Scene, Host]]) -> None:
        began_s = time.monotonic()
        everyone = self._reader.read()
        for scene, host in scenes:
            assert host.datagrams is not None
            processes = of_host(everyone, host)
            tags = {fault: host.tags[fault] for fault in scene.faults}
            there = faults_there(tags, processes, host.datagrams)
            scene.see(there, is_busy=bool(there or holders(processes)), began_s=began_s)


def strikes(host: Host) -> dict[str, Strike]:
    """By column: what is done to this host, and from when the bound counts."""
    return {
        "none": _none,
        "agent KILL": _by_signal(host, signal.SIGKILL, "agent"),
        "injector KILL": _by_signal(host, signal.SIGKILL, "injector"),
        "both KILL": _by_signal(host, signal.SIGKILL, "agent", "injector"),
        "both STOP": _by_signal(host, signal.SIGSTOP, "agent", "injector"),
        "controller KILL": _controller,
        "link cut": _cut(host),
        "disk full": _then_stop(host.fill_disk),
        "read-only": _then_stop(host.break_disk),
        "OOM": _starve(host),
    }


def _by_signal(host: Host, number: signal.Signals, *programs: str) -> Strike:
    async def strike(scene: Scene) -> Since:
        host.signal(number, *programs)
        return scene.all_since(time.monotonic())

    return strike


async def _none(scene: Scene) -> Since:
    """inject: stopped while it begins. hold: its time is up. undo: stopped, and stopped again."""
    return scene.due() if scene.phase is Phase.HOLD else scene.all_since(scene.stop_all())


async def _controller(scene: Scene) -> Since:
    await scene.host.controller.kill()
    return scene.all_since(time.monotonic())


def _cut(host: Host) -> Strike:
    async def strike(scene: Scene) -> Since:
        await host.pull_cable()
        return scene.all_since(time.monotonic())

    return strike


def _then_stop(harm: Callable[[], None]) -> Strike:
    """The harm ends no fault; a stop must, in spite of it."""

    async def strike(scene: Scene) -> Since:
        await asyncio.to_thread(harm)
        if scene.phase is Phase.UNDO:
            return scene.all_since(time.monotonic())
        await scene.pause(0.5)
        return scene.all_since(scene.stop_all())

    return strike


def _starve(host: Host) -> Strike:
    """What the killer spared goes on, as it should, and is stopped; what it killed is started again as by its unit."""

    async def strike(scene: Scene) -> Since:
        struck_s = time.monotonic()
        if not await host.starve(scene.random.uniform(0.3, 1.0)):
            raise Censored("the OOM killer did not strike")
        await asyncio.sleep(max(0.0, struck_s + RESTART_AFTER_S - time.monotonic()))
        if host.programs["injector"].returncode is not None:
            await host.start_injector()
        scene.stop_all()
        return scene.all_since(struck_s)

    return strike


async def mend(host: Host, column: Column, *, was_good: bool) -> None:
    """Make the host ready for its next trial."""
    if column.name == "controller KILL":
        await host.controller.start()
    if column.name == "link cut":
        await host.plug_cable()
    host.empty_disk()
    if not was_good:
        await host.start_over()
    elif column.name == "both STOP":
        host.signal(signal.SIGKILL, "agent", "injector")
