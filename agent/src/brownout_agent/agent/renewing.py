"""The next certificate, fetched over a connection that the present one opened."""

from pathlib import Path
from typing import TYPE_CHECKING

from brownout_protos.v1 import fleet_pb2

from brownout_agent.agent.identity import Identity, next_key, request_for, save
from brownout_agent.agent.trust import check_certificate, check_succession

if TYPE_CHECKING:
    from brownout_protos.v1 import fleet_pb2_grpc

_TIMEOUT_S = 10.0
_RETRY_MAX_S = 60.0


async def renew(stub: "fleet_pb2_grpc.FleetAsyncStub", folder: Path, identity: Identity) -> Identity:
    """Swap the present certificate for one of a fresh key, and keep that in `folder`.

    Raises:
        grpc.aio.AioRpcError: no answer, or refused. With no answer, the same key is shown next time.
        NotTrusted: the answer is of no use here, and nothing of it is kept.
    """
    key_pem = next_key(folder, identity)
    request = fleet_pb2.RenewRequest(certificate_request_pem=request_for(key_pem))
    answer = await stub.Renew(request, timeout=_TIMEOUT_S)
    check_succession(identity.authority_pem, answer.authority_pem)
    check_certificate(answer.certificate_pem, key_pem, identity.membership.agent_id)
    renewed = Identity(identity.membership, key_pem, answer.certificate_pem, answer.authority_pem)
    save(folder, renewed)
    return renewed


def retry_in_s(identity: Identity) -> float:
    """How long to wait after a failed renewal: often enough that a short life has several tries left."""
    return min(_RETRY_MAX_S, max(0.2, identity.lives_s / 10))
