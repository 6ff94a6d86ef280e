"""Media types and annotation names of the artifacts we write and read. Constants only.

Docker model-spec v0.1 as Docker Model Runner writes it: where the published text differs from the code, the
code is what registries hold.
"""

from __future__ import annotations

IMAGE_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
IMAGE_INDEX = "application/vnd.oci.image.index.v1+json"

DOCKER_CONFIG_V01 = "application/vnd.docker.ai.model.config.v0.1+json"
DOCKER_CONFIG_V02 = "application/vnd.docker.ai.model.config.v0.2+json"
READABLE_CONFIGS = frozenset({DOCKER_CONFIG_V01, DOCKER_CONFIG_V02})

GGUF = "application/vnd.docker.ai.gguf.v3"
CHAT_TEMPLATE = "application/vnd.docker.ai.chat.template.jinja"
LICENSE = "application/vnd.docker.ai.license"

ANNOTATION_REFERENCE = "org.opencontainers.image.ref.name"
ANNOTATION_FILE_PATH = "org.cncf.model.filepath"
ANNOTATION_TYPE_UNTESTED = "org.cncf.model.file.mediatype.untested"
