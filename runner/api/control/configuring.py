"""`configure`: settings of one model, kept by the store, and made to hold for a model that is loaded.

What a model is loaded with holds from its next load on; sampling, `keep_alive` and `pin` hold at once. A
model in use is never interrupted. Imports actor handles for their types.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs
import trio

from runner.api.control import convert
from runner.api.control.schema import ConfigureRequest
from runner.domain.model import Model
from runner.domain.settings import NOTHING, resolve
from runner.domain.status import ModelConfiguration
from runner.scheduling.lifecycle import InstanceState

if TYPE_CHECKING:
    from runner.api.context import AppContext
    from runner.oci.reference import ModelName

_RENEW_S: Final = 5.0  # renewing the time of a loaded model takes no time; one that ended meanwhile is let be


async def shown(context: AppContext, name: ModelName) -> ModelConfiguration:
    """What holds for the model, and who says so."""
    return convert.model_configuration(await context.store.resolve(name), context.setting_layers)


async def configured(context: AppContext, asked: ConfigureRequest) -> ModelConfiguration:
    """Change what is asked and nothing else.

    1. The store keeps it.
    2. What a model is loaded with has changed: an idle one is unloaded, so that its next use loads it anew.
    3. Only how long it stays, or that it stays, has changed: that holds for a loaded one from now on.
    """
    before = await context.store.resolve(asked.model)
    after = await context.store.configure(asked.model, asked.set or NOTHING, unset=asked.unset or ())  # 1
    answer = convert.model_configuration(after, context.setting_layers)
    if after.settings.load_options() != before.settings.load_options():  # 2
        report = await context.scheduler.unload((after.id,))
        return attrs.evolve(answer, was_unloaded=bool(report.unloaded), is_outdated=bool(report.in_use))
    if _stay(after) != _stay(before):  # 3
        await _renew(context, after)
    return answer


async def _renew(context: AppContext, model: Model) -> None:
    rows = context.scheduler.snapshot().workers
    if any(row.model_id == str(model.id) and row.state == InstanceState.READY.value for row in rows):
        holding = resolve(*model.layers(), *context.setting_layers).values
        with trio.move_on_after(_RENEW_S):
            await context.scheduler.start(model, keep_alive_s=holding.keep_alive_s, pin=holding.pin)


def _stay(model: Model) -> tuple[float | None, bool | None]:
    return model.settings.keep_alive_s, model.settings.pin
