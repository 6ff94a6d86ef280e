"""`plan` and `why`: what the scheduler would do, and why it did what it did. Neither changes anything.

Imports actor handles for their types. Read on in `runner/domain/explained.py` for what is answered.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from runner.domain.explained import PlanReport, WhyReport
from runner.errors import FieldFault, InvalidParameter, ModelNotFound
from runner.oci.digest import Digest
from runner.oci.reference import ModelName

if TYPE_CHECKING:
    from runner.api.context import AppContext

REQUEST_ID_LENGTH_MAX = 128


async def planned(context: AppContext, name: ModelName, context_size: int | None) -> PlanReport:
    """What a request for this model would meet now."""
    return await context.scheduler.plan(await context.store.resolve(name), context_size=context_size)


async def why(context: AppContext, model: str | None, request_id: str | None) -> WhyReport:
    """About a model or about a request, of which just one is named.

    A model that is not in the store any more is known by its digest.
    """
    if (model is None) == (request_id is None):
        raise InvalidParameter(FieldFault("model", "name either a model or a request"))
    if request_id is not None:
        if len(request_id) > REQUEST_ID_LENGTH_MAX:
            fault = f"must have at most {REQUEST_ID_LENGTH_MAX} characters"
            raise InvalidParameter(FieldFault("request", fault))
        return await context.scheduler.why_request(request_id)
    model_id, known_as = await _model(context, ModelName.parse(model or ""))
    return await context.scheduler.why_model(model_id, known_as)


async def _model(context: AppContext, name: ModelName) -> tuple[Digest, str]:
    try:
        found = await context.store.resolve(name)
    except ModelNotFound:
        if name.digest is None:
            raise
        return name.digest, name.digest.short()
    return found.id, found.name
