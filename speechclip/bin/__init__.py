"""Scripts, one per step of a recipe: parse the options, call the library, write the result."""

from __future__ import annotations

import argparse
import importlib
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from typing import NoReturn


class _Formatter(argparse.ArgumentDefaultsHelpFormatter):
    """Show the default of every option that has one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)


class ArgumentParser(argparse.ArgumentParser):
    """argparse without abbreviations, and with one line for a mistake that names the known options."""

    def __init__(self, *, description: str | None = None, prog: str | None = None) -> None:
        """Set up a parser whose ``--help`` shows defaults."""
        super().__init__(
            prog=prog,
            description=description,
            allow_abbrev=False,
            formatter_class=_Formatter,
        )

    def error(self, message: str) -> NoReturn:
        """Print ``error: <one line>`` and end with status 2."""
        known = [option for action in self._actions for option in action.option_strings if option.startswith("--")]
        if message.startswith("unrecognized arguments"):
            message = f"{message.replace('unrecognized arguments', 'unknown option')} (known: {' '.join(known)})"
        print(f"error: {' '.join(message.splitlines())}", file=sys.stderr)
        raise SystemExit(2)


def asked_to_stop() -> Callable[[], bool]:
    """From now on SIGTERM, as Slurm sends it before it takes a machine away, only makes what is returned true."""
    asked = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: asked.set())
    return asked.is_set


def parse_scoring(parser: ArgumentParser, argv: Sequence[str] | None = None) -> tuple[argparse.Namespace, list[str]]:
    """The options of a script that scores a checkpoint, and the words of ``--eval.KEY VALUE``, for `assemble.scoring`.

    These change what the checkpoint's configuration says of scoring. Any other unknown option ends with status 2.
    """
    from speechclip.config import EvalConfig, known_keys

    parser.epilog = f"and, in place of the checkpoint's own: --{', --'.join(known_keys(EvalConfig, 'eval.'))}"
    options, words = parser.parse_known_args(argv)
    unknown = [word for word in words if word.startswith("--") and not re.match(r"--eval([.=]|$)", word)]
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    return options, words


def prepare_corpus(name: str, prepare_from: str, argv: Sequence[str] | None) -> None:
    """The script that prepares a corpus: print the size of each split and what was skipped, by reason.

    Args:
        name: of the corpus. prepare_from: the module with ``prepare_<module's last word>`` and its ``LIMITS``.
    """
    from speechclip.data.corpora import Limits

    module = importlib.import_module(prepare_from)
    usual: Limits = module.LIMITS
    word = prepare_from.rsplit(".", 1)[-1]
    parser = ArgumentParser(
        prog=f"prepare_{word}",
        description=f"Prepare {name}: data/{{train,dev,test}} and data/skipped.tsv from the corpus as it is published.",
    )
    parser.add_argument("--corpus", required=True, metavar="DIR", help="folder with photographs, captions, recordings")
    parser.add_argument("--out", default="data", metavar="DIR", help="where the data directories go")
    parser.add_argument(
        "--max_bad", type=float, default=usual.max_bad, help="share of the utterances that may be skipped"
    )
    parser.add_argument("--min_seconds", type=float, default=usual.min_seconds, help="shortest utterance taken")
    parser.add_argument("--max_seconds", type=float, default=usual.max_seconds, help="longest utterance taken")
    parser.add_argument(
        "--check_samples", choices=("true", "false"), default=str(usual.check_samples).lower(),
        help="decode all audio but integer wav to check it",
    )  # fmt: skip
    parser.add_argument("--nj", type=int, default=min(4, os.cpu_count() or 1), help="number of processes")
    args = parser.parse_args(argv)

    limits = Limits(args.max_bad, args.min_seconds, args.max_seconds, args.check_samples == "true", args.nj)
    print(getattr(module, f"prepare_{word}")(args.corpus, args.out, limits))
