"""Where the files of this user are: settings, state, store, socket.

Paths follow the conventions of the system (platformdirs), and `RUNNER_…` variables override them in
`runner.config`. Every command imports this module, so it imports platformdirs only when asked.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path


def config_file() -> Path:
    """The user's settings, which may be missing."""
    import platformdirs

    return platformdirs.user_config_path("runner", appauthor=False) / "config.toml"


def state_directory() -> Path:
    """Log files, the history of chats and, without a runtime directory, the socket."""
    import platformdirs

    return platformdirs.user_state_path("runner", appauthor=False)


def default_store() -> Path:
    import platformdirs

    return platformdirs.user_data_path("runner", appauthor=False) / "store"


def default_socket() -> Path:
    """In the user's runtime directory when the system made one, else under the state directory."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and _is_own_directory(Path(runtime)):
        return Path(runtime) / "runner" / "runner.sock"
    return state_directory() / "run" / "runner.sock"


def _is_own_directory(path: Path) -> bool:
    """False also for the directory of the user from whom `su` inherited the variable."""
    try:
        status = path.stat()
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid()
