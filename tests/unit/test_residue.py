"""The residue audit as a comparison: what counts as left behind, what has changed meanwhile, and what is not known."""

from collections.abc import Iterable, Mapping
from dataclasses import replace

import pytest
from brownout_agent.faults.network_rules import table_name
from brownout_agent.fingerprint import (
    LINE_CHARS_MAX,
    SECTION_BYTES_MAX,
    Fingerprint,
    Section,
    cut_section,
    from_wire,
    is_cut,
    nothing_read,
    to_wire,
)
from brownout_controller.analysis.residue import CLOCK_SLEW, CLOCK_STEP_S, SPACE_BYTES, find_residue, touched_sections
from brownout_controller.record import HostResidue, ResidueState
from hypothesis import given
from hypothesis import strategies as st

GIB = 2**30
S = 10**9
LINE = st.text(st.characters(codec="utf-8", exclude_characters="\n"), min_size=1, max_size=40).filter(
    lambda line: not line.startswith("~ ")
)
BY_NUMBER = frozenset({Section.SPACE, Section.CLOCK})
PLAIN = sorted(set(Section) - BY_NUMBER)
KINDS = ("cpu.load", "memory.load", "disk.fill", "network.loss", "process.pause")


def look(sections: Mapping[Section, Iterable[str]] | None = None, **other: object) -> Fingerprint:
    """A host on which nothing stands but what is given."""
    quiet = {section.value: () for section in Section} | {
        "clock": ("1000",),
        "space": (f"{50 * GIB} {100 * GIB} /data",),
    }
    given_lines = {section.value: tuple(lines) for section, lines in (sections or {}).items()}
    base = Fingerprint({**quiet, **given_lines}, {}, 0, "boot-1")
    return replace(base, **other)  # type: ignore[arg-type]


def compare(before: Fingerprint, after: Fingerprint, *kinds: str) -> HostResidue:
    return find_residue("app-1", {f"f-{kind}": kind for kind in kinds or KINDS}, before, after)


looks = st.fixed_dictionaries({section: st.lists(LINE, max_size=4) for section in PLAIN}).map(look)


@given(looks, st.sampled_from([*KINDS, "else.what"]))
def test_a_host_that_is_as_it_was_is_clean(fingerprint: Fingerprint, kind: str) -> None:
    assert compare(fingerprint, fingerprint, kind) == HostResidue("app-1", ResidueState.CLEAN)


@given(looks, st.randoms())
def test_the_order_of_lines_says_nothing(fingerprint: Fingerprint, random: object) -> None:
    sections = dict(fingerprint.sections)
    for name, lines in sections.items():
        sections[name] = tuple(random.sample(lines, len(lines)))  # type: ignore[attr-defined]
    assert compare(fingerprint, replace(fingerprint, sections=sections)).state is ResidueState.CLEAN


@given(looks, LINE, st.sampled_from(KINDS), st.data())
def test_any_line_that_appears_in_a_touched_section_is_residue(
    before: Fingerprint, line: str, kind: str, data: st.DataObject
) -> None:
    section = data.draw(st.sampled_from(sorted(touched_sections([kind]) - BY_NUMBER - {Section.CGROUPS})))
    after = replace(before, sections={**before.sections, section: (*before.sections[section], line)})
    found = compare(before, after, kind)
    assert (found.state, found.left) == (ResidueState.RESIDUE, (f"+ {section.value}: {line}",))


@given(looks, LINE.filter(lambda line: "brownout" not in line), st.sampled_from(KINDS), st.data())
def test_what_no_fault_of_the_run_touches_has_changed_meanwhile(
    before: Fingerprint, line: str, kind: str, data: st.DataObject
) -> None:
    section = data.draw(st.sampled_from(sorted(set(PLAIN) - touched_sections([kind]))))
    after = replace(before, sections={**before.sections, section: (*before.sections[section], line)})
    found = compare(before, after, kind)
    assert (found.state, found.left) == (ResidueState.CLEAN, ())
    assert found.changed_meanwhile == (f"+ {section.value}: {line}",)


def test_the_same_line_twice_is_one_more_than_once() -> None:
    before, after = look({Section.QDISCS: ["eth0 netem"]}), look({Section.QDISCS: ["eth0 netem", "eth0 netem"]})
    assert compare(before, after, "network.loss").left == ("+ qdiscs: eth0 netem",)


def test_a_name_of_ours_that_appears_is_residue_whatever_was_injected() -> None:
    after = look({Section.NFT: ["table inet brownout-3f"]})
    assert compare(look(), after, "cpu.load").left == ("+ nft: table inet brownout-3f",)


def test_a_name_of_ours_that_goes_is_none_and_in_a_strangers_path_it_is_nobodys() -> None:
    before = look({Section.NFT: ["table inet brownout-3f"]})
    assert compare(before, look(), "network.loss").state is ResidueState.CLEAN
    after = look({Section.MOUNTS: ["/srv/brownout/data ext4"]})
    assert compare(look(), after, "network.loss").state is ResidueState.CLEAN


def test_a_strangers_table_or_qdisc_that_vanished_under_a_network_fault_is_told_as_residue() -> None:
    before = look({Section.NFT: ["table ip nat"], Section.QDISCS: ["eth0 tbf 1:"]})
    found = compare(before, look(), "network.blackhole")
    assert found.left == ("- qdiscs: eth0 tbf 1:", "- nft: table ip nat")


def test_a_process_that_stands_still_no_more_was_not_left_behind() -> None:
    before = look({Section.STOPPED: ["sleep, process 7, is stopped"]})
    assert compare(before, look(), "process.kill").state is ResidueState.CLEAN


def test_a_fault_of_a_family_that_is_not_known_here_may_have_changed_everything() -> None:
    assert touched_sections(["time.skew"]) == frozenset(Section)
    after = look({Section.FILES: ["/etc/hosts sha256:1"]})
    assert compare(look(), after, "time.skew").state is ResidueState.RESIDUE


def test_what_another_runs_fault_does_meanwhile_is_not_ours() -> None:
    other = "0f1e2d3c-4b5a-4978-8675-000000000001"
    after = look(
        {
            Section.HOLDERS: [f"brownout holder, process 7, of disk.fill {other}"],
            Section.NFT: [f"table inet {table_name(other)}", "table inet brownout-3f00aa"],
            Section.SPACE: [f"{GIB} {100 * GIB} /data"],
        }
    )
    assert compare(look(), after, "disk.fill").left == ("+ nft: table inet brownout-3f00aa",)
    own = find_residue("app-1", {other: "disk.fill"}, look(), after)
    assert len(own.left) == 5


def test_a_control_group_is_the_residue_of_the_run_whose_fault_it_names() -> None:
    after = look({Section.CGROUPS: ["/sys/fs/cgroup/brownout-fault-f-cpu.load with 0 processes"]})
    assert compare(look(), after, "cpu.load").state is ResidueState.RESIDUE
    assert compare(look(), after, "memory.load").state is ResidueState.CLEAN


# ---- free space and the clock ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("total", "lost", "state"),
    [
        (100 * GIB, GIB, ResidueState.CLEAN),
        (100 * GIB, GIB + 1, ResidueState.RESIDUE),
        (GIB, SPACE_BYTES, ResidueState.CLEAN),
        (GIB, SPACE_BYTES + 1, ResidueState.RESIDUE),
        (GIB, -GIB, ResidueState.CLEAN),
    ],
)
def test_a_file_system_may_lose_one_percent_or_16_mib(total: int, lost: int, state: ResidueState) -> None:
    free = total // 2
    before, after = (look({Section.SPACE: [f"{size} {total} /a folder"]}) for size in (free, free - lost))
    assert compare(before, after, "disk.fill").state is state


def test_space_that_is_short_is_told_with_what_may_be_lost() -> None:
    after = look({Section.SPACE: [f"{40 * GIB} {100 * GIB} /data"]})
    found = compare(look(), after, "disk.io")
    assert found.left == (
        "+ space: /data has 40 GiB free, 10 GiB less (1 GiB may be lost)",
        "- space: /data had 50 GiB free",
    )
    assert compare(look(), after, "cpu.load").state is ResidueState.CLEAN


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("passed_s", [0, 3600])
def test_a_clock_may_be_slewed_and_not_set(sign: int, passed_s: int) -> None:
    allowed_s = CLOCK_STEP_S + CLOCK_SLEW * passed_s
    for step_s, is_told in ((allowed_s - 0.01, False), (allowed_s + 0.01, True)):
        after = look({Section.CLOCK: [str(1000 + sign * round(step_s * S))]}, at_boottime_ns=passed_s * S)
        assert bool(compare(look(), after, "time.step").left) is is_told
        assert bool(compare(look(), after, "cpu.load").changed_meanwhile) is is_told


# ---- what is not known -----------------------------------------------------------------------------------------------


def without(section: Section, fingerprint: Fingerprint) -> Fingerprint:
    sections = {name: lines for name, lines in fingerprint.sections.items() if name != section}
    return replace(fingerprint, sections=sections, unread={section.value: "not permitted"})


@pytest.mark.parametrize(
    ("before", "after", "kind", "state"),
    [
        (False, False, "network.loss", ResidueState.UNKNOWN),
        (False, True, "network.loss", ResidueState.UNKNOWN),
        (True, False, "network.loss", ResidueState.UNKNOWN),
        (True, False, "cpu.load", ResidueState.UNKNOWN),
        (False, True, "cpu.load", ResidueState.CLEAN),
        (False, False, "cpu.load", ResidueState.CLEAN),
    ],
)
def test_a_section_that_cannot_be_read_is_never_clean(
    before: bool, after: bool, kind: str, state: ResidueState
) -> None:
    first, second = (look() if readable else without(Section.QDISCS, look()) for readable in (before, after))
    found = compare(first, second, kind)
    assert found.state is state
    assert found.unread == (("qdiscs: " if not after else "qdiscs: before the first fault: ") + "not permitted",)


def test_a_host_of_which_nothing_could_be_read_is_unknown() -> None:
    assert compare(look(), nothing_read("the injector is away")).state is ResidueState.UNKNOWN


def test_a_host_that_was_booted_meanwhile_is_unknown() -> None:
    found = compare(look(), look(boot_id="boot-2"))
    assert (found.state, found.left) == (ResidueState.UNKNOWN, ())
    assert "booted meanwhile" in found.unread[0]


@pytest.mark.parametrize(
    ("section", "lines"), [(Section.CLOCK, ()), (Section.CLOCK, ("noon",)), (Section.SPACE, ("plenty",))]
)
def test_what_a_host_says_without_sense_is_not_known_and_stops_nothing(
    section: Section, lines: tuple[str, ...]
) -> None:
    found = compare(look(), look({section: lines}), "cpu.load")
    assert found.state is ResidueState.UNKNOWN
    assert found.unread == (f"{section.value}: what the host said of it makes no sense",)


def test_residue_is_told_also_where_something_else_is_not_known() -> None:
    after = without(Section.QDISCS, look({Section.NFT: ["table inet brownout-3f"]}))
    found = compare(look(), after, "network.loss")
    assert (found.state, len(found.left), len(found.unread)) == (ResidueState.RESIDUE, 1, 1)


# ---- the bounds of a message -----------------------------------------------------------------------------------------


@given(st.lists(st.text(max_size=400), max_size=300))
def test_a_section_is_bounded_and_says_what_it_leaves_out(lines: list[str]) -> None:
    kept = cut_section(lines)
    assert sum(len(line.encode()) for line in kept) <= SECTION_BYTES_MAX + 200
    assert is_cut(kept) or len(kept) == len(lines)


def many(count: int) -> list[str]:
    return [f"/mnt/volume-{number:05} ext4 /dev/mapper/volume-{number:05}" for number in range(count)]


def test_a_change_in_what_was_left_out_is_seen_and_names_of_ours_are_never_left_out() -> None:
    before = look({Section.MOUNTS: cut_section(many(5_000))})
    one_more = look({Section.MOUNTS: cut_section(many(5_001))})
    (appeared, vanished) = compare(before, one_more, "time.skew").left
    assert ("5001 more lines" in appeared, "5000 more lines" in vanished) == (True, True)
    ours = look({Section.NFT: cut_section([*many(5_000), "table inet brownout-3f"])})
    found = compare(look({Section.NFT: cut_section(many(5_000))}), ours, "cpu.load")
    assert found.left == ("+ nft: table inet brownout-3f",)


def test_a_long_line_is_cut_and_still_differs_from_another_with_the_same_beginning() -> None:
    first, second = (cut_section(["x" * 1_000 + end])[0] for end in "ab")
    assert first != second
    assert len(first) < LINE_CHARS_MAX + 40


def test_the_largest_fingerprint_fits_into_a_frame_and_comes_back_as_it_was() -> None:
    full = Fingerprint({name.value: cut_section(["é" * 290] * 900) for name in Section}, {}, 7, "boot-1")
    wire = to_wire(full, "one")
    assert wire.ByteSize() < 256 * 1024 - 64
    assert from_wire(wire) == full


def test_a_section_that_a_host_says_nothing_of_was_not_read() -> None:
    message = to_wire(look(), "one")
    del message.sections["nft"]
    found = compare(look(), from_wire(message), "cpu.load")
    assert (found.state, found.unread) == (ResidueState.UNKNOWN, ("nft: the host said nothing of it",))
