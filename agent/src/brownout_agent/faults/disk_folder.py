"""Where disk faults work: the folder that an order names, if this host's policy lets a disk fault work there."""

import os
from pathlib import Path

from brownout_agent.faults.contract import ABLE, Capability, Host, Refusal
from brownout_agent.kernel.disks import open_unnamed, remedy_for
from brownout_agent.kernel.folders import is_below

_REMEDY = "use ext4, xfs or btrfs"


def can_hold_unnamed(host: Host) -> Capability:
    """Whether files without a name (O_TMPFILE) can be had here, by making one in the scratch folder."""
    try:
        os.close(os.open(host.scratch, os.O_TMPFILE | os.O_RDWR, 0o600))
    except OSError as error:
        return Capability(False, f"no unnamed file in {host.scratch}: {error.strerror}", _REMEDY)
    return ABLE


def locate_for_unnamed(path: str, host: Host) -> str:
    """As `locate`, of a folder that takes files without a name.

    Raises:
        Refusal: also when it takes none.
    """
    folder = locate(path, host)
    try:
        os.close(open_unnamed(folder))
    except OSError as error:
        raise Refusal(f"{folder} takes no unnamed file: {error.strerror}", remedy_for(error, _REMEDY)) from error
    return folder


def locate(path: str, host: Host) -> str:
    """The path of a folder as it is without links: what is judged here is what is opened later (`folders.opened`).

    Raises:
        Refusal: it is no folder, or none in which this fault may work here.
    """
    real = os.path.realpath(path)
    if host.folders is not None and not is_below(real, host.folders):
        is_told = real != path and is_below(os.path.normpath(path), host.folders)  # of other links nothing is told
        leads = f" leads to {real}, which" if is_told else ""
        raise Refusal(
            f"{path}{leads} is not below a folder that this host's policy allows for it: {', '.join(host.folders)}",
            "name a folder below one of these, or add one under `paths:` of this fault in the policy",
        )
    if not Path(real).is_dir():
        raise Refusal(
            f"{path} is not a folder on this host", "name a folder on the file system that is meant by `path`"
        )
    return real
