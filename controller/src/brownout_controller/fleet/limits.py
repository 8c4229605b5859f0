"""What one peer may take of a controller, and why each number is what it is. Tests measure every one of them."""

HEARTBEAT_MS = 2_000
"""A lease is renewed this often: five times in a lease, so that a few lost ones cost nothing."""
KEEPALIVE_MS = 1_000
"""Asked of a silent connection; also how long the kernel may wait for its bytes to be acknowledged."""
PING_TIMEOUT_MS = 3_000
"""How long a peer whose kernel still acknowledges may leave that unanswered (a frozen process, a proxy in between whose
other side is dead). gRPC waits a minute (measured: 60 s); this finds it within three heartbeats, and is long enough for
a host whose processors are all busy with a fault."""
MESSAGE_BYTES = 256 * 1024
"""The largest honest message is a few seconds of packed samples, about 20 KiB; gRPC's own limit is 4 MiB."""
METADATA_BYTES = 8 * 1024
"""We send none of our own; gRPC's own soft and hard limits are 8 KiB and 16 KiB."""
STREAMS_A_CONNECTION = 4
"""An agent needs one Session and one Renew; gRPC's own limit is none (3,000 were accepted)."""
HANDSHAKE_MS = 5_000
"""A TLS handshake over a bad line takes about a second; gRPC holds a silent socket for 40 to 65 s."""
CONNECTIONS = 10_000
"""Twice the agents that one controller is made for. Handshakes count, so silent sockets cannot use up descriptors.

gRPC has no limit by address: one address can take all of them for as long as `HANDSHAKE_MS`, and no longer.
"""
HELLO_S = 10.0
"""From the start of a stream to its first message."""
MESSAGES_PER_S = 500.0
"""Sustained messages of one agent: 20 probes and watchers at once say about 40. Beyond it the agent is read no faster,
and HTTP/2's flow control holds back the rest at its end; other agents notice nothing."""
MESSAGES_BURST = 4_000.0
"""What an agent may say at once: it keeps up to 2,000 sample messages while the controller is away."""
HELD_BYTES = 48 * 1024 * 1024
"""Of what an agent says before its clock is known. An honest one may come back with 2,000 sample messages of 20 KiB."""
TEXT_CHARACTERS = 4_096
"""The rest of a text is cut off before it is kept. Reasons and traces fit; a megabyte of log does not."""
NAME_CHARACTERS = 63
"""Of a host, a label, a kind of fault."""
LABELS = 64
STRIKES = 3
"""So many messages that name what is another agent's, and this one is locked. One may be a bug; three are none."""
CHALLENGE_S = 2.5
"""How long an earlier stream of one certificate may take to answer before it counts as left behind."""
SWEEP_S = 0.5
"""How often the deny list is read: others may have revoked, and their word cuts a stream within 2 s."""

SERVER_OPTIONS = (
    ("grpc.keepalive_time_ms", KEEPALIVE_MS),
    ("grpc.keepalive_timeout_ms", KEEPALIVE_MS),
    ("grpc.http2.ping_timeout_ms", PING_TIMEOUT_MS),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 500),
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", MESSAGE_BYTES),
    ("grpc.max_metadata_size", METADATA_BYTES),
    ("grpc.absolute_max_metadata_size", METADATA_BYTES),
    ("grpc.max_concurrent_streams", STREAMS_A_CONNECTION),
    ("grpc.server_handshake_timeout_ms", HANDSHAKE_MS),
    ("grpc.max_allowed_incoming_connections", CONNECTIONS),
)
