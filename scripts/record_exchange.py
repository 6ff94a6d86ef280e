"""Record anew what the application answers in exchanges of `tests/conformance/`.

    python scripts/record_exchange.py tests/conformance/openai/chat.json …

The request and the worker's words stay as they are in the file; only `response` is replaced. Read the
difference before you commit it: these files say what clients rely on.
"""

from __future__ import annotations

import sys
from pathlib import Path

import trio

sys.path.insert(0, str(Path(__file__).parent.parent))

from tests.support.exchanges import answer, load, save


async def record(path: Path) -> None:
    exchange = load(path)
    exchange["response"] = await answer(exchange)
    save(path, exchange)
    print(f"{path.name}: {exchange['response']['status']}")


async def main(paths: list[str]) -> None:
    for path in paths:
        await record(Path(path))


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    trio.run(main, sys.argv[1:])
