# Sourced by the other scripts, which set `root`: finds a Python that fits and makes the environment `.venv`.

find_python() {
    local candidate
    for candidate in ${PYTHON:-} python3 python3.13 python3.12 python3.11; do
        if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    echo "[setup] error: Python 3.11 to 3.13 is needed; on Debian: sudo apt-get install python3 python3-venv" >&2
    return 1
}

ensure_environment() {
    local python="$root/.venv/bin/python"
    # A dangling link (the system's Python went away) is not executable either.
    [ -x "$python" ] || python=$(find_python)
    "$python" -I -S "$root/scripts/environment.py" "$@"
}
