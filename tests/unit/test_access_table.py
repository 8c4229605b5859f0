"""Who may do what, written down a second time: a permission that moves must be moved here as well."""

import pytest
from brownout_controller.access.permissions import PERMISSIONS, Over, Permission, Role

from tests.support.bad_input import ROOT

SEEING = "approval.read fault.read host.read lever.read limit.read plan.read run.read self.read token.own"
TABLE = {
    "viewer": SEEING,
    "operator": f"{SEEING} lever.pull run.halt run.start",
    "author": f"{SEEING} lever.pull run.halt run.start plan.make run.start-unapproved",
    "approver": f"{SEEING} lever.pull run.halt lever.release approval.give",
    "admin": "fault.read host.enrol host.read lever.pull lever.read lever.release limit.read limit.set run.halt "
    "self.read token.manage token.own user.manage user.read",
    "auditor": f"{SEEING} audit.read user.read",
    "halter": "lever.pull lever.read run.halt self.read",
}
OVER = {
    Over.PLACE: "host.read plan.make plan.read run.read run.start run.start-unapproved run.halt approval.read "
    "approval.give",
    Over.SYSTEM: "host.enrol lever.release limit.set token.manage user.read user.manage audit.read",
    Over.ANYTHING: "self.read fault.read lever.read lever.pull limit.read token.own",
}


def test_every_role_has_what_the_table_says_and_no_more() -> None:
    assert {str(role): {one.word for one in had} for role, had in PERMISSIONS.items()} == {
        role: set(words.split()) for role, words in TABLE.items()
    }
    assert [role.value for role in Role] == list(TABLE)


@pytest.mark.parametrize("over", list(Over))
def test_every_permission_is_asked_for_what_the_table_says(over: Over) -> None:
    assert {one.word for one in Permission if one.over is over} == set(OVER[over].split())


def test_the_page_explains_every_permission_by_the_words_that_people_are_shown() -> None:
    page = (ROOT / "docs/api.md").read_text()
    for permission in Permission:
        row = next(line for line in page.splitlines() if line.startswith(f"| `{permission.word}` |"))
        assert f"| {permission.text} | {permission.over} |" in row, row
