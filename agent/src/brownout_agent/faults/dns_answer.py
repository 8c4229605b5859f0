"""`dns.answer`: names resolve to other addresses, as after a bad change of a zone or with a poisoned cache.

Queries for A and AAAA are answered at once, each with the given addresses of its family; where none is of it, with no
address (NOERROR without records). Other types pass. The answers' time to live is 0, so that no resolver remembers them
beyond the fault; a program may (a connection pool, the JVM).
"""

import ipaddress
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from brownout_agent.faults.contract import Effect, Facts, Host, Refusal
from brownout_agent.faults.dns_interception import Answer, Treatment
from brownout_agent.faults.dns_message import RCODES, TYPES, write_answer
from brownout_agent.faults.dns_scope import DnsParameters
from brownout_agent.faults.dns_table import DnsFault, judge_answers
from brownout_agent.faults.network_scope import as_list, check_peer, look_up, parse_network

_ADDRESSES_MAX = 16
_FAMILIES = {TYPES["A"]: 4, TYPES["AAAA"]: 6}


class AnswerParameters(DnsParameters):
    """Which names resolve to what."""

    to: Annotated[
        tuple[str, ...],
        BeforeValidator(as_list, json_schema_input_type=str | list[str]),
        Field(
            min_length=1,
            max_length=_ADDRESSES_MAX,
            description="addresses like 10.0.0.9 or fd00::9, or another name (resolved when the fault starts)",
        ),
    ]
    type: Annotated[
        tuple[Literal["A", "AAAA"], ...],
        BeforeValidator(as_list, json_schema_input_type=Literal["A", "AAAA"] | list[Literal["A", "AAAA"]]),
        Field(description="only queries for these record types; default A and AAAA, as others pass"),
    ] = ()

    @model_validator(mode="after")
    def _check_to(self) -> "AnswerParameters":
        for text in self.to:
            network = parse_network(check_peer(text))
            if network is not None and network.num_addresses != 1:
                raise ValueError(f"`{text}` is a network; a name resolves to addresses")
        return self


class DnsAnswer(DnsFault[AnswerParameters]):
    """Answers with addresses of its own."""

    kind = "dns.answer"
    summary = "Let names resolve to other addresses, or to those of another name."
    Parameters = AnswerParameters
    types = frozenset({"A", "AAAA"})

    def prepare(self, parameters: AnswerParameters, host: Host) -> Facts:
        found = dict.fromkeys(network for text in parameters.to for network in look_up(text))
        if len(found) > _ADDRESSES_MAX:
            raise Refusal(f"{len(found)} addresses; {_ADDRESSES_MAX} at most", "give addresses instead of names")
        return {**super().prepare(parameters, host), "addresses": [str(network.network_address) for network in found]}

    def treatment(self, parameters: AnswerParameters, facts: Facts) -> Treatment:
        addresses = [ipaddress.ip_address(text) for text in facts["addresses"]]
        packed = {
            kind: tuple(address.packed for address in addresses if address.version == version)
            for kind, version in _FAMILIES.items()
        }
        rcode = self.rcode(parameters)
        return Answer(lambda query, datagram: write_answer(query, rcode, packed[query.type], datagram=datagram))

    def rcode(self, parameters: AnswerParameters) -> int:
        return RCODES["noerror"]

    def judge(self, parameters: AnswerParameters, counts: dict[str, int]) -> Effect:
        return judge_answers(parameters, f"with {', '.join(parameters.to)}", counts)
