"""The agent's part in the trial of a fault that could cut its host off: does the controller still answer?

The question is asked after the fault is in effect, on the stream that orders come by, and only its answer is proof. A
stream that stands may be dead already: nobody is told of packets that vanish.
"""

from collections import OrderedDict
from collections.abc import Callable

from brownout_protos.v1 import fleet_pb2, injector_pb2

_OPEN_MAX = 100
"""More trials than a host's faults at once; what is never answered must not pile up."""


class ControlTrials:
    """The trials whose question is on its way."""

    def __init__(self, ask: Callable[[fleet_pb2.AgentMessage], None], confirm: Callable[[str], None]) -> None:
        """`ask` sends to the controller; `confirm` tells the injector which fault has left the connection whole."""
        self._ask = ask
        self._confirm = confirm
        self._number = 0
        self._open: OrderedDict[int, str] = OrderedDict()

    def begin(self, trial: injector_pb2.ControlTrial) -> None:
        """Ask the controller, now that this fault is in effect."""
        self._number += 1
        self._open[self._number] = trial.fault_id
        if len(self._open) > _OPEN_MAX:
            self._open.popitem(last=False)
        self._ask(fleet_pb2.AgentMessage(ping=fleet_pb2.Ping(number=self._number)))

    def answered(self, pong: fleet_pb2.Pong) -> None:
        """The controller has answered; an answer to nothing that was asked says nothing."""
        fault_id = self._open.pop(pong.number, None)
        if fault_id is not None:
            self._confirm(fault_id)
