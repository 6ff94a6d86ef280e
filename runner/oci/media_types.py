"""Media types and annotation names of the artifacts we write and read. Constants only.

Docker model-spec v0.1 and v0.2 as Docker Model Runner writes them: where the published text differs from the
code, the code is what registries hold. CNCF ModelPack as its specification has it, and as that code writes
it.
"""

from __future__ import annotations

IMAGE_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
IMAGE_INDEX = "application/vnd.oci.image.index.v1+json"

DOCKER_CONFIG_V01 = "application/vnd.docker.ai.model.config.v0.1+json"
DOCKER_CONFIG_V02 = "application/vnd.docker.ai.model.config.v0.2+json"
CNCF_CONFIG = "application/vnd.cncf.model.config.v1+json"
READABLE_CONFIGS = frozenset({DOCKER_CONFIG_V01, DOCKER_CONFIG_V02, CNCF_CONFIG})

CNCF_ARTIFACT = "application/vnd.cncf.model.manifest.v1+json"
"""The artifact type of a ModelPack manifest; Docker's have none."""

GGUF = "application/vnd.docker.ai.gguf.v3"
GGUF_ADAPTER = "application/vnd.docker.ai.gguf.v3.lora"  # in the published text only
GGUF_PROJECTOR = "application/vnd.docker.ai.gguf.v3.mmproj"  # in the published text only
SAFETENSORS = "application/vnd.docker.ai.safetensors"
DDUF = "application/vnd.docker.ai.dduf"
PROJECTOR = "application/vnd.docker.ai.mmproj"
CHAT_TEMPLATE = "application/vnd.docker.ai.chat.template.jinja"
LICENSE = "application/vnd.docker.ai.license"
MODEL_FILE = "application/vnd.docker.ai.model.file"
VLLM_CONFIG_TAR = "application/vnd.docker.ai.vllm.config.tar"
DIRECTORY_TAR = "application/vnd.docker.ai.dir.tar"

CNCF_WEIGHT = "application/vnd.cncf.model.weight.v1.raw"
CNCF_WEIGHT_GGUF = "application/vnd.cncf.model.weight.v1.gguf"  # no longer written by anybody
CNCF_WEIGHT_SAFETENSORS = "application/vnd.cncf.model.weight.v1.safetensors"  # likewise
CNCF_WEIGHT_CONFIG = "application/vnd.cncf.model.weight.config.v1.raw"
CNCF_DOCUMENT = "application/vnd.cncf.model.doc.v1.raw"
CNCF_LAYERS = "application/vnd.cncf.model."
CNCF_PACKED_SUFFIXES = (".tar", ".tar+gzip", ".tar+zstd")

ANNOTATION_REFERENCE = "org.opencontainers.image.ref.name"
ANNOTATION_FILE_PATH = "org.cncf.model.filepath"
ANNOTATION_FILE_METADATA = "org.cncf.model.file.metadata+json"
ANNOTATION_TYPE_UNTESTED = "org.cncf.model.file.mediatype.untested"
ANNOTATION_CONTEXT_SIZE = "runner.model.context-size"
ANNOTATION_ORIGIN = "runner.model.origin"
"""Ours, on a manifest: the context size was chosen by whoever packaged the model. Without it a size in the
config that equals the trained one says nothing, since other tools write that one for every model."""
