"""An injector and an agent on every host of the staging network, and the controller's run beside them."""

import json
from pathlib import Path
from subprocess import Popen

from brownout_controller.demo import network
from brownout_controller.demo.foreground import foreground, program
from brownout_controller.demo.network import ADDRESSES, CONTROLLER
from brownout_controller.demo.staging import Staging

ROLES = {"edge": "edge", "app-1": "app", "app-2": "app"}
"""Every host that faults and probes may go to, with its `role` label."""
LISTEN = f"{ADDRESSES[CONTROLLER].v4}:7700"
JOINED_WITHIN_S = 30.0
_POLICY = """\
version: 1
environment: staging
faults:
  "*": {allow: true, max_seconds: 120}
limits: {concurrent: 4}
"""


def run_experiment(staging: Staging, experiment: Path, report_dir: Path, variables: dict[str, str]) -> int:
    """`brownout run` in the controller's place, live on our terminal, with every host joined; its exit code."""
    data = staging.path(CONTROLLER, "data")
    joins = {host: _join(staging, host, data) for host in ROLES}
    start_injectors(staging)
    argv: list[str | Path] = [program("brownout"), "run", experiment, "--data-dir", data, "--report-dir", report_dir]
    argv += ["--report", "html,md,json", "--listen", LISTEN, "--wait-hosts", str(len(ROLES))]
    for name, value in variables.items():
        argv += ["--var", f"{name}={value}"]
    command = staging.command(CONTROLLER, [str(word) for word in argv], unprivileged=True)
    with foreground(command, staging.environment) as run:
        start_agents(staging, joins, run)
    return run.returncode


def start_injectors(staging: Staging) -> None:
    """An injector on each host, with a policy that allows every fault for two minutes; ready when this returns."""
    for host in ROLES:
        policy = staging.path(host, "policy.yaml")
        policy.write_text(_POLICY)
        argv: list[str | Path] = [program("brownout-injector"), "serve", "--socket", _socket(staging, host)]
        argv += ["--state-dir", staging.path(host, "injector"), "--policy", policy]
        staging.popen(host, argv)
    staging.await_ready("the injectors", lambda: all(_socket(staging, host).is_socket() for host in ROLES))


def start_agents(staging: Staging, joins: dict[str, list[str | Path]], run: "Popen[bytes]") -> None:
    """Let every host join the controller, then keep its agent running. Gives up in silence when the run has ended.

    Raises:
        StagingError: a host could not join within 30 s.
    """
    joining = [staging.popen(host, argv, log="join", unprivileged=True) for host, argv in joins.items()]

    def joined() -> bool:
        return run.poll() is not None or all(join.poll() == 0 for join in joining)

    staging.await_ready("the agents", joined, JOINED_WITHIN_S)
    if run.poll() is not None:
        return
    for host in joins:
        argv: list[str | Path] = [program("brownout-agent"), "run", "--state-dir", staging.path(host, "agent")]
        argv += ["--injector-socket", _socket(staging, host)]
        staging.popen(host, argv, unprivileged=True)


def _join(staging: Staging, host: str, data: Path) -> list[str | Path]:
    """The argv by which a host joins, with a token of its own that is good once."""
    create = [str(program("brownout")), "token", "create", "--data-dir", str(data), "-o", "json"]
    # In the network like everything else: an interrupt may leave even this one to the removal.
    token = json.loads(network.run(staging.command(CONTROLLER, create, unprivileged=True), staging.environment))
    return [
        *(program("brownout-agent"), "join", "--controller", LISTEN, "--state-dir", staging.path(host, "agent")),
        *("--token", token["token"], "--ca-pin", token["ca_pin"]),
        *("--name", host, "--label", f"role={ROLES[host]}"),
    ]


def _socket(staging: Staging, host: str) -> Path:
    return staging.path(host, "injector.sock")
