"""A value of a control file is ours for a while: what the faults that limit a control group have in common.

What the file said before is in the facts, and so is what we write. Only while the file still says that is it ours to
give back: somebody else's change is left alone. Nothing of the kernel ends it; it is gone with the group, so also at a
reboot.
"""

import errno
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import ClassVar, Generic, TypeVar

from brownout_agent.faults.contract import ABLE, Capability, Facts, Fault, FaultParameters, Hold, Host, Record, Refusal
from brownout_agent.faults.group_match import Controller
from brownout_agent.kernel.cgroups import trees

REVERTS = (
    "Whoever undoes (the injector, the reaper, the injector's next start) writes the old {what} back: it belongs to "
    "the group and outlives us. It is gone with the group as well, and so at a reboot."
)

P = TypeVar("P", bound=FaultParameters)


@dataclass(frozen=True, slots=True)
class Setting:
    """A control file, what it said before, and what it says while it is ours: as the kernel shows both.

    Of a file with a line for each disk it is one line: `device` are the disk's numbers, like 254:0, and `unset` is what
    a line would say that is not there. Of a line of several values, each behind its `name`, it is one value.
    """

    file: str
    before: str
    ours: str
    device: str = ""
    unset: str = ""
    name: str = ""

    def now(self) -> str | None:
        """What it says, None where the file is gone: with its group, or with the controller."""
        path = Path(self.file)
        try:
            text = path.read_text().strip()
            if path.name == "freezer.state":  # it says FROZEN also where a group above was frozen, not this one
                return ("THAWED", "FROZEN")[int(path.with_name("freezer.self_freezing").read_text())]
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno != errno.ENODEV:  # removed after it was opened
                raise
            return None
        if not self.device:
            return text
        value = dict(line.split(" ", 1) for line in text.splitlines()).get(self.device, "")
        if self.name:
            value = dict(word.split("=") for word in value.split()).get(self.name, "")
        return value or self.unset

    def as_written(self, value: str) -> str:
        """What has to be written for this value."""
        named = f"{self.name}={value}" if self.name else value
        return f"{self.device} {named}" if self.device else named

    @property
    def is_ours(self) -> bool:
        return self.now() == self.ours

    def take(self) -> None:
        """Raises Refusal: somebody was faster, or the kernel does not take it."""
        if self.now() != self.before:
            raise Refusal(f"somebody has changed {self.file} meanwhile", "try again")
        try:
            Path(self.file).write_text(self.as_written(self.ours))
        except OSError as error:
            ours = self.as_written(self.ours)
            raise Refusal(f"{self.file} does not take `{ours}`: {error.strerror}", "try another value") from error

    def give_back(self) -> None:
        """Raises OSError: the kernel does not take what was there before."""
        if not self.is_ours:
            return
        try:
            Path(self.file).write_text(self.as_written(self.before))
        except OSError:
            if self.is_ours:  # else it has gone since, and what was ours with it
                raise


class GroupLimit(Fault[P], Generic[P]):
    """Base of these faults. `prepare` returns `limit_facts` of its settings."""

    controller: ClassVar[Controller]

    def detect(self, host: Host) -> Capability:
        name = self.controller.name
        found = trees(name)
        if not found:
            return Capability(False, f"no control group here has the {name} controller", f"mount the {name} controller")
        if not any(os.access(tree, os.W_OK) for tree in found):
            return Capability(False, f"{found[0]} is not writable", "run the injector as root, cgroups writable")
        return ABLE

    def apply(self, parameters: P, facts: Facts, hold: Hold) -> None:
        for setting in settings_of(facts):
            setting.take()
        hold.ready()
        hold.wait()

    def undo(self, record: Record[P]) -> None:
        for setting in reversed(settings_of(record.facts)):
            setting.give_back()

    def residue(self, record: Record[P]) -> list[str]:
        return [
            f"{setting.file} is still {setting.as_written(setting.ours)}; "
            f"next: echo {setting.as_written(setting.before)} > {setting.file}"
            for setting in settings_of(record.facts)
            if setting.is_ours
        ]


def limit_facts(group: Path, *settings: Setting) -> Facts:
    """The facts of a fault that makes these settings of one group.

    Raises:
        Refusal: a file is not ours to write.
    """
    for setting in settings:
        if not os.access(setting.file, os.W_OK):
            raise Refusal(f"{setting.file} is not writable", "run the injector as root, cgroups writable")
    return {"group": str(group), "settings": [asdict(setting) for setting in settings]}


def settings_of(facts: Facts) -> list[Setting]:
    """What `limit_facts` wrote."""
    return [Setting(**plain) for plain in facts["settings"]]


@dataclass(slots=True)
class SettingWatch:
    """Whether what we wrote stands, at every look."""

    settings: list[Setting]
    looks: int = 0
    stood: int = 0
    _foreign: dict[str, str] = field(default_factory=dict)

    def look(self) -> bool:
        """Look now."""
        self.looks += 1
        stands = True
        for setting in self.settings:
            now = setting.now()
            if now != setting.ours:
                stands = False
                what = "was gone" if now is None else f"said `{setting.as_written(now)}`, which somebody else wrote,"
                self._foreign.setdefault(setting.file, f"{setting.file} {what} at reading {self.looks}")
        self.stood += stands
        return stands

    @property
    def always_stood(self) -> bool:
        return 0 < self.looks == self.stood

    @property
    def text(self) -> str:
        """For people: what was found instead, empty where it always stood."""
        return "".join(f"; {found}" for found in self._foreign.values())
