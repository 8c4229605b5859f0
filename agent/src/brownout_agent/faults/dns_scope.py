"""Which queries a DNS fault means: the parameters that all of them share, and the names that match."""

import fnmatch
import re
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from brownout_agent.faults.contract import FaultParameters, Percent
from brownout_agent.faults.dns_message import TYPES, Query
from brownout_agent.faults.network_scope import as_list

QueryType = Literal["A", "NS", "CNAME", "SOA", "PTR", "MX", "TXT", "AAAA", "SRV", "SVCB", "HTTPS", "ANY"]
_PATTERN = re.compile(r"[A-Za-z0-9_*?-]{1,63}(?:\.[A-Za-z0-9_*?-]{1,63})*\.?")
_PATTERN_MAX = 253
_PATTERNS_MAX = 100


class DnsParameters(FaultParameters):
    """What every DNS fault takes. It means what programs of this host ask DNS servers, the local ones included, on port
    53 by UDP or TCP, over IPv4 or IPv6.

    Not met: answers that a cache already has (a program's own, the JVM's, nscd, systemd-resolved's where no query goes
    out for it), names in /etc/hosts, DNS over TLS or HTTPS, other network namespaces (containers), and what the agent
    asks when it runs as a user of its own.
    """

    names: Annotated[
        tuple[str, ...],
        BeforeValidator(as_list, json_schema_input_type=str | list[str]),
        Field(
            min_length=1,
            max_length=_PATTERNS_MAX,
            description="names as they are asked for, search domain included; `*` is any characters, dots too, and `?` "
            "is one: db-1.shop.test, *.shop.test; upper and lower case are the same",
        ),
    ]
    type: Annotated[
        tuple[QueryType, ...],
        BeforeValidator(as_list, json_schema_input_type=QueryType | list[QueryType]),
        Field(description="only queries for these record types, like AAAA; default every type that the fault can do"),
    ] = ()
    percent: Annotated[Percent, Field(description="share of the matching queries; each is drawn anew")] = 100.0

    @model_validator(mode="after")
    def _check(self) -> "DnsParameters":
        for pattern in self.names:
            if len(pattern) > _PATTERN_MAX or not _PATTERN.fullmatch(pattern):
                raise ValueError(
                    f"`{pattern}` is not a name or a pattern of one like *.shop.test; write an internationalised name "
                    "in its xn-- form"
                )
        if "type" in self.model_fields_set and not self.type:
            raise ValueError("`type` is an empty list, which could mean all or nothing: leave it out for all")
        return self


class Matcher:
    """Whether a query is meant. `types`: those that the fault can do anything to; None for all."""

    def __init__(self, parameters: DnsParameters, types: frozenset[str] | None = None) -> None:
        wanted = frozenset(parameters.type) or types
        self._types = None if wanted is None else frozenset(TYPES[name] for name in wanted)
        patterns = (fnmatch.translate(pattern.rstrip(".").lower()) for pattern in parameters.names)
        self._names = re.compile("|".join(patterns))

    def means(self, query: Query) -> bool:
        """By name and type; who is drawn of them is another matter."""
        return (self._types is None or query.type in self._types) and self._names.match(query.name) is not None
