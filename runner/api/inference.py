"""Resolve, lease, stream, release: the one path of every generation, whatever dialect asked.

    name --store--> model --scheduler--> lease --worker--> stream --> events ... Finished | Failed

A generation is opened until the worker has accepted it (rendered, tokenised, fits), then read to its end.
What was taken is given back exactly once, however it ends: finished, failed, cancelled, crashed, client gone.
A worker that dies before anything of its answer was passed on costs one more try on a fresh one (L01); there
is no third (O09), and a request that has ended two workers is refused (L05, `runner/api/trials.py`).

Imports actor handles and the domain. Read on in `runner/api/generation_source.py` for streamed answers, in
`actors/scheduler.py` and `actors/stream.py` for what is leased and read.
"""

from __future__ import annotations

import hashlib
import logging
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

import attrs
import trio

from runner.api.collecting import Completed, Embeddings, collect, collect_vectors, error_of
from runner.api.joined import EventReader, JoinedStreams, naming_prompt
from runner.api.trials import Trial, Trials
from runner.domain.events import (
    Accepted,
    Examined,
    Failed,
    Finished,
    GenerationEvent,
)
from runner.domain.generation import (
    ENCODER_REFUSAL,
    EmbeddingPrompt,
    GenerationRequest,
    Prompt,
)
from runner.domain.model import Model
from runner.domain.sampling import SamplingParams
from runner.domain.settings import NOTHING, ModelSettings, SettingOrigin, SettingsLayer, resolve
from runner.errors import (
    Draining,
    EngineFailed,
    FieldFault,
    InvalidParameter,
    RunnerError,
    Unavailable,
    WorkerCrashed,
)
from runner.oci.reference import ModelName

if TYPE_CHECKING:
    from actors.scheduler import SchedulerHandle
    from actors.scheduler_messages import ModelLease
    from actors.store_handle import StoreHandle
    from actors.stream import GenerationStream

RUNS_MAX: Final = 2

log = logging.getLogger(__name__)


@attrs.frozen(kw_only=True)
class Demand:
    """What a dialect wants generated. `keep_alive_s` None leaves what holds for the model, `inf` is never.

    `more_prompts` are to be answered beside that of the request, in the same way and under the same lease.
    `said` is what the client itself said of what can be configured. The sampling of the request follows from
    it and, where it is silent, from what was configured for the model. `label` is what the client calls the
    request, for people who ask why.
    """

    name: ModelName
    request: GenerationRequest
    more_prompts: tuple[Prompt, ...] = ()
    said: ModelSettings = NOTHING
    keep_alive_s: float | None = None
    label: str | None = None


class Generation:
    """One accepted generation. Close it, whatever happened; a `with` block does."""

    def __init__(
        self,
        stream: EventReader,
        first: list[GenerationEvent],
        fingerprint: str,
        trial: Trial,
        taken: ExitStack,
    ) -> None:
        """`first` are events that came with the acceptance; `taken` gives back stream, lease and trial."""
        self.fingerprint = fingerprint
        self._trial = trial
        self._stream = stream
        self._first = first
        self._taken = taken

    async def receive(self) -> list[GenerationEvent]:
        """Everything that is ready, at least one event; [] after the end. Raises like `GenerationStream`."""
        if self._first:
            events, self._first = self._first, []
        else:
            events = await _received(self._stream, self._trial)
        if events and type(events[-1]) in (Finished, Failed):
            self._trial.ended_well()
        return events

    def close(self) -> None:
        """Cancel what still runs and give the lease back. Sync, idempotent."""
        self._taken.close()

    def __enter__(self) -> Generation:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Generation of {self._stream!r}>"


class Inference:
    """Makes generations out of demands."""

    def __init__(self, store: StoreHandle, scheduler: SchedulerHandle) -> None:
        self._store = store
        self._scheduler = scheduler
        self._trials = Trials()

    async def complete(self, demand: Demand) -> Completed:
        """Generate to the end. A crash at any point may cost a second run, since nothing has been passed on.

        Raises what `begin` raises, and the error that a failed generation reports.
        """
        runs = _Runs(demand)
        while True:
            with await self._begin(demand, runs) as generation:
                try:
                    n_prompts = 1 + len(demand.more_prompts)
                    return await collect(generation, n=demand.request.n, n_prompts=n_prompts)
                except WorkerCrashed as error:
                    runs.next_or_raise(error)

    async def begin(self, demand: Demand) -> Generation:
        """Wait until a worker has accepted the request; the caller reads and closes the generation.

        Loads the model when it must, which may take minutes. Raises ModelNotFound, AmbiguousModel, the errors
        of `SchedulerHandle.acquire`, what the worker refused with, WorkerCrashed, RequestQuarantined.
        """
        return await self._begin(demand, _Runs(demand))

    def begin_soon(self, demand: Demand, nursery: trio.Nursery) -> Opening:
        """Begin in a task of its own, so that the answer's head can leave before it is done."""
        opening = Opening()
        nursery.start_soon(opening.run, self, demand)
        return opening

    async def embed(self, demand: Demand) -> Embeddings:
        """The vectors of all inputs of an `EmbeddingPrompt`. Raises what `complete` raises."""
        prompt = demand.request.prompt
        assert isinstance(prompt, EmbeddingPrompt)
        runs = _Runs(demand)
        while True:
            with await self._begin(demand, runs) as generation:
                try:
                    return await collect_vectors(generation, len(prompt.inputs))
                except WorkerCrashed as error:
                    runs.next_or_raise(error)

    async def examine(self, demand: Demand) -> Examined:
        """What a worker tells of a prompt; the request says what. Raises what `begin` raises."""
        runs = _Runs(demand)
        model = await self._model(demand, runs)
        while True:
            with ExitStack() as taken:
                lease, trial = await self._leased(model, demand, runs, taken)
                try:
                    return await _examined(lease, trial, taken)
                except (WorkerCrashed, Unavailable) as error:
                    runs.next_or_raise(error)

    async def _begin(self, demand: Demand, runs: _Runs) -> Generation:
        model = await self._model(demand, runs)
        if model.is_encoder and not isinstance(demand.request.prompt, EmbeddingPrompt):
            raise InvalidParameter(FieldFault("model", ENCODER_REFUSAL))
        while True:
            with ExitStack() as taken:
                lease, trial = await self._leased(model, demand, runs, taken)
                try:
                    return await _accepted(lease, trial, model, taken)
                except (
                    WorkerCrashed,
                    Unavailable,
                ) as error:  # the second: it ended between lease and request
                    runs.next_or_raise(error)

    async def _model(self, demand: Demand, runs: _Runs) -> Model:
        model = await self._store.resolve(demand.name)
        runs.sampling = sampling_for(model, demand.said, demand.request.sampling)
        return model

    async def _leased(
        self, model: Model, demand: Demand, runs: _Runs, taken: ExitStack
    ) -> tuple[ModelLease, Trial]:
        settings = model.settings
        trial = await self._trials.enter(model, *runs.requests)
        taken.callback(trial.close)
        lease = await self._scheduler.acquire(
            model,
            keep_alive_s=settings.keep_alive_s if demand.keep_alive_s is None else demand.keep_alive_s,
            pin=settings.pin,
            request_id=demand.request.request_id,
            label=demand.label,
            has_annex=isinstance(demand.request.prompt, EmbeddingPrompt) and not model.is_encoder,
        )
        taken.callback(lease.release)
        return lease, trial


class _Runs:
    """Counts the runs that one demand may cost."""

    def __init__(self, demand: Demand) -> None:
        self._demand = demand
        self._run_index = 0
        self.sampling = demand.request.sampling  # until the model is known

    @property
    def requests(self) -> tuple[GenerationRequest, ...]:
        """Those of this run, one for each prompt; ids stay unique although a worker may still report on the
        run before."""
        request = attrs.evolve(self._demand.request, sampling=self.sampling)
        if self._run_index:
            request = attrs.evolve(request, request_id=f"{request.request_id}.{self._run_index + 1}")
        others = (
            attrs.evolve(request, request_id=f"{request.request_id}.p{index}", prompt=prompt)
            for index, prompt in enumerate(self._demand.more_prompts, 1)
        )
        return request, *others

    def next_or_raise(self, error: RunnerError) -> None:
        self._run_index += 1
        if self._run_index >= RUNS_MAX:
            raise error
        log.warning("request %s is tried once more: %s", self._demand.request.request_id, error)


class Opening:
    """A generation that is being opened, by a task that outlives the route that started it."""

    def __init__(self) -> None:
        self._scope = trio.CancelScope()
        self._done = trio.Event()
        self._generation: Generation | None = None
        self._error: Exception | None = None
        self._is_closed = False

    async def run(self, inference: Inference, demand: Demand) -> None:
        """The task. Whatever goes wrong is told to who waits, never to the nursery."""
        try:
            with self._scope:
                self._generation = await inference.begin(demand)
        except Exception as error:
            self._error = error
        finally:
            self._done.set()
            if self._is_closed and self._generation is not None:
                self._generation.close()

    async def wait(self) -> Generation:
        """The accepted generation, or the error of `Inference.begin`. May be cancelled and called again."""
        await self._done.wait()
        if self._error is not None:
            raise self._error
        if self._generation is None:
            raise Draining  # only the end of the daemon cancels the task before it is closed
        return self._generation

    def close(self) -> None:
        """Stop opening, or close what was opened. Sync, idempotent."""
        self._is_closed = True
        self._scope.cancel()
        if self._generation is not None:
            self._generation.close()


async def _accepted(lease: ModelLease, trial: Trial, model: Model, taken: ExitStack) -> Generation:
    """Hand the requests to the leased worker and wait for its verdicts; acceptance keeps what is `taken`."""
    streams = []
    for request in trial.requests:
        streams.append(lease.worker.open_stream(request))
        taken.callback(streams[-1].close)
    trial.began(lease.worker)
    first = [await _verdict(stream, trial, index) for index, stream in enumerate(streams)]
    fingerprint = fingerprint_of(model, lease.loaded.engine_version)
    if len(streams) == 1:
        return Generation(streams[0], first[0], fingerprint, trial, taken.pop_all())
    joined = JoinedStreams(streams, first, trial.requests[0].n)
    return Generation(joined, [], fingerprint, trial, taken.pop_all())


async def _verdict(stream: GenerationStream, trial: Trial, index: int) -> list[GenerationEvent]:
    """Events that came with the acceptance. Raises what the worker refused the request with."""
    match await _received(stream, trial):
        case [Accepted(), *events]:
            return events
        case [Failed() as failed, *_]:
            trial.ended_well()
            error = error_of(failed)
            raise error if len(trial.requests) == 1 else naming_prompt(error, index)
    raise EngineFailed("the worker did not say whether it accepts the request")


async def _examined(lease: ModelLease, trial: Trial, taken: ExitStack) -> Examined:
    (request,) = trial.requests
    stream = lease.worker.open_stream(request)
    taken.callback(stream.close)
    trial.began(lease.worker)
    match await _received(stream, trial):
        case [Examined() as examined]:
            trial.ended_well()
            return examined
        case [Failed() as failed]:
            trial.ended_well()
            raise error_of(failed)
    raise EngineFailed("the worker did not tell what it was asked")


async def _received(stream: EventReader, trial: Trial) -> list[GenerationEvent]:
    try:
        return await stream.receive()
    except WorkerCrashed:
        trial.ended_in_a_death()
        raise


def sampling_for(model: Model, said: ModelSettings, asked: SamplingParams) -> SamplingParams:
    """What the client said, else what was configured for the model, else the usual; what cannot be
    configured is as it was `asked`."""
    return resolve(SettingsLayer(SettingOrigin.REQUEST, said), *model.layers()).values.sampling(asked)


def fingerprint_of(model: Model, engine_version: str) -> str:
    """Equal for two answers that the same engine made from the same model."""
    digest = hashlib.blake2b(f"{model.id} {engine_version}".encode(), digest_size=5)
    return f"fp_{digest.hexdigest()}"
