# Sourced: finds a Python that fits and makes the environment.

find_python() {
    local candidate
    for candidate in python3 python3.13 python3.12 python3.11; do
        if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    echo "[setup] error: Python 3.11 to 3.13 is needed; on Debian: sudo apt-get install python3 python3-venv" >&2
    return 1
}

ensure_environment() {
    local python
    if [ -x "$root/.venv/bin/python" ]; then
        python="$root/.venv/bin/python"
    else
        python=$(find_python)
    fi
    "$python" -S "$root/scripts/environment.py" "$@"
}
