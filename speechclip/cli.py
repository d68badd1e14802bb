"""The command ``speechclip`` and its subcommands."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import NamedTuple

import speechclip


class Command(NamedTuple):
    """A subcommand.

    Attributes:
        module: the module whose ``main(argv)`` runs; it is imported when the subcommand is called.
        help: one line.
    """

    module: str
    help: str


COMMANDS = {
    "train": Command("speechclip.bin.train", "train a head on the data and features of a recipe"),
    "embed": Command("speechclip.bin.embed", "write the embeddings of recordings, pictures or texts"),
    "keywords": Command("speechclip.bin.keywords", "list the keywords of recordings with their times"),
    "score": Command("speechclip.bin.score_embeddings", "score retrieval between two files of embeddings"),
    "index": Command("speechclip.bin.index", "index pictures and recordings, so that they can be searched"),
    "search": Command("speechclip.bin.search", "find pictures and recordings with speech, text or a picture"),
    "mteb": Command("speechclip.bin.mteb", "score a model on tasks of mteb (extra mteb)"),
    "serve": Command("speechclip.bin.serve", "serve a local page for searching by voice"),
    "report": Command("speechclip.bin.report", "write the HTML page of a run, or of two runs side by side"),
    "models": Command("speechclip.bin.models", "list the published models and those in the cache"),
    "convert": Command("speechclip.bin.convert_checkpoint", "convert a published checkpoint to a checkpoint folder"),
}


def usage() -> str:
    """Return the text of ``speechclip --help``."""
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
            "speechclip COMMAND --help prints the options of a command.",
        ]
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Run a subcommand. An unknown subcommand is one line that lists the known ones, with exit status 2."""
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
