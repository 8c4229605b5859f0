"""The kernel's table of TCP connections, as text."""

import sys
from ipaddress import ip_address

import pytest
from brownout_agent.kernel.tcp_connections import Connection, parse_established, parse_listeners, parse_open

HEAD = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"


@pytest.mark.skipif(sys.byteorder != "little", reason="the lines are of a little-endian machine")
def test_ends_states_and_tries_without_an_answer_are_read() -> None:
    text = HEAD + (
        "   0: 0100007F:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1\n"
        "   1: 0100630A:0016 0200630A:D431 01 00000024:00000000 01:00000017 00000003     0        0 1\n"
        "   2: 0100630A:D432 0200630A:0016 01 00000024:00000000 04:00000017 00000000     0        2 1\n"
    )
    near, far = ip_address("10.99.0.1"), ip_address("10.99.0.2")
    assert parse_established(text) == {
        Connection(near, 22, far, 0xD431): 3,  # sent again three times
        Connection(near, 0xD432, far, 22): 2,  # never let out; two probes
    }


@pytest.mark.skipif(sys.byteorder != "little", reason="the line is of a little-endian machine")
def test_an_ipv4_peer_of_an_ipv6_socket_is_the_ipv4_address() -> None:
    mapped = "0000000000000000FFFF00000100630A:0016 0000000000000000FFFF00000200630A:D431"
    line = f"   0: {mapped} 01 00000000:00000000 02:00000017 00000000     0        0 1 2 0 20 4 30 10 -1\n"
    (connection,) = parse_established(HEAD + line)
    assert (str(connection.local), str(connection.remote)) == ("10.99.0.1", "10.99.0.2")


@pytest.mark.skipif(sys.byteorder != "little", reason="the lines are of a little-endian machine")
def test_open_are_those_whose_handshake_is_over_and_that_an_end_still_holds() -> None:
    """By the numbers of include/net/tcp_states.h; all of one peer, told apart by their ports."""
    names = {
        1: "ESTABLISHED", 2: "SYN_SENT", 3: "SYN_RECV", 4: "FIN_WAIT1", 5: "FIN_WAIT2", 6: "TIME_WAIT", 7: "CLOSE",
        8: "CLOSE_WAIT", 9: "LAST_ACK", 10: "LISTEN", 11: "CLOSING", 12: "NEW_SYN_RECV",
    }  # fmt: skip
    lines = (
        f"   0: 0100630A:0016 0200630A:{state:04X} {state:02X} 00000000:00000000 00:00000000 00000000 0 0 1\n"
        for state in names
    )
    found = {names[connection.remote_port] for connection in parse_open(HEAD + "".join(lines))}
    assert found == {"ESTABLISHED", "FIN_WAIT1", "FIN_WAIT2", "CLOSE_WAIT", "LAST_ACK", "CLOSING"}


@pytest.mark.skipif(sys.byteorder != "little", reason="the lines are of a little-endian machine")
def test_of_those_who_listen_the_length_of_the_queue_is_read() -> None:
    text = HEAD + (
        "   0: 0100007F:0016 00000000:0000 0A 00000000:00000011 00:00000000 00000000     0        0 1\n"
        "   1: 0100630A:0016 0200630A:D431 01 00000024:00000003 01:00000017 00000003     0        0 1\n"
        "   2: 00000000:0017 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1\n"
    )
    assert parse_listeners(text) == [((ip_address("127.0.0.1"), 22), 0x11), ((ip_address("0.0.0.0"), 23), 0)]
