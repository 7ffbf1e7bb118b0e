"""What TorchServe's failures to predict mean: one table, from its words to the domain's.

Every row was captured from TorchServe 0.12.0. Its statuses alone say little: 503 is a full queue or a
handler's exception, 404 a missing model or a wrong port, 400 a refused key or a handler's opinion.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from domain.errors import (
    DispatchError,
    InputRejectedByModel,
    ModelNotFound,
    PayloadTooLarge,
    ServerBusy,
    ServerFault,
    VersionNotFound,
)
from infrastructure.torchserve import wire

if TYPE_CHECKING:
    from collections.abc import Mapping

    from domain.prediction import ModelRef
    from infrastructure.torchserve.exchange import Answer

Words: TypeAlias = tuple[int, str | None, str | None]
Meaning: TypeAlias = tuple[type[DispatchError], str]

HANDLER = "InternalServerException"  # the type of whatever went wrong behind the frontend
WORKER_DIED: Meaning = (ServerFault, "The model's worker died on this request.")
HANDLER_FAILED: Meaning = (ServerFault, "The model's handler failed on this request.")
NOT_SENDABLE: Meaning = (ServerFault, "The model's handler gave back what TorchServe cannot send.")
NOT_INFERENCE: Meaning = (ServerFault, "The address is not that of a TorchServe inference API.")

MEANINGS: Mapping[Words, Meaning] = {
    (404, "ModelNotFoundException", None): (ModelNotFound, "The model server has no model {name!r}."),
    (404, "ModelVersionNotFoundException", None): (
        VersionNotFound,
        "The model server has no version {version!r} of model {name!r}.",
    ),
    (404, "ResourceNotFoundException", None): NOT_INFERENCE,
    (405, "MethodNotAllowedException", None): NOT_INFERENCE,
    (413, "", None): (PayloadTooLarge, "The request is larger than the model server accepts."),
    (503, "ServiceUnavailableException", None): (
        ServerBusy,
        "The model server's queue is full, or no worker serves the model.",
    ),
    (503, HANDLER, None): HANDLER_FAILED,
    (503, HANDLER, "number of batch response mismatched"): NOT_SENDABLE,
    (503, HANDLER, "Invalid model predict output"): NOT_SENDABLE,
    (503, HANDLER, "Unsupported model output data type."): NOT_SENDABLE,
    (500, HANDLER, "Worker died."): WORKER_DIED,
    (507, HANDLER, "Worker died."): WORKER_DIED,  # of SIGKILL, as where memory ran out; or 500, as it happens
    (500, HANDLER, None): HANDLER_FAILED,
    (507, HANDLER, "Out of resources"): (ServerFault, "The model's handler ran out of memory."),
}


def failure(answer: Answer, model: ModelRef) -> DispatchError:
    """What an answer other than 200 to a prediction by `model` is to us.

    A 4xx in any words but those of TorchServe's frontend is the handler's own: InputRejectedByModel.
    """
    complaint = answer.complaint
    kind, message = (complaint.type, complaint.message) if complaint else (None, None)
    for said in (message, None):
        meaning = MEANINGS.get((answer.status, kind if answer.body else "", said))
        if meaning is not None:
            error, detail = meaning
            return error(detail.format(name=model.name, version=model.version))
    exaggerated = (answer.status, kind) == (507, HANDLER)  # TorchServe sends a handler's 413 as 507
    code = 413 if exaggerated else answer.status
    if 400 <= code <= 499 and kind in {None, HANDLER}:  # noqa: PLR2004
        detail = wire.said(answer.body) or "The model refused the input and does not say why."
        return InputRejectedByModel(detail, code=code)
    return ServerFault(f"The model server answered with status {answer.status}.")
