"""Check a configuration before a recipe writes anything: check_config.py [--config FILE]... [--key value]..."""

from __future__ import annotations

from speechclip.common.arguments import exit_on_user_error
from speechclip.config import build_parser, parse
from speechclip.train.checks import check_encoder


@exit_on_user_error
def main() -> None:
    """Parse the configuration, and fail with the same line as a stage would."""
    config, _ = parse(build_parser("check_config", __doc__ or ""))
    check_encoder(config)


if __name__ == "__main__":
    main()
