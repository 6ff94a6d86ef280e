"""The environment of a worker is what the allowlist says and nothing else."""

from __future__ import annotations

import os
import site
from pathlib import Path

import pytest

import runner
from actors.environment import ALWAYS, PASSED_ON, import_paths, interpreter_options, worker_environment

SOURCE = str(Path(runner.__file__).parent.parent)
SECRETS = {
    "HF_TOKEN": "secret",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "SSH_AUTH_SOCK": "/run/secret",
    "RUNNER_API_KEY": "secret",
    "HTTPS_PROXY": "http://user:secret@proxy",
    "DBUS_SESSION_BUS_ADDRESS": "unix:path=/run/secret",
    "HOME": "/home/secret",
    "USER": "secret",
    "PATH": "/home/secret/bin",
    "PWD": "/home/secret",
    "LD_PRELOAD": "/home/secret/x.so",
    "PYTHONSTARTUP": "/home/secret/start.py",
    "PYTHONHOME": "/home/secret",
    "PYTHONPATH": "/home/secret/missing",
}


def test_W01_nothing_of_the_daemons_environment_is_passed_on_but_what_the_allowlist_names() -> None:
    environment = worker_environment(SECRETS, directory="/tmp/empty")
    assert "secret" not in str(environment)
    own = {"HOME", "TMPDIR", "PYTHONPATH", "PYTHONUSERBASE"}
    assert set(environment) <= {*PASSED_ON, *ALWAYS, *own}


def test_W01_home_and_temporary_directory_are_the_workers_own() -> None:
    environment = worker_environment(SECRETS, directory="/tmp/empty")
    assert environment["HOME"] == environment["TMPDIR"] == "/tmp/empty"


def test_devices_chosen_for_the_daemon_hold_for_its_workers() -> None:
    environment = worker_environment({"CUDA_VISIBLE_DEVICES": "1"}, directory="/tmp/empty")
    assert environment["CUDA_VISIBLE_DEVICES"] == "1"


def test_waiting_at_barriers_is_bounded_and_blas_starts_no_threads() -> None:
    environment = worker_environment({"GOMP_SPINCOUNT": "infinity"}, directory="/tmp/empty")
    assert 1000 <= int(environment["GOMP_SPINCOUNT"]) <= 10_000
    assert environment["OPENBLAS_NUM_THREADS"] == "1"


def test_a_source_checkout_is_found_by_the_worker() -> None:
    assert import_paths("") == [SOURCE]


def test_an_installed_package_needs_no_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(site, "getsitepackages", lambda: [SOURCE])
    assert import_paths("") == []
    assert "PYTHONPATH" not in worker_environment({}, directory="/tmp/empty")


def test_W01_of_the_users_import_path_only_absolute_directories_that_exist_are_kept(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    entries = [
        "",
        ".",
        "relative",
        str(tmp_path / "missing"),
        str(tmp_path / "file"),
        str(tmp_path),
        str(tmp_path),
    ]
    assert import_paths(os.pathsep.join(entries)) == [SOURCE, str(tmp_path)]


@pytest.mark.parametrize(("enabled", "options"), [(True, ("-P",)), (False, ("-P", "-s"))])
def test_the_users_site_packages_are_the_workers_when_they_are_the_daemons(
    monkeypatch: pytest.MonkeyPatch, enabled: bool, options: tuple[str, ...]
) -> None:
    monkeypatch.setattr(site, "ENABLE_USER_SITE", enabled)
    monkeypatch.setattr(site, "getusersitepackages", lambda: SOURCE)
    monkeypatch.setattr(site, "getuserbase", lambda: "/home/someone/.local")
    monkeypatch.syspath_prepend(SOURCE)
    assert interpreter_options() == options
    environment = worker_environment({}, directory="/tmp/empty")
    assert ("PYTHONUSERBASE" in environment) is enabled
