"""The pure parts of the HAProxy watcher: reading an answer, and what a look means after the looks before."""

import pytest
from brownout_agent.observe import Change
from brownout_agent.watchers.haproxy import HaproxyWatcher, State, View, parse_states

HEADER = "# pxname,svname,status,check_status,last_chk,addr,\n"


def answer(*rows: str) -> str:
    return HEADER + "".join(f"{row}\n" for row in rows) + "\n"


def test_subjects_are_the_backend_first_and_then_its_servers() -> None:
    text = answer("edge,FRONTEND,OPEN,,,,", "shop,app-1,UP,L4OK,,,", "shop,BACKEND,UP,,,,")
    assert parse_states(text) == {"shop": State("UP"), "shop/app-1": State("UP", "L4OK")}
    assert list(parse_states(text)) == ["shop", "shop/app-1"]


@pytest.mark.parametrize(
    ("status", "word", "detail"),
    [
        ("UP", "UP", ""),
        ("UP 1/3", "UP", "UP 1/3"),
        ("DOWN 1/2", "DOWN", "DOWN 1/2"),
        ("DOWN (agent)", "DOWN", "DOWN (agent)"),
        ("NOLB", "NOLB", ""),
        ("MAINT (via edge/app-1)", "MAINT", "MAINT (via edge/app-1)"),
        ("DRAIN (agent)", "DRAIN", "DRAIN (agent)"),
        ("no check", "no check", ""),
    ],
)
def test_a_status_is_a_word_and_its_counters_are_detail(status: str, word: str, detail: str) -> None:
    assert parse_states(answer(f"shop,app-1,{status},,,,"))["shop/app-1"] == State(word, detail)


def test_the_detail_says_what_the_last_check_said_even_with_commas_in_it() -> None:
    states = parse_states(answer('shop,app-1,DOWN 1/2,* L7STS,"HTTP status 503, not 200",,'))
    assert states["shop/app-1"].detail == "DOWN 1/2, L7STS, HTTP status 503, not 200"


def test_columns_are_found_by_name_whatever_their_order() -> None:
    text = "# pxname,svname,last_chk,check_status,status\nshop,app-1,,L4OK,UP\n\n"
    assert parse_states(text) == {"shop/app-1": State("UP", "L4OK")}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "-ERR unknown command\n",
        "Permission denied\n\n",
        HEADER + "shop,app-1,UP,,,,\nshop,app-2,U",
        HEADER + "shop,app-1,UP,,,,\n",
        "# pxname,svname,stat\nshop,app-1,UP\n\n",
        answer("shop,app-1"),
    ],
)
def test_what_is_not_a_whole_answer_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"HAProxy's (whole )?answer"):
        parse_states(text)


def test_a_change_lies_between_the_look_that_saw_it_and_the_beginning_of_the_look_before() -> None:
    view = View()
    assert view.update({"shop/a": State("UP")}, 10, 11) == [Change(11, 10, "shop/a", "", "UP")]
    assert view.update({"shop/a": State("UP", "UP 1/2")}, 20, 21) == []
    assert view.update({"shop/a": State("DOWN", "L4CON")}, 30, 31) == [Change(31, 20, "shop/a", "UP", "DOWN", "L4CON")]


def test_while_haproxy_is_unreadable_nothing_is_known_of_its_servers() -> None:
    view = View()
    view.update({"shop": State("UP"), "shop/a": State("UP")}, 10, 11)
    assert view.lose("shop", "refused", 20, 21) == [Change(21, 10, "shop", "UP", "unreadable", "refused")]
    assert view.lose("shop", "refused", 30, 31) == []
    assert view.update({"shop": State("UP"), "shop/a": State("DOWN")}, 40, 41) == [
        Change(41, 30, "shop", "unreadable", "UP"),
        # It may have gone down at any time since it was last really seen.
        Change(41, 10, "shop/a", "UP", "DOWN"),
    ]


def test_a_server_that_is_listed_no_more_is_gone_and_may_come_back() -> None:
    view = View()
    view.update({"shop/a": State("UP"), "shop/b": State("UP")}, 10, 11)
    assert view.update({"shop/a": State("UP")}, 20, 21) == [Change(21, 10, "shop/b", "UP", "gone")]
    assert view.update({"shop/a": State("UP")}, 30, 31) == []
    assert view.update({"shop/a": State("UP"), "shop/b": State("DOWN")}, 40, 41) == [
        Change(41, 30, "shop/b", "gone", "DOWN")
    ]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"backend": "shop; disable server shop/app-1"}, "not a name that HAProxy allows"),
        ({"backend": "shop\nshutdown"}, "not a name that HAProxy allows"),
        ({"backend": ""}, "not a name that HAProxy allows"),
        ({"socket": "admin.sock"}, "has no port"),
        ({"socket": "169.254.169.254:80"}, "cloud metadata"),
        ({"timeout_ms": 0}, "outside of 1ms to 60s"),
    ],
)
def test_settings_that_can_never_work_are_refused(settings: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        HaproxyWatcher(**{"socket": "/run/haproxy/admin.sock", "backend": "shop", **settings})  # type: ignore[arg-type]
