"""A controller that owns one host: it takes it over when told to, and gives orders with the epoch that it got then.

    python -m tests.support.owner_controller DATABASE_URL FOLDER AGENT_ID

Reads `take` and `order FAULT_ID`; answers with its epoch, and with the order as it goes over the wire, in hex.
"""

import sys
from pathlib import Path

from brownout_agent.frames import to_value
from brownout_controller.store.database import Database
from brownout_controller.store.owners import Owners
from brownout_protos.v1 import fault_pb2


def main(url: str, folder: str, agent_id: str) -> None:
    owners, epoch = Owners(Database.open(Path(folder), url)), 0
    with owners.life() as controller_id:
        for line in sys.stdin:
            command, _, fault_id = line.strip().partition(" ")
            if command == "take":
                epoch = owners.take(agent_id, controller_id)
                print(epoch, flush=True)
            else:
                parameters = {"percent": to_value(1), "of": to_value("own"), "cores": to_value("0")}
                order = fault_pb2.Inject(
                    fault_id=fault_id, epoch=epoch, environment="staging", kind="cpu.load", parameters=parameters,
                    duration_ms=20_000, lease_ms=10_000, agent_id=agent_id,
                )  # fmt: skip
                print(order.SerializeToString().hex(), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
