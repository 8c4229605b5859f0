"""Joining a fleet: token and pin against an identity. Retries until the controller is there."""

import asyncio
import logging
from dataclasses import replace
from pathlib import Path

import grpc
from brownout_protos.v1 import fleet_pb2, fleet_pb2_grpc

from brownout_agent.agent.identity import Identity, JoinError, Membership, forget_epoch, new_key, request_for, save
from brownout_agent.agent.stream import CHANNEL_OPTIONS
from brownout_agent.agent.trust import NotTrusted, check_certificate, check_succession, controllers_of, fetch_authority
from brownout_agent.host_log import HostLog

RETRY_EVERY_S = 0.5
_ENROL_TIMEOUT_S = 10.0

log = logging.getLogger(__name__)


async def join(folder: Path, membership: Membership, token: str, pin: str, wait_s: float) -> Identity:
    """Enrol and keep the identity in `folder`, trying for `wait_s` seconds while nobody answers.

    Raises:
        JoinError: refused, or nobody answered in time.
    """
    host, _, _ = membership.controller.rpartition(":")
    deadline = asyncio.get_running_loop().time() + wait_s
    while True:
        try:
            authority = await asyncio.to_thread(fetch_authority, host.strip("[]"), membership.enrol_port, pin)
            return await _enrol(folder, membership, token, authority)
        except NotTrusted as error:
            where = f"{host}:{membership.enrol_port}"
            HostLog(folder).keep_if_new("unknown", "controller.enrol", where, "refused", str(error))
            raise JoinError(str(error)) from error
        except OSError as error:
            if asyncio.get_running_loop().time() > deadline:
                where = f"{host}:{membership.enrol_port}"
                raise JoinError(f"no controller answered on {where} within {wait_s:g} s: {error}") from error
        await asyncio.sleep(RETRY_EVERY_S)


async def _enrol(folder: Path, membership: Membership, token: str, authority: bytes) -> Identity:
    host, _, _ = membership.controller.rpartition(":")
    key_pem = new_key()
    credentials = grpc.ssl_channel_credentials(controllers_of(authority))
    target = f"{host}:{membership.enrol_port}"
    async with grpc.aio.secure_channel(target, credentials, options=CHANNEL_OPTIONS) as channel:
        stub: fleet_pb2_grpc.FleetAsyncStub = fleet_pb2_grpc.FleetStub(channel)
        request = fleet_pb2.EnrolRequest(token=token, certificate_request_pem=request_for(key_pem))
        try:
            answer = await stub.Enrol(request, timeout=_ENROL_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            if error.code() in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}:
                raise ConnectionError(error.details()) from error
            raise JoinError(f"{target} refused: {error.details()}") from error
    check_succession(authority, answer.authority_pem)
    check_certificate(answer.certificate_pem, key_pem, answer.agent_id)
    joined = replace(membership, agent_id=answer.agent_id)
    identity = Identity(joined, key_pem, answer.certificate_pem, answer.authority_pem)
    save(folder, identity)
    forget_epoch(folder)  # another agent: what was told to the last one counts no more
    log.info("joined as %s (%s)", membership.name, answer.agent_id)
    return identity
