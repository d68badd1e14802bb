"""Check a configuration before a recipe writes anything: check_config.py [--config FILE]... [--key value]..."""

from __future__ import annotations

from speechclip.common.arguments import exit_on_user_error
from speechclip.config import build_parser, parse


@exit_on_user_error
def main() -> None:
    """Parse the configuration, and fail with the same line as a stage would."""
    parse(build_parser("check_config", __doc__ or ""))


if __name__ == "__main__":
    main()
