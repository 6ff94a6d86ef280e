"""File names in manifests and packages: data from outside that must never become a surprising path.

Owns the refusals of S13; imports nothing of ours. Nothing is repaired: a name that would need it is
refused.
"""

from __future__ import annotations

import re

NAME_BYTES_MAX = 255  # NAME_MAX of the usual file systems
PATH_BYTES_MAX = 1024

_FORBIDDEN = frozenset('/\\:*?"<>|')  # separators of either kind, drive letters, what Windows refuses
_RESERVED = re.compile(r"(?:con|prn|aux|nul|(?:com|lpt)[0-9¹²³]|con(?:in|out)\$)(?:\..*)?", re.IGNORECASE)


def file_name_fault(name: str) -> str | None:
    """Why this is not one plain component on every platform; None when it is."""
    if not name:
        return "it is empty"
    if not name.isprintable():
        return "it holds control or format characters"
    if len(name.encode()) > NAME_BYTES_MAX:
        return f"it is longer than {NAME_BYTES_MAX} bytes"
    if name[0] == " " or name[-1] in ". ":
        return "it starts or ends with a blank, or ends with a dot"
    if not _FORBIDDEN.isdisjoint(name):
        return "it holds a separator, a colon, a quote or a wildcard"
    if _RESERVED.fullmatch(name):
        return "it is the name of a device"
    return None


def relative_path_fault(path: str) -> str | None:
    """Why this is not a relative path of plain file names joined by `/`; None when it is."""
    if path.isprintable() and len(path.encode()) > PATH_BYTES_MAX:
        return f"it is longer than {PATH_BYTES_MAX} bytes"
    return next((fault for part in path.split("/") if (fault := file_name_fault(part))), None)
