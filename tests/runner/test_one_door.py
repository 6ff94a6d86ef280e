"""S11: there is one door to other machines, and nothing beside it opens connections.

The syntax of every shipped module is read. What can reach the network may be imported, or called, only where
it is listed here with its reason; an entry that is no longer needed fails as well.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

REACHING = {
    "aiohttp",
    "asyncio",
    "dns",
    "ftplib",
    "http.client",
    "httpcore",
    "httpx",
    "huggingface_hub",
    "imaplib",
    "nntplib",
    "oras",
    "paramiko",
    "poplib",
    "pycurl",
    "requests",
    "smtplib",
    "socket",
    "socketserver",
    "ssl",
    "telnetlib",
    "tornado",
    "trio.socket",
    "urllib.request",
    "urllib3",
    "webbrowser",
    "websocket",
    "websockets",
    "wsproto",
    "xmlrpc",
}
"""Modules with which one can open a connection."""

SOCKETS = {"socket", "trio.socket"}
CONNECTING = {"connect", "connect_ex"}
"""Methods that open a connection when they are those of a socket."""

OPENING = CONNECTING | {
    "create_connection",
    "create_unix_connection",
    "open_ssl_over_tcp_stream",
    "open_tcp_stream",
    "open_unix_socket",
    "urlopen",
    "urlretrieve",
}
"""Names of functions and methods that open one."""

ALLOWED = {
    "runner/registry/carrier.py": {"oras", "requests"},  # the door itself, which transport.py loads
    "runner/registry/call.py": {"socket", "connect"},  # to the addresses that it has checked
    "runner/registry/connections.py": {"http.client", "socket", "urllib3", "connect"},  # its connections
    "runner/registry/tls.py": {"ssl"},  # the contexts of its connections
    "runner/registry/addresses.py": {"socket"},  # names to addresses, for the door
    "runner/registry/abort.py": {"socket"},  # wakes who reads from a connection of the door
    "runner/registry/faults.py": {
        "http.client",
        "requests",
        "socket",
        "ssl",
        "urllib3",
    },  # names of exceptions
    "runner/client.py": {"http.client", "socket", "connect"},  # commands to the daemon of the user
    "runner/api/connection.py": {"socket"},  # connections that come in
    "runner/api/listeners.py": {"socket", "connect"},  # listens, and asks whether another daemon does
    "runner/api/server.py": {"socket", "trio.socket"},  # connections that come in
    "actors/process.py": {"socket", "trio.socket"},  # the socket pair of a worker
    "runner/worker/channel.py": {"socket"},  # its other end
    "runner/worker/probe.py": {"socket"},  # the same of a probe
}


def modules() -> list[Path]:
    return [path for package in ("runner", "actors") for path in sorted((ROOT / package).rglob("*.py"))]


def reaching(source: str) -> set[str]:
    """The modules and functions of the two lists that this source imports or calls."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            found |= {f"{node.value.id}.{node.attr}"} & REACHING
        match node:
            case ast.Import():
                for alias in node.names:
                    found |= _of_module(alias.name)
            case ast.ImportFrom(module=str() as module, level=0):
                found |= _of_module(module)
                for alias in node.names:
                    found |= _of_module(f"{module}.{alias.name}")
                    found |= {alias.name} & OPENING
            case ast.Call(func=ast.Attribute(attr=name) | ast.Name(id=name)):
                found |= {name} & OPENING
                found |= _imported_by_name(node, name)
    return found if found & SOCKETS else found - CONNECTING


def _of_module(name: str) -> set[str]:
    return {one for one in REACHING if name == one or name.startswith(f"{one}.")}


def _imported_by_name(call: ast.Call, function: str) -> set[str]:
    if function not in ("import_module", "__import__") or not call.args:
        return set()
    first = call.args[0]
    return (
        _of_module(first.value) if isinstance(first, ast.Constant) and isinstance(first.value, str) else set()
    )


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_S11_no_module_opens_a_connection_by_other_means(path: Path) -> None:
    name = str(path.relative_to(ROOT))
    found = reaching(path.read_text(encoding="utf-8"))
    allowed = ALLOWED.get(name, set())
    assert found <= allowed, (
        f"{name} uses {sorted(found - allowed)}: send requests through runner/registry/transport.py"
    )
    assert allowed <= found, (
        f"{name} no longer uses {sorted(allowed - found)}: take it off the list of this test"
    )


def test_S11_every_entry_of_the_list_is_a_module() -> None:
    assert set(ALLOWED) <= {str(path.relative_to(ROOT)) for path in modules()}


@pytest.mark.parametrize(
    "source",
    [
        "import requests",
        "import urllib.request",
        "from urllib import request",
        "from urllib.request import urlopen as fetch",
        "import urllib3.util",
        "def late():\n    import httpx",
        "if True:\n    from http import client",
        "import trio\nasync def f():\n    await trio.open_tcp_stream('evil.example', 80)",
        "from trio import open_tcp_stream",
        "import trio\nasync def f(s):\n    await trio.socket.socket().connect(('evil.example', 80))",
        "import importlib\nimportlib.import_module('requests.sessions')",
        "__import__('socket')",
        "import asyncio",
        "import oras.client as o",
    ],
)
def test_S11_each_way_around_the_door_is_noticed(source: str) -> None:
    assert reaching(source)


@pytest.mark.parametrize(
    "source",
    [
        "from urllib.parse import quote",
        "from http import HTTPStatus",
        "import trio",
        "import sqlite3\nsqlite3.connect('x')",
    ],
)
def test_what_opens_nothing_is_not_taken_for_a_connection(source: str) -> None:
    assert not reaching(source)
