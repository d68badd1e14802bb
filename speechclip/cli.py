"""The command ``speechclip``: names its subcommands and hands each the rest of the line."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import NamedTuple

import speechclip


class Command(NamedTuple):
    """A subcommand: the module whose ``main(argv)`` it is, imported when it is called, and a line of help."""

    module: str
    help: str


COMMANDS = {
    "report": Command("speechclip.bin.report", "write a run's results as a page, or set two runs side by side"),
    "index": Command("speechclip.bin.index", "make images searchable by voice"),
    "search": Command("speechclip.bin.search", "find images with a recorded query"),
    "serve": Command("speechclip.bin.serve", "open a local page to search by voice"),
}


def usage() -> str:
    """What ``speechclip --help`` prints."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {command.help}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: speechclip COMMAND [options]",
            "",
            "SpeechCLIP: speech aligned with CLIP through images.",
            "",
            *lines,
            "",
            "speechclip COMMAND --help prints its options; speechclip --version the version.",
        ]
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Run a subcommand. A mistake in the first word ends with status 2 and names the known ones."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words and words[0] in ("-h", "--help"):
        print(usage())
    elif words == ["--version"]:
        print(f"speechclip {speechclip.__version__}")
    elif words and words[0] in COMMANDS:
        importlib.import_module(COMMANDS[words[0]].module).main(words[1:])
    else:
        problem = f"unknown command '{words[0]}'" if words else "a command is needed"
        print(f"error: {problem} (known: {' '.join(COMMANDS)})", file=sys.stderr)
        raise SystemExit(2)


if __name__ == "__main__":
    main()
