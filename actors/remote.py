"""Looking at models where they are: what a registry or hub says of one, without fetching it.

Not an actor, since nobody owns anything here: requests run in threads of their own, and end when whoever
asked leaves. Imports runner.registry and runner.store; transfers are `actors/puller.py`.
"""

from __future__ import annotations

from functools import partial

import attrs
import trio

from actors.transfers_threads import RemoteThreads
from runner.domain.status import LayerSummary, ModelReport, ModelSummary
from runner.domain.transfer import PullRequest
from runner.oci.digest import Digest
from runner.oci.manifest import Descriptor
from runner.oci.model_config import CONFIG_BYTES_MAX, ModelConfig
from runner.registry.abort import Abort
from runner.registry.client import RegistryClient, RemoteManifest
from runner.registry.huggingface import Hub, HubSelection, is_hub
from runner.store.catalog import StoredModel
from runner.store.describe import layer_summary, summary_of

THREADS = 4


class RemoteModels:
    """Answers `inspect --remote`. May be used by any number of tasks."""

    def __init__(self, registries: RegistryClient, hub: Hub) -> None:
        self._registries = registries
        self._hub = hub
        self._threads = RemoteThreads(limiter=trio.CapacityLimiter(THREADS))

    async def inspect(self, asked: PullRequest) -> ModelReport:
        """What is there under this name now, without tags and licence texts.

        A model of a hub has no digest until it is fetched; its layers are files. Raises what a pull raises
        before its first layer.
        """
        look = self._look_at_hub if is_hub(asked.reference) else self._look_at_registry
        return await self._threads.ask(partial(look, asked), lambda why: None)

    def _look_at_registry(self, asked: PullRequest, abort: Abort) -> ModelReport:
        remote = self._registries.resolve(asked.reference, given=asked.given, abort=abort)
        config = self._registries.read_small(
            asked.reference, remote.manifest.config, CONFIG_BYTES_MAX, given=asked.given, abort=abort
        )
        return _report_of_manifest(asked, remote, ModelConfig.parse(config))

    def _look_at_hub(self, asked: PullRequest, abort: Abort) -> ModelReport:
        found = self._hub.resolve(
            asked.reference, source_text=asked.source_text, given=asked.given, abort=abort
        )
        return _report_of_files(asked, found)


def _report_of_manifest(asked: PullRequest, remote: RemoteManifest, config: ModelConfig) -> ModelReport:
    descriptor = Descriptor(
        media_type=remote.media_type, digest=remote.digest, size_bytes=len(remote.content)
    )
    stored = StoredModel.of(descriptor, remote.manifest, config)
    return ModelReport(
        model=_named(summary_of(stored.model), asked),
        manifest_digest=str(remote.digest),
        config_digest=str(remote.manifest.config.digest),
        layers=tuple(layer_summary(layer) for layer in remote.manifest.layers),
        licenses=(),
        metadata=dict(config.metadata),
        described_size=config.size,
        described_context_size=config.context_size,
        labels=dict(remote.manifest.annotations),
    )


def _report_of_files(asked: PullRequest, found: HubSelection) -> ModelReport:
    summary = ModelSummary(
        id="",
        name=asked.reference.familiar(),
        tags=(),
        created_s=found.created_s,
        size_bytes=found.size_bytes,
        format="gguf",
        architecture="",
        quantization=found.quantization or "",
        parameters="",
        context_size=None,
        trained_context_size=None,
    )
    return ModelReport(
        model=summary,
        manifest_digest="",
        config_digest="",
        layers=tuple(
            LayerSummary(
                media_type=file.kind,
                digest=_text(file.sha256),
                size_bytes=file.size_bytes,
                filename=file.path,
            )
            for file in found.files
        ),
        licenses=(),
        metadata={"revision": found.revision, "repository": found.repository},
    )


def _named(summary: ModelSummary, asked: PullRequest) -> ModelSummary:
    return attrs.evolve(summary, name=asked.reference.familiar())


def _text(digest: Digest | None) -> str:
    return "" if digest is None else str(digest)
