"""Many faults on one host: each pair of kinds is on together, and the end of one leaves every other as it is."""

import asyncio
import os
from pathlib import Path

import pytest
from brownout_protos.v1 import fault_pb2

from tests.host.network_pair import inside, network_namespace
from tests.support.frozen import all_on, everything_allowed, renewing, still_there, victims
from tests.support.injectors import connect, story

pytestmark = [
    pytest.mark.root,
    pytest.mark.alone,  # one injector with some seventy faults renews their leases late beside other load
    pytest.mark.skipif(os.geteuid() != 0, reason="loads nftables, stops processes"),
]


def test_two_of_every_kind_are_on_together_and_each_ends_alone(tmp_path: Path) -> None:
    """The second of each kind ends in the opposite order, so that of each pair of kinds either one is first to end."""

    async def told(folder: Path) -> None:
        folders = [folder / "first", folder / "second"]
        for each in folders:
            each.mkdir()
        async with victims(folders[0]), victims(folders[1]), everything_allowed(folder, *folders):
            client = await connect(folder)
            async with renewing(client):
                first, second = [await all_on(client, each) for each in folders]
                left = [*first, *second]
                for fault in [*first, *reversed(second)]:
                    client.send(stop=fault_pb2.Stop(fault_id=fault.fault_id))
                    clean = await client.state(fault_pb2.CLEAN)
                    assert (clean.fault_id, clean.end_cause) == (fault.fault_id, fault_pb2.STOPPED)
                    there = await asyncio.to_thread(still_there, left)
                    left.remove(fault)
                    assert fault not in there, fault.kind
                    gone = [one.kind for one in left if one not in there]
                    assert not gone, f"the end of {fault.kind} took them along"

    with network_namespace() as namespace, inside(namespace):
        story(told, tmp_path)
