"""The command `runner`, also as `python -m runner`."""

import signal
from typing import NoReturn


def main() -> NoReturn:
    """Ctrl-C while modules are loaded ends the process without a word; afterwards commands handle it."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else the shell said to ignore it
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from runner.cli.main import main as command

    command()


if __name__ == "__main__":
    main()
