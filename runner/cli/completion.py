"""`runner ctl completion`: scripts that make a shell complete commands, options and model names."""

from __future__ import annotations

import os
from typing import ClassVar

import click
from click.shell_completion import (
    BashComplete,
    add_completion_class,
    get_completion_class,
    split_arg_string,
)

# Bash breaks words at colons, and readline replaces only what follows the last break; names of models hold
# colons. So the words come from the line itself, and what stands before the last colon is taken off again.
_BASH = """\
%(complete_func)s() {
    local line="${COMP_LINE:0:$COMP_POINT}" type value
    local word="${line##*[[:space:]]}"
    COMPREPLY=()
    while IFS=, read -r type value; do
        case $type in
            dir) compopt -o dirnames ;;
            file) compopt -o default ;;
            plain) COMPREPLY+=("$value") ;;
        esac
    done < <(env COMP_LINE="$line" %(complete_var)s=bash_complete "$1" 2>/dev/null)
    if [[ $word == *:* && $COMP_WORDBREAKS == *:* ]]; then
        COMPREPLY=("${COMPREPLY[@]#"${word%%"${word##*:}"}"}")
    fi
}
complete -o nosort -F %(complete_func)s %(prog_name)s
"""


class _Bash(BashComplete):
    source_template: ClassVar[str] = _BASH

    def get_completion_args(self) -> tuple[list[str], str]:
        line = os.environ["COMP_LINE"]
        words = split_arg_string(line)[1:]
        if not words or line[-1:].isspace():
            return words, ""
        return words[:-1], words[-1]


def register() -> None:
    """Let click use our Bash script, here and when Bash asks."""
    add_completion_class(_Bash, "bash")


@click.command()
@click.argument("shell", type=click.Choice(("bash", "fish", "zsh")))
def completion(shell: str) -> None:
    """Print the completion script for SHELL.

    \b
    bash  eval "$(runner ctl completion bash)"  in ~/.bashrc
    zsh   eval "$(runner ctl completion zsh)"  in ~/.zshrc
    fish  runner ctl completion fish > ~/.config/fish/completions/runner.fish
    """
    from runner.cli.main import runner

    register()
    script_class = get_completion_class(shell)
    assert script_class is not None  # click knows all three
    click.echo(script_class(runner, {}, "runner", "_RUNNER_COMPLETE").source())
