"""The kernel itself ends a fault: a timed nftables element steers packets into netem, and no process of ours is alive.

On a host under QEMU, since the two meet on no other host that tests can have.
"""

import os
import shutil
import statistics
import subprocess
from pathlib import Path

import pytest

from tests.support.qemu import boot, fetch_kernel

_CACHE = Path(__file__).parents[2] / ".tools/cloud-kernel"
_SETTLE_S = 0.7
"""Around the instants at which the element comes and goes, in which a ping may fall either way."""
pytestmark = [
    pytest.mark.alone,  # and with the machine's network: it fetches a kernel
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: chroot"),
    pytest.mark.skipif(not shutil.which("qemu-system-x86_64"), reason="needs qemu-system-x86_64"),
]


def test_packets_are_delayed_as_long_as_the_timed_element_lives_and_no_longer(tmp_path: Path) -> None:
    try:
        kernel = fetch_kernel(_CACHE)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no cloud kernel to be had: {error}")
    lines = boot(kernel, tmp_path)
    console = "\n".join(lines)
    print(console)
    said = [line.split() for line in lines if line.startswith(("ping ", "added ", "rules "))]
    pings = [(float(words[1]), float(words[2])) for words in said if words[0] == "ping" and len(words) == 3]
    ((added_s, lives_s),) = [(float(words[1]), float(words[2])) for words in said if words[0] == "added"]

    before = [ms for at_s, ms in pings if at_s < added_s - _SETTLE_S]
    during = [ms for at_s, ms in pings if added_s <= at_s < added_s + lives_s - _SETTLE_S]
    after = [ms for at_s, ms in pings if at_s > added_s + lives_s + _SETTLE_S]
    assert min(len(before), len(during), len(after)) >= 3, console
    # The delay is put on both ways of the loopback's echo.
    assert min(during) >= 40, during
    assert statistics.median(before) < 20, before
    assert statistics.median(after) < 20, after
    assert "elements" not in next(line for line in lines if line.startswith("rules ")), "the element outlived its time"
