"""Repairing: what is damaged of a model is found by reading all of it, and fetched again from where it came.

Only the bad pieces of a file are asked for, as far as it is known which those are. Imports pulling; what is
damaged is judged by the store.
"""

from __future__ import annotations

import attrs

from actors.transfers_fetching import Course, Fetching, Part
from actors.transfers_hub import HubTools, hub_parts
from actors.transfers_pull import PullTools, RegistrySource
from runner.domain.model import Model
from runner.domain.transfer import PullRequest, RemoteCredentials, TransferPhase, TransferResult
from runner.errors import FieldFault, InvalidParameter, RegistryError
from runner.oci.layers import kind_of_layer
from runner.oci.manifest import Descriptor, Manifest
from runner.oci.reference import ModelName, Reference
from runner.registry.huggingface import is_hub, origin_of
from runner.store.documents import ModelDocuments


@attrs.frozen(kw_only=True)
class RepairRequest:
    """Make a model whole again. `given` credentials are for this request only."""

    name: ModelName
    given: RemoteCredentials | None = None


async def repair(
    request: RepairRequest, course: Course, registries: PullTools, hubs: HubTools
) -> tuple[Model, TransferResult]:
    """Read all of a model, and fetch what is damaged from the places that its names tell, one after another.

    Raises ModelNotFound; StoreDamaged when the manifest itself is lost, which only another pull brings back;
    InvalidParameter when the model has no name that tells where it is; else what the last place raises.
    """
    store = registries.store
    found = await store.documents(request.name)
    course.board.model_id = str(found.model_id)
    manifest = found.manifest
    with store.holding((found.model_id, *(descriptor.digest for descriptor in manifest.descriptors()))):
        course.enter(TransferPhase.VERIFYING)
        report = await store.verify((request.name,))
        wrong = {finding.digest for finding in report.findings}
        damaged = tuple(each for each in manifest.descriptors() if str(each.digest) in wrong)
        fetched_bytes = 0
        if damaged:
            fetched_bytes = await _fetch(damaged, found, request, course, registries, hubs)
    model = await store.resolve(ModelName.of(found.model_id))  # it may not have been usable before
    return model, TransferResult(
        model_id=model.id,
        reference=model.name,
        size_bytes=model.size_bytes,
        transferred_bytes=fetched_bytes,
        was_cached=not damaged,
    )


async def _fetch(
    damaged: tuple[Descriptor, ...],
    found: ModelDocuments,
    request: RepairRequest,
    course: Course,
    registries: PullTools,
    hubs: HubTools,
) -> int:
    """How many bytes came."""
    if not found.places:
        raise InvalidParameter(FieldFault("model", "has no name that tells where it came from"))
    error: RegistryError | None = None
    async with registries.turns.turn(found.model_id, course):
        for place in found.places:
            try:
                fetching = await _fetching(damaged, found.manifest, place, request, course, registries, hubs)
                course.enter(TransferPhase.TRANSFERRING)
                await fetching.run()
            except RegistryError as failed:
                course.board.note(str(failed))
                error = failed
            else:
                return fetching.transferred_bytes
    assert error is not None
    raise error


async def _fetching(
    damaged: tuple[Descriptor, ...],
    manifest: Manifest,
    place: Reference,
    request: RepairRequest,
    course: Course,
    registries: PullTools,
    hubs: HubTools,
) -> Fetching:
    """Raises RegistryError when the place does not have, or no longer has, what is needed."""
    if is_hub(place):
        typed, commit = origin_of(place, manifest.annotations)
        asked = PullRequest(reference=place, given=request.given, source_text=typed)
        parts = await hub_parts(damaged, asked, commit, course, hubs)
    else:
        source = RegistrySource(client=registries.client, reference=place, given=request.given)
        parts = [
            Part(descriptor=each, kind=kind_of_layer(each).value, title=each.file_path(), source=source)
            for each in damaged
        ]
    course.layers.clear()
    return Fetching(parts, registries.blobs, course, is_repair=True)
