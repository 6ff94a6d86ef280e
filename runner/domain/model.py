"""A model we have. Values only."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import attrs

from runner.domain.settings import NOTHING, ModelSettings, SettingOrigin, SettingsLayer
from runner.oci.digest import Digest
from runner.oci.reference import Reference

ENCODERS: Final = frozenset(
    {
        "bert",
        "eurobert",
        "gemma-embedding",
        "jina-bert-v2",
        "jina-bert-v3",
        "modern-bert",
        "neo-bert",
        "nomic-bert",
        "nomic-bert-moe",
    }
)
"""Architectures whose tokens attend in both directions, whatever else a file says (`create_memory` of
llama-model.cpp). They make embeddings and do not generate text."""

RECURRENT: Final = frozenset(
    {
        "arwkv7",
        "bailingmoe3",
        "deepseek4",
        "falcon-h1",
        "glm5-next",
        "granitehybrid",
        "jamba",
        "kimi-k3",
        "kimi-linear",
        "lfm2",
        "lfm2moe",
        "mamba",
        "mamba2",
        "minimax-01",
        "nemotron_h",
        "nemotron_h_moe",
        "plamo2",
        "qwen35",
        "qwen35moe",
        "qwen3next",
        "qwen4exp",
        "rwkv6",
        "rwkv6qwen2",
        "rwkv7",
    }
)
"""Architectures of which some layers or all sum up the past of a sequence in a state (`llm_arch_is_recurrent`
and `llm_arch_is_hybrid` of llama-arch.cpp)."""


@attrs.frozen(kw_only=True)
class Model:
    """One manifest of the store with what lists and schedulers need of it.

    `id` is the digest of the manifest bytes. `tags` are full references, sorted; empty when untagged.
    `size_bytes` sums config and layers. `context_size` is what its packager chose, `trained_context_size` the
    header's. `created_s` is Unix time, 0 when unknown. `has_chat_template`: the package carries one, beside
    what the weights hold. `settings` are what somebody configured for it.
    """

    id: Digest
    tags: tuple[Reference, ...]
    created_s: int
    size_bytes: int
    format: str
    architecture: str
    quantization: str
    parameters: str
    context_size: int | None = None
    trained_context_size: int | None = None
    has_chat_template: bool = False
    settings: ModelSettings = NOTHING

    def layers(self) -> tuple[SettingsLayer, ...]:
        """What is said of this model, rather than of all: by whoever configured it, and by its packager."""
        packaged = ModelSettings(context_size=self.context_size)
        return (
            SettingsLayer(SettingOrigin.CONFIGURED, self.settings),
            SettingsLayer(SettingOrigin.PACKAGED, packaged),
        )

    @property
    def is_encoder(self) -> bool:
        """As far as its architecture tells; the engine knows more once it has loaded it."""
        return self.architecture in ENCODERS

    @property
    def keeps_prefixes(self) -> bool:
        """Whether prompts can go on from what others began with, as far as its architecture tells."""
        return self.architecture not in ENCODERS | RECURRENT

    @property
    def name(self) -> str:
        """The first tag in familiar form (`ai/smollm2:135M-Q4_1`), else the short id."""
        return self.tags[0].familiar() if self.tags else self.id.short()


@attrs.frozen(kw_only=True)
class ModelFiles:
    """What a worker loads, valid while the store lease that returned it is held.

    `weights` are blob paths, several in their order when the model was split, and `weights_digests` the
    digests of their content. Sizes in bytes. `kv_bytes_per_cell` comes from the header and covers all layers,
    keys and values at f16. `projector` turns images or sound into what the weights take; None without one.
    """

    model: Model
    weights: tuple[Path, ...]
    weights_bytes: int
    kv_bytes_per_cell: int
    chat_template: str | None = None
    weights_digests: tuple[Digest, ...] = ()
    projector: Path | None = None
