"""`dns.failure`: names do not resolve, as when a zone is gone, a server is broken, or nobody answers.

The answer comes at once and from the server that was asked, by its address: nobody but that server can be told from it.
It carries no SOA record, so that no resolver remembers it (RFC 2308 5). `timeout` drops the query without a word: a
program waits as long as it always does, 5 s and two tries with glibc, before it asks the next server, which is met too.
"""

from typing import Literal

from pydantic import Field

from brownout_agent.faults.contract import Effect, Facts
from brownout_agent.faults.dns_interception import Answer, Silence, Treatment
from brownout_agent.faults.dns_message import RCODES, write_answer
from brownout_agent.faults.dns_scope import DnsParameters
from brownout_agent.faults.dns_table import DnsFault, judge_answers, judge_share


class FailureParameters(DnsParameters):
    """Which names fail, and how."""

    answer: Literal["nxdomain", "servfail", "refused", "timeout"] = Field(
        "nxdomain", description="what comes back: no such name, a server that failed or refuses, or nothing"
    )


class DnsFailure(DnsFault[FailureParameters]):
    """Answers with an error, or not at all."""

    kind = "dns.failure"
    summary = "Let names fail to resolve: NXDOMAIN, SERVFAIL, REFUSED or no answer."
    Parameters = FailureParameters

    def rcode(self, parameters: FailureParameters) -> int:
        return RCODES.get(parameters.answer, 0)

    def treatment(self, parameters: FailureParameters, facts: Facts) -> Treatment:
        if parameters.answer == "timeout":
            return Silence()
        rcode = self.rcode(parameters)
        return Answer(lambda query, datagram: write_answer(query, rcode, datagram=datagram))

    def judge(self, parameters: FailureParameters, counts: dict[str, int]) -> Effect:
        if parameters.answer != "timeout":
            return judge_answers(parameters, parameters.answer.upper(), counts)
        vanished = counts["asked"] - counts["passed"]
        return judge_share(parameters, min(counts["met"], vanished), counts, f"{vanished} went no further by the rules")
