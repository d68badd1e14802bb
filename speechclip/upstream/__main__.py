"""Run an unmodified command of s3prl with this project's upstreams registered.

    python -m speechclip.upstream s3prl-main SuperbKS --config conf.yaml --build_upstream.name speechclip_local ...
    python -m speechclip.upstream run_downstream -m evaluate -u speechclip_local -k exp/run/best ...

All words after the command's name are passed to it unchanged.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys
from collections.abc import Sequence

from speechclip.common.arguments import ArgumentParser, exit_on_user_error

COMMANDS = {"s3prl-main": "s3prl.main", "run_downstream": "s3prl.run_downstream"}


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    """Register the upstreams, restore functions that s3prl needs, and run the command in this process."""
    words = list(sys.argv[1:] if argv is None else argv)
    parser = ArgumentParser(prog="speechclip.upstream", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("command", choices=sorted(COMMANDS), help="command of s3prl; its own arguments follow")
    command = parser.parse_args(words[:1]).command
    # s3prl's own checkpoints hold more than tensors
    os.environ.setdefault("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")

    from speechclip.upstream import register
    from speechclip.upstream.provide import provide

    register()
    provide()
    # Process pools inside s3prl (QbE) must fork. Other workers import s3prl's command again and lack the registered
    # names and restored functions. The default start method of a process of a fork server is not fork.
    if "fork" in multiprocessing.get_all_start_methods():
        multiprocessing.set_start_method("fork", force=True)
    sys.argv = [command, *words[1:]]
    runpy.run_module(COMMANDS[command], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
