"""users, token issue|list|revoke, approve, approvals, whoami: who may do what. All of it asks a controller's API."""

from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from brownout_controller.access.permissions import Role
from brownout_controller.cli import remote, tokens
from brownout_controller.cli.output import Format, fail, show, show_one
from brownout_controller.cli.settings import Output
from brownout_controller.exit_codes import ExitCode
from brownout_controller.reporting.visible import visible

users = typer.Typer(help="Who may come in, and what each may do where.", no_args_is_help=True)
approvals = typer.Typer(help="Approvals of plans, and the limits above which runs need them.", no_args_is_help=True)

User = Annotated[str, typer.Argument(help="the user's name")]
Roles = Annotated[
    list[str],
    typer.Option(
        "--role", metavar="ROLE[@ENVIRONMENT[:SELECTOR]]", help="e.g. operator, author@staging, viewer@staging:role=app"
    ),
]
Environments = Annotated[list[str], typer.Option("--environment", help="only there; may be given several times")]


@users.command("list")
def list_users(output: Output = Format.TABLE) -> None:
    """Every user and their roles."""
    with remote.connect(remote.needed()) as api:
        rows = api.get("/users")["items"]
    if output is Format.TABLE:
        rows = [{**row, "grants": ", ".join(map(_grant_text, row["grants"]))} for row in rows]
    show(rows, ("name", "grants", "disabled"), output, "name")


@users.command()
def add(name: User, role: Roles = []) -> None:  # noqa: B006 - typer wants a literal default
    """Add a user. They can come in once there is a token for them: brownout token issue --user NAME."""
    with remote.connect(remote.needed()) as api:
        print(api.post("/users", {"name": name, "grants": [_grant(text) for text in role]})["name"])


@users.command("set")
def set_roles(name: User, role: Roles = []) -> None:  # noqa: B006
    """Put these roles in place of those that a user has."""
    _change(name, {"grants": [_grant(text) for text in role]})


@users.command()
def disable(name: User) -> None:
    """Let a user in no more, from the next request on. Users are never deleted."""
    _change(name, {"disabled": True})


@users.command()
def enable(name: User) -> None:
    """Let a user in again."""
    _change(name, {"disabled": False})


@tokens.app.command("issue")
def issue(
    user: Annotated[str | None, typer.Option("--user", help="for somebody else; only admins")] = None,
    purpose: Annotated[str, typer.Option("--purpose", help="told in lists")] = "",
    days: Annotated[int, typer.Option("--days", min=1, max=90)] = 30,
    role: Annotated[list[Role], typer.Option("--role", help="only these of the owner's; `halter` can only halt")] = [],  # noqa: B006
    environment: Environments = [],  # noqa: B006
    output: Output = Format.TABLE,
) -> None:
    """An API token, shown this once."""
    body = {"user": user, "purpose": purpose, "days": days, "roles": role or None, "environments": environment or None}
    with remote.connect(remote.needed()) as api:
        made = api.post("/tokens", {name: value for name, value in body.items() if value is not None})
    if output in {Format.JSON, Format.YAML}:
        show_one(made, output)
        return
    print(made["token"])
    typer.echo(f"Shown this once. {made['user']}'s, {_until(made['expires_ns'])}.", err=True)


@tokens.app.command("list")
def list_tokens(output: Output = Format.TABLE) -> None:
    """API tokens, one's own or, for admins, everybody's; never their secrets."""
    with remote.connect(remote.needed()) as api:
        rows = api.get("/tokens")["items"]
    if output is Format.TABLE:
        rows = [{**row, "roles": ", ".join(row["roles"] or ["all"]), "good": _good(row)} for row in rows]
    show(rows, ("id", "user", "purpose", "roles", "made_by", "good"), output, "id")


@tokens.app.command("revoke")
def revoke(
    token_id: Annotated[str, typer.Argument(help="the id; see `brownout token list`")],
    keep_made: Annotated[
        bool, typer.Option("--keep-made", help="this one alone: when it is replaced, and was in good hands")
    ] = False,
    output: Output = Format.TABLE,
) -> None:
    """Revoke an API token for good, with every token that was made by means of it, and say which those were."""
    with remote.connect(remote.needed()) as api:
        answer = api.request("DELETE", f"/tokens/{token_id}", params={"keep_made": keep_made})
    revoked = answer.json()["revoked"]
    if output is not Format.TABLE:
        show(revoked, ("id", "user", "made_by", "purpose"), output, "id")
        return
    for row in revoked:
        whose = f"{row['user']}'s" + (f", {row['purpose']}" if row["purpose"] else "")
        made = f", made by {row['created_by']} by means of {row['made_by']}" if row["made_by"] else ""
        print(visible(f"{row['id']} revoked ({whose}{made})"))


def approve(
    plan: Annotated[str, typer.Argument(help="the plan's digest, as `brownout plan` printed it")],
    hours: Annotated[float, typer.Option("--hours", min=1 / 60, max=168, help="how long it counts")] = 24.0,
) -> None:
    """Approve a plan that somebody else has made. It counts for this very plan, and for a while."""
    with remote.connect(remote.needed()) as api:
        made = api.post("/approvals", {"plan": plan, "ttl_s": int(hours * 3600)})
    print(f"approval {made['id']} of plan {made['plan'][:12]}, {_until(made['expires_ns'])}")


@approvals.command("list")
def list_approvals(
    plan: Annotated[str | None, typer.Option("--plan", help="only of this plan")] = None, output: Output = Format.TABLE
) -> None:
    """The latest approvals."""
    with remote.connect(remote.needed()) as api:
        rows = api.get("/approvals", plan=plan)["items"]
    if output is Format.TABLE:
        rows = [
            {**row, "withdrawn": row["withdrawn_ns"] is not None, "good": _until(row["expires_ns"])} for row in rows
        ]
    show(rows, ("id", "plan", "approver", "good", "withdrawn"), output, "id")


@approvals.command()
def withdraw(number: Annotated[int, typer.Argument(help="the approval's number")]) -> None:
    """Take an approval back. Runs that have begun go on."""
    with remote.connect(remote.needed()) as api:
        api.request("DELETE", f"/approvals/{number}")
    print(f"approval {number} withdrawn")


@approvals.command()
def limit(
    environment: Annotated[str, typer.Argument(help="the environment's name")],
    hosts: Annotated[int | None, typer.Option("--hosts", min=0, help="more hosts than this need approval")] = None,
    percent: Annotated[
        float | None, typer.Option("--percent", min=0, max=100, help="more of the environment's hosts than this do")
    ] = None,
    output: Output = Format.TABLE,
) -> None:
    """Show, or set, above which blast radius a run in an environment needs approval."""
    with remote.connect(remote.needed()) as api:
        answer = api.request("GET", f"/limits/{environment}")
        if hosts is not None or percent is not None:
            now = answer.json()
            body = {
                "hosts": now["hosts"] if hosts is None else hosts,
                "percent": now["percent"] if percent is None else percent,
            }
            headers = {"If-Match": answer.headers["ETag"]}
            answer = api.request("PUT", f"/limits/{environment}", json=body, headers=headers)
    show([answer.json()], ("environment", "hosts", "percent"), output, "environment")


def whoami(output: Output = Format.TABLE) -> None:
    """Who one is for a controller, by which token, and what one may."""
    with remote.connect(remote.needed()) as api:
        found = api.get("/whoami")
    if output in {Format.JSON, Format.YAML}:
        show_one(found, output)
        return
    print(found["user"])
    if output is Format.TABLE:
        for grant in found["grants"]:
            print(f"  {_grant_text(grant)}")
        print(f"  token {found['token']}, {_until(found['token_expires_ns'])}")


def _change(name: str, change: dict[str, Any]) -> None:
    with remote.connect(remote.needed()) as api:
        answer = api.request("GET", f"/users/{name}")
        now = answer.json()
        body = {"grants": now["grants"], "disabled": now["disabled"], **change}
        api.request("PUT", f"/users/{name}", json=body, headers={"If-Match": answer.headers["ETag"]})
    print(name)


def _grant(text: str) -> dict[str, Any]:
    """`author@staging:role=app` as the API takes it."""
    role, _, where = text.partition("@")
    environment, _, hosts = where.partition(":")
    if role not in {one.value for one in Role} - {Role.HALTER}:
        known = ", ".join(one for one in Role if one is not Role.HALTER)
        fail(ExitCode.USAGE, "usage", f"--role {text}: there is no role `{role}`; roles: {known}")
    return {"role": role, "environments": [environment] if environment else None, "hosts": hosts or None}


def _grant_text(grant: dict[str, Any]) -> str:
    where = f"@{'+'.join(grant['environments'])}" if grant["environments"] else ""
    return f"{grant['role']}{where}" + (f":{grant['hosts']}" if grant["hosts"] else "")


def _good(row: dict[str, Any]) -> str:
    return "revoked" if row["revoked_ns"] is not None else _until(row["expires_ns"])


def _until(expires_ns: int) -> str:
    return f"until {datetime.fromtimestamp(expires_ns / 1e9, UTC):%Y-%m-%d %H:%M} UTC"
