"""Which options a load is given, and what they take: the policy, without anything measured.

Owns what the scheduler asks of whoever sizes loads, and the answer that needs nothing but the model's header.
Imports `runner.memory` and values. Read on in `actors/footprints.py`, which measures.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Final, Protocol

import attrs
import trio

from runner.domain.device_bytes import HOST_MEMORY, DeviceBytes
from runner.domain.engine import CacheType, EngineOptions, FlashAttention
from runner.domain.model import ModelFiles
from runner.domain.settings import resolve
from runner.memory.fit import (
    DEFAULT_CONTEXT_SIZE,
    CacheLimit,
    PoolCost,
    choose_context,
    wished_context,
)
from runner.memory.footprint import Footprint, cell_bytes, estimate, round_up_cells
from runner.telemetry.measurements import MeasurementKey
from runner.wire.messages import Loaded

_CACHE_SHARE: Final = (95, 100)
"""Host caches shrink to this part of the budget, so that the next measurement, a little lower, still holds
the load that waits for room."""


@attrs.frozen(kw_only=True)
class EngineSettings:
    """What every load is given. `context_size` is for models that say nothing themselves, in tokens."""

    name: str = "llama"
    context_size: int = DEFAULT_CONTEXT_SIZE
    max_sequences: int = 8
    n_threads: int = 1
    key_type: CacheType = attrs.field(default=CacheType.F16, converter=CacheType)
    value_type: CacheType = attrs.field(default=CacheType.F16, converter=CacheType)
    flash_attention: FlashAttention = attrs.field(default=FlashAttention.AUTO, converter=FlashAttention)


@attrs.frozen(kw_only=True)
class Sized:
    """What a load is to be given, and what it takes, which may exceed the budget. `key` None: unknown to the
    measurements."""

    options: EngineOptions
    footprint: Footprint
    key: MeasurementKey | None = None


class LoadedWorker(Protocol):
    """What there is to see of a worker that is ready."""

    @property
    def model(self) -> str: ...

    @property
    def pid(self) -> int: ...

    @property
    def loaded(self) -> Loaded: ...

    @property
    def has_annex(self) -> bool: ...


Watch = Callable[[LoadedWorker], None]
"""Told of a worker that is ready: what it really takes is compared with what was expected."""


class Sizer(Protocol):
    """What loads need of this module."""

    async def size(self, files: ModelFiles, engine: EngineSettings, budget: DeviceBytes) -> Sized: ...

    def watch(self, sized: Sized) -> AbstractContextManager[Watch]:
        """Around the life of the worker: tell it when the worker is ready."""


class HeaderSizer:
    """Sizes by the header alone. For engines that cannot be probed, and where nothing may be started."""

    async def size(self, files: ModelFiles, engine: EngineSettings, budget: DeviceBytes) -> Sized:
        await trio.lowlevel.checkpoint()
        return by_header(files, engine, budget)

    def watch(self, sized: Sized) -> AbstractContextManager[Watch]:
        return nullcontext(lambda handle: None)


def by_header(files: ModelFiles, engine: EngineSettings, budget: DeviceBytes) -> Sized:
    """Sizes that need nothing but the model's header."""
    wished = wished_options(files, engine)
    options = fit(files, engine, estimate_of(files, wished), wished, budget)
    return Sized(options=options, footprint=estimate_of(files, options))


def at_least(files: ModelFiles, context_size: int) -> ModelFiles:
    """These files as if such a context had been configured, which is then not cut for a budget."""
    settings = attrs.evolve(files.model.settings, context_size=context_size)
    return attrs.evolve(files, model=attrs.evolve(files.model, settings=settings))


def wished_options(files: ModelFiles, engine: EngineSettings) -> EngineOptions:
    """With room enough: what was said of this model, else what every load is given."""
    model, said = files.model, resolve(*files.model.layers()).values
    context_size = wished_context(model.trained_context_size, said.context_size, engine.context_size)
    n_cells = round_up_cells(context_size)
    return EngineOptions(
        context_size=context_size,
        n_cells=n_cells,
        host_cells=n_cells if model.keeps_prefixes else 0,
        max_sequences=said.max_sequences or engine.max_sequences,
        n_threads=said.threads or engine.n_threads,
        key_type=said.key_type or engine.key_type,
        value_type=said.value_type or engine.value_type,
        flash_attention=said.flash_attention or engine.flash_attention,
    )


def fit(
    files: ModelFiles,
    engine: EngineSettings,
    footprint: Footprint,
    wished: EngineOptions,
    budget: DeviceBytes,
) -> EngineOptions:
    """The host cache is bounded by host memory, too: the budget counts all devices together."""
    share, whole = _CACHE_SHARE
    cost, on_host = PoolCost.of(footprint, wished.n_cells), PoolCost.on_host(footprint, wished.n_cells)
    plan = choose_context(
        cost,
        budget_bytes=budget.total_bytes,
        trained_context_size=files.model.trained_context_size,
        packaged_context_size=resolve(*files.model.layers()).values.context_size,
        default_context_size=engine.context_size,
        has_host_cache=files.model.keeps_prefixes,
        cache_limits=(
            CacheLimit(cost, budget.total_bytes * share // whole),
            CacheLimit(on_host, budget[HOST_MEMORY] * share // whole),
        ),
    )
    return attrs.evolve(
        wished, context_size=plan.context_size, n_cells=plan.n_cells, host_cells=plan.host_cells
    )


def estimate_of(files: ModelFiles, options: EngineOptions) -> Footprint:
    bytes_per_cell = cell_bytes(files.kv_bytes_per_cell, options.key_type, options.value_type)
    return estimate(files.weights_bytes, bytes_per_cell, options.n_cells, options.host_cells)
