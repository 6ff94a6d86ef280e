"""An archive of a model as a streamed answer.

Imports actor handles for their types. What an archive consists of: `runner/store/archive.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from runner.errors import RunnerError

if TYPE_CHECKING:
    from actors.archives import SavedArchive


class ArchiveSource:
    """The `ByteSource` of an archive. Whatever goes wrong cuts it off: there is no place for an error in it,
    and its reader must not take half of it for the whole."""

    def __init__(self, archive: SavedArchive) -> None:
        self._archive = archive

    async def next_chunk(self) -> bytes:
        return await self._archive.next_chunk()

    def abort(self, error: RunnerError) -> bytes:
        raise error

    def close(self) -> None:
        self._archive.close()
