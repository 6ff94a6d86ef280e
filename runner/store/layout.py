"""Every path inside the store directory. Pure; the one place that turns a digest into a path (S01).

<root>/oci-layout           marks an OCI image layout
<root>/index.json           one descriptor per name, rewritten whole
<root>/index.copy.json      the same, written first: it gives the names back when index.json is damaged
<root>/index.damaged.json   what a damaged index.json held, kept for a look
<root>/blobs/sha256/<hex>   manifests, configs, layers; read-only, replaced but never rewritten
<root>/store.json           which version of this program's store it is
<root>/quarantine.json      models that crash the engine while they load
<root>/settings/<hex>.json  what was configured for one model; <hex>.damaged.json is one kept for a look
<root>/lock                 held by the one daemon that owns the directory
<root>/partial/             files that are being written
<root>/partial/<hex>.part   content that is being downloaded; <hex>.journal says how much of it counts
<root>/pieces/<hex>         checksums of the pieces of a large file that was verified
"""

from __future__ import annotations

from pathlib import Path

import attrs

from runner.oci.digest import ALGORITHM, Digest


@attrs.frozen
class StoreLayout:
    root: Path

    @property
    def image_layout(self) -> Path:
        return self.root / "oci-layout"

    @property
    def index(self) -> Path:
        return self.root / "index.json"

    @property
    def index_copy(self) -> Path:
        return self.root / "index.copy.json"

    @property
    def damaged_index(self) -> Path:
        return self.root / "index.damaged.json"

    @property
    def version(self) -> Path:
        return self.root / "store.json"

    @property
    def quarantine(self) -> Path:
        return self.root / "quarantine.json"

    @property
    def lock(self) -> Path:
        return self.root / "lock"

    @property
    def settings(self) -> Path:
        return self.root / "settings"

    def settings_of(self, model_id: Digest) -> Path:
        return self.settings / f"{model_id.hex}.json"

    def damaged_settings(self, model_id: Digest) -> Path:
        return self.settings / f"{model_id.hex}.damaged.json"

    @property
    def partial(self) -> Path:
        return self.root / "partial"

    def partial_of(self, digest: Digest) -> Path:
        return self.partial / f"{digest.hex}.part"

    def journal_of(self, digest: Digest) -> Path:
        return self.partial / f"{digest.hex}.journal"

    @property
    def pieces(self) -> Path:
        return self.root / "pieces"

    def pieces_of(self, digest: Digest) -> Path:
        return self.pieces / digest.hex

    @property
    def reserve(self) -> Path:
        return self.root / "reserve"

    @property
    def blobs(self) -> Path:
        return self.root / "blobs" / ALGORITHM

    def blob(self, digest: Digest) -> Path:
        return self.blobs / digest.hex

    def directories(self) -> tuple[Path, ...]:
        """All directories below the root, parents first."""
        return self.root / "blobs", self.blobs, self.settings, self.partial, self.pieces

    def names_of_a_beginning(self) -> frozenset[str]:
        """What lies in the root of a store that was cut while it was created, before it had a version."""
        directories = {path.name for path in self.directories() if path.parent == self.root}
        return frozenset({self.lock.name, *directories})
