"""Scripts, one per step of a recipe: parse the options, call the library, write the result."""

from __future__ import annotations

import argparse
import sys
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
