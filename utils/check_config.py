"""Checks configuration before anything is written: check_config.py [--config FILE]... [--key value]..."""

from __future__ import annotations

from speechclip.common.arguments import exit_on_user_error
from speechclip.config import build_parser, parse


@exit_on_user_error
def main() -> None:
    """End with one line and a status other than 0 where a stage would do so."""
    parse(build_parser("check_config", __doc__ or ""))


if __name__ == "__main__":
    main()
