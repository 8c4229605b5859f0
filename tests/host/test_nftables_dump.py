"""What is read of nf_tables over netlink is what nft(8) lists."""

import json
import os
import threading
from collections.abc import Iterator

import pytest
from brownout_agent.kernel.nftables import Nftables, NftablesError, read_counters, table_names

from tests.host.network_pair import inside, network_namespace, run

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="namespaces need root")]
COUNTERS = 1_500
"""More than fit into one answer."""


@pytest.fixture(autouse=True)
def namespace() -> Iterator[None]:
    with network_namespace() as name, inside(name):
        yield


def listed_counters(family: str, table: str) -> dict[str, int]:
    objects = json.loads(run("nft", "-j", "list", "counters", "table", family, table))["nftables"]
    return {one["counter"]["name"]: one["counter"]["packets"] for one in objects if "counter" in one}


def test_the_tables_of_every_family_are_those_that_nft_lists() -> None:
    assert table_names("inet") == []
    with Nftables() as nft:
        for family in ("ip", "ip6", "inet", "arp", "bridge", "netdev"):
            nft.run(f"add table {family} one\nadd table {family} only-{family}")
        nft.run("delete table ip6 one")
    lines = run("nft", "list", "tables").splitlines()
    for family in ("ip", "ip6", "inet", "arp", "bridge", "netdev"):
        assert [f"table {family} {name}" for name in table_names(family)] == [
            line for line in lines if line.split()[1] == family
        ]


def test_counters_are_those_of_one_table_however_many_there_are() -> None:
    with Nftables() as nft:
        several = "\n".join(f"counter c{number} {{ packets {number} bytes 1 }}" for number in range(COUNTERS))
        nft.run(f"table inet many {{\n{several}\nquota q {{ over 1 mbytes }}\n}}")
        nft.run("table inet few {\ncounter c1 { packets 4294967297 bytes 1 }\n}\ntable ip many { counter c2 { }\n}")
        nft.run("add table inet none")
    assert read_counters("inet", "many") == listed_counters("inet", "many")
    assert read_counters("inet", "many") == {f"c{number}": number for number in range(COUNTERS)}
    assert read_counters("inet", "few") == {"c1": 2**32 + 1}
    assert read_counters("ip", "many") == {"c2": 0}
    assert read_counters("inet", "none") == {}
    with pytest.raises(NftablesError, match="there is no table inet gone"):
        read_counters("inet", "gone")


def test_what_others_change_meanwhile_is_read_whole() -> None:
    with Nftables() as nft:
        several = "\n".join(f"counter c{number} {{ }}" for number in range(COUNTERS))
        nft.run(f"table inet many {{\n{several}\n}}")
        is_over = threading.Event()

        def change() -> None:
            while not is_over.is_set():
                nft.run("add table ip other")
                nft.run("delete table ip other")

        changing = threading.Thread(target=change)
        changing.start()
        try:
            assert [len(read_counters("inet", "many")) for _ in range(50)] == [COUNTERS] * 50
        finally:
            is_over.set()
            changing.join()
