"""What the language has and this version does not run. Known but later is not unknown: it is refused by this name.

Nothing here hides what exists: the catalogues of faults, probes and watchers are always asked first.
"""

SECTIONS = frozenset({"alerts", "load", "notify", "report", "schedule"})
PROBES = frozenset({"command", "dns", "grpc", "prometheus", "redis", "sql"})
WATCHERS = frozenset({"keepalived", "kubernetes", "patroni", "sentinel"})
FAULTS = frozenset({"clock.skew"})
METRICS = frozenset({"value"})
SHAPES = frozenset({"pulse", "ramp", "sine", "step", "trace"})
"""A numeric parameter that changes over time: `percent: {ramp: [20, 90], over: 2m}`."""
