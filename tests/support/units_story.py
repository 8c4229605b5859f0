"""Boots a user-mode Linux host with systemd and the units of deploy/, cuts its power, and boots it again.

python -m tests.support.units_story RESULTS     as root; one line of JSON a finding
"""

import asyncio
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.support.alone import be_alone
from tests.support.deaths_controller import ControllerLink
from tests.support.deaths_host import CONTROLLER_ADDRESS, make_bridge
from tests.support.uml import UmlHost, make_share

_WITHIN_S = 150.0


async def _until(host: UmlHost, last: str, findings: list[dict[str, Any]]) -> None:
    """Take findings until one has this key."""
    while not findings or last not in findings[-1]:
        try:
            findings.append(await asyncio.wait_for(host.words.get(), _WITHIN_S))
        except TimeoutError:
            raise AssertionError(f"nothing more was heard:\n{host.logs()}") from None
        assert "trouble" not in findings[-1], f"{findings[-1]['trouble']}\n{host.logs()}"


async def _story(folder: Path) -> list[dict[str, Any]]:
    await make_bridge()
    share = make_share(folder)
    controller = ControllerLink(folder, f"{CONTROLLER_ADDRESS}:7700")
    host = UmlHost(1, folder, share, controller)
    findings: list[dict[str, Any]] = []
    await controller.start()
    await host.build()
    try:
        await host.boot_systemd()
        await _until(host, "holding", findings)
        await host.power_cut()
        await host.boot_systemd()
        await _until(host, "booted", findings)
        try:
            await controller.wait_ready(host.name)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{host.logs()}") from None
        findings.append({"ready": host.name})
    finally:
        await host.dismantle()
        await controller.kill()
    return findings


if __name__ == "__main__":
    be_alone("tests.support.units_story")
    with tempfile.TemporaryDirectory(prefix="units-") as name:
        found = asyncio.run(_story(Path(name)))
    Path(sys.argv[1]).write_text("".join(json.dumps(finding) + "\n" for finding in found))
