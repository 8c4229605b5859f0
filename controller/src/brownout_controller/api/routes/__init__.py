"""The routes, one file a subject. `ALL` is what the app is made of."""

from brownout_controller.api.routes import (
    approvals,
    audit,
    cli_login,
    hosts,
    lever,
    login,
    plans,
    runs,
    system,
    tokens,
    users,
)

ALL = tuple(
    subject.routes for subject in (system, hosts, plans, runs, lever, approvals, users, tokens, audit, login, cli_login)
)
