"""A controller as `brownout server start` is one, to be killed: it serves agents, adopts what it finds, and runs.

    python -m tests.support.run_controller FOLDER PORT

Each line that it reads begins the experiment FOLDER/experiment.yaml once more, and is answered by the run's number.
"""

import asyncio
import sys
from pathlib import Path

from brownout_controller.language import check
from brownout_controller.language.source import read_source
from brownout_controller.planning.plan import make_plan
from brownout_controller.running.hosts import view_of
from brownout_controller.running.manager import RunManager

from tests.support.fleets import controller


async def serve(folder: Path, port: int) -> None:
    experiment = check(read_source(folder / "experiment.yaml"), {}).experiment
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    async with controller(folder / "data", port) as serving:
        manager = RunManager(serving.fleet, serving.store, serving.controller_id, serving.lever)
        while await reader.readline():
            assert await serving.fleet.wait_for(1, 30, with_injector=True)
            plan = make_plan(experiment, [view_of(host) for host in serving.fleet.connected], 1)
            run = await manager.begin(plan, "test")
            print(run.number, flush=True)


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1]), int(sys.argv[2])))
