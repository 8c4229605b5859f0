"""Which control group a fault means: a systemd unit's or that of processes; and which ones no fault may touch.

Nobody is spared in a group. So whoever is in it, or in one below it, has been named: by the unit, or by matching.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field, model_validator

from brownout_agent.faults.contract import Host, Refusal
from brownout_agent.faults.process_cgroups import unit_named_in
from brownout_agent.faults.process_match import (
    Process,
    ProcessParameters,
    Untouchable,
    listed,
    match,
    read_process,
    read_processes,
    refuse_untouchable,
)
from brownout_agent.faults.process_places import cgroup_texts, in_unit
from brownout_agent.kernel.cgroup_tree import members_below
from brownout_agent.kernel.cgroups import PREFIX, UNIT_PATTERN, own_groups, trees

_APART = "run what is meant in a control group of its own, as a service is"


class GroupParameters(ProcessParameters):
    """Whose control group is meant: that of a systemd unit, or that of processes, which must be all that are in it.

    Everything in the group is hit, and in those below it. A group with sshd, systemd, Brownout's own processes or
    whatever else the host protects is refused.
    """

    ways: ClassVar[tuple[str, ...]] = ("unit", *(way for way in ProcessParameters.ways if way != "unit"))
    unit: Annotated[
        str | None,
        Field(
            pattern=UNIT_PATTERN,
            max_length=255,
            description="a unit of systemd with all that runs in it: nginx.service",
        ),
    ] = None

    @model_validator(mode="after")
    def _unit_is_all(self) -> "GroupParameters":
        if self.unit is not None and (len(self.given) > 1 or self.tree):
            raise ValueError("`unit` means all that runs in it: leave the others out")
        return self


@dataclass(frozen=True, slots=True)
class Controller:
    """A controller of cgroups(7), and by which file of a group a fault sets it."""

    name: str
    files: tuple[str, ...]
    """The control file in version 2 and in version 1: a group has one of them."""
    switched_on_by: str
    """The property of a unit for which systemd gives it the controller, without a limit; "" where every unit of version
    2 has it and none of version 1."""

    def file_of(self, group: Path) -> Path | None:
        """The control file of this group; None where it has none, or is a root, which takes no limit."""
        if (group / "release_agent").exists():  # version 1: the root alone has it, beside the files of the others
            return None
        return next((group / name for name in self.files if (group / name).exists()), None)

    def group_of(self, pid: int) -> Path | None:
        """The group that this process is in: that with the control file, where there are trees of both versions."""
        found = own_groups(pid, self.name)
        return next((group for group in found if self.file_of(group)), found[0] if found else None)


def control_file(parameters: GroupParameters, host: Host, controller: Controller) -> Path:
    """The control file of the group that is meant; its parent is the group. Touches nothing.

    Raises:
        Refusal: there is no such group, or one that must not be touched.
    """
    if parameters.unit is not None:
        group = _unit_group(parameters.unit, controller)
    else:
        group = common_group(match(parameters, host), controller.group_of, controller.name)
    file = controller.file_of(group)
    if file is None and group in trees(controller.name):
        raise Refusal(f"{parameters.text} is in the root control group, which takes no limit", _APART)
    if file is None:
        raise Refusal(
            f"{group} has no {controller.files[0]}: its {controller.name} controller is off",
            _switch_on_for(group, controller),
        )
    if any(name.startswith(PREFIX) for name in group.parts):
        raise Refusal(f"{group} is a control group of Brownout's own, which no fault touches")
    refuse_protected(group, host)
    if parameters.unit is None:
        _refuse_strangers(group, parameters, host)
    return file


def common_group(chosen: list[Process], group_of: Callable[[int], Path | None], limits: str) -> Path:
    """The one group of these processes: that of them in or below which all of them are.

    Args:
        group_of: the group of a process by its pid; None where only the root would be it.
        limits: what a group limits, for people.

    Raises:
        Refusal: they are in several, in none but the root, or gone.
    """
    groups: dict[Path | None, str] = {}
    for process in chosen:
        try:
            groups.setdefault(group_of(process.key.pid), process.text)
        except (FileNotFoundError, ProcessLookupError) as error:
            raise Refusal(f"{process.text} ended while it was looked at", "try again") from error
    if None in groups:
        raise Refusal(
            f"{groups[None]} is in the root control group, which has no limit on {limits}",
            "run it as a service of its own, or by `systemd-run --scope`",
        )
    found = sorted((group for group in groups if group is not None), key=lambda group: len(group.parts))
    if not all(group.is_relative_to(found[0]) for group in found):
        each = ", ".join(f"{name} in {group}" for group, name in groups.items())
        raise Refusal(f"they are in different control groups: {each}", "narrow the match to one of them")
    return found[0]


def refuse_second(kind: str, group: Path, host: Host) -> None:
    """Raises Refusal where the group has a fault of this kind: two of them could not both give back what was before."""
    for other, facts in host.unfinished:
        if other == kind and facts["group"] == str(group):
            raise Refusal(f"{group} has a {kind} already, or one that is not undone yet", "wait for its end")


def refuse_protected(group: Path, host: Host) -> None:
    """Raises Refusal where somebody is in the group, or below it, who must not be hit."""
    untouchable = Untouchable.of(host)
    for pid in sorted(members_below(group)):
        process = read_process(pid) if pid else None
        if process is None:
            continue
        try:
            refuse_untouchable(process, untouchable)
        except Refusal as refusal:
            raise Refusal(f"all of {group} would be hit, and {refusal.reason}", _APART) from refusal


def _refuse_strangers(group: Path, parameters: GroupParameters, host: Host) -> None:
    pids = members_below(group)
    # Matched anew, and after that: whoever was started in between is meant as well.
    meant = {process.key.pid for process in match(parameters, host)}
    strangers = [process for pid in sorted(pids - meant - {0}) if (process := read_process(pid)) is not None]
    if strangers or 0 in pids:
        who = listed(strangers) or "a process of another pid namespace"
        raise Refusal(f"all of {group} would be hit, and {parameters.text} does not match {who}", _whole(min(meant)))


def _whole(pid: int) -> str:
    texts = cgroup_texts([pid])
    unit = unit_named_in(texts.get(pid, ""))
    return f"write `unit: {unit}` for the whole of it" if unit else f"match all of them, or {_APART}"


def _unit_group(unit: str, controller: Controller) -> Path:
    pids = in_unit(unit, [process.key.pid for process in read_processes()])
    try:
        groups = [group for pid in pids if (group := controller.group_of(pid)) is not None]
    except (FileNotFoundError, ProcessLookupError) as error:
        raise Refusal(f"a process of {unit} ended while it was looked at", "try again") from error
    found = {folder for group in groups for folder in (group, *group.parents) if folder.name == unit}
    if len(found) != 1:  # in version 1 a tree has the groups of those units only that use its controller
        raise Refusal(
            f"{unit} has no control group with the {controller.name} controller", _switch_on(unit, controller)
        )
    return found.pop()


def _switch_on_for(group: Path, controller: Controller) -> str:
    if group.suffix in {".service", ".scope", ".slice"}:
        return _switch_on(group.name, controller)
    return f"echo +{controller.name} > {group.parent}/cgroup.subtree_control"


def _switch_on(unit: str, controller: Controller) -> str:
    if not controller.switched_on_by:
        return "boot into version 2 of control groups (systemd.unified_cgroup_hierarchy=1)"
    return f"systemctl set-property --runtime {unit} {controller.switched_on_by}"
