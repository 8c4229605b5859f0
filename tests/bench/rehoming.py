"""A controller is killed, and one sleeps, five times each while a run is on at three hosts: how long it all took."""

import tempfile
from collections.abc import Callable
from pathlib import Path

from tests.support.cluster import Cluster, cluster
from tests.support.polling import wait_until
from tests.support.postgres import Postgres, postgres
from tests.support.rehoming import HOSTS, Rehomed, begin, killed, sleeping

TIMES = 5


def once(server: Postgres, what: Callable[[Cluster, int], Rehomed]) -> Rehomed:
    """On a cluster of its own: `a` with three hosts, and `b`."""
    with tempfile.TemporaryDirectory(prefix="bo-") as folder, cluster(Path(folder), server.make_database()) as pair:
        pair.start("a")
        pair.start("b")
        for host in HOSTS:
            pair.join(host, at="a")
        wait_until(lambda: set(pair.hosts("b")) == set(HOSTS), "b shows the hosts of a", 40)
        return what(pair, begin(pair, "a"))


def main() -> None:
    print(f"{'what':9} {'re-homed':>9} {'undone':>7} {'final':>6}  how")
    with postgres() as server:
        for what in (killed, sleeping):
            for _ in range(TIMES):
                found = once(server, what)
                times = f"{found.rehomed_s:7.1f} s {found.undone_s:5.1f} s {found.final_s:4.1f} s"
                doubled = f"{found.headline}; on at most {found.held_most} times, {len(found.begun_after)} begun late"
                print(f"{what.__name__:9} {times}  {found.verdict} {found.exit_code}, {doubled}", flush=True)


if __name__ == "__main__":
    main()
