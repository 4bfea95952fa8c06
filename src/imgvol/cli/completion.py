"""`completion`: scripts for bash, zsh and fish.

The scripts ask `imgvol` itself what may follow. Bash's needs a hand: it splits words at colons, of
which image names are full, so it gives the line as typed, and cuts off what it has already.
"""

import click
from click.shell_completion import (
    BashComplete,
    ShellComplete,
    add_completion_class,
    get_completion_class,
    split_arg_string,
)

from imgvol.cli.session import examples

_BASH = """\
%(complete_func)s() {
    local line kind value prefix word
    COMPREPLY=()
    word="${COMP_LINE:0:COMP_POINT}"
    word="${word##*[[:space:]]}"
    # Bash replaces only what follows the last colon or equals sign of the word.
    prefix="${word%%"${word##*[:=]}"}"
    while IFS=',' read -r kind value; do
        case "$kind" in
            dir) compopt -o dirnames ;;
            file) compopt -o default ;;
            plain) printf -v value %%q "$value"
                   COMPREPLY+=("${value#"$prefix"}")
                   [[ "$value" == */ ]] && compopt -o nospace ;;
        esac
    done < <(env COMP_WORDS="${COMP_LINE:0:COMP_POINT}" COMP_CWORD=-1 \\
             %(complete_var)s=bash_complete "$1" 2>/dev/null)
    return 0
}
complete -o nosort -F %(complete_func)s %(prog_name)s
"""


class ColonBash(BashComplete):
    """Bash's completion by the line as typed."""

    source_template = _BASH

    @staticmethod
    def _check_version() -> None:
        """Printing the script does not need a bash, let alone of a certain version."""

    def get_completion_args(self) -> tuple[list[str], str]:
        """The words before the cursor's, and the cursor's."""
        import os

        line = os.environ["COMP_WORDS"]
        words = split_arg_string(line)
        incomplete = words.pop() if words and not line[-1:].isspace() else ""
        return words[1:], incomplete


def register() -> None:
    """Make click use our script for bash."""
    add_completion_class(ColonBash)


@click.command(
    "completion",
    epilog=examples(
        "source <(imgvol completion bash)                 # or in ~/.bashrc",
        "imgvol completion zsh > ~/.zfunc/_imgvol         # a directory of $fpath",
        "imgvol completion fish > ~/.config/fish/completions/imgvol.fish",
    ),
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion_command(context: click.Context, shell: str) -> None:
    """Print the completion script of a shell. Names of local images are completed too."""
    register()
    found = get_completion_class(shell)
    assert found is not None
    script: ShellComplete = found(context.find_root().command, {}, "imgvol", "_IMGVOL_COMPLETE")
    click.echo(script.source().rstrip("\n"))
