"""torch.distributed.run for a training stage: where the machines meet, and a status that tells a stop from a failure.

    torchrun.py --ngpu N --num_nodes M --endpoint HOST:PORT -m MODULE [ARGUMENT...]

Status 75 where the processes were asked to stop and have saved, whichever of them was asked.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

STOPPED = 75  # as speechclip.common.constants has it; nothing of the package is imported before the processes start
PORT = 29400
SHUTDOWN = 25  # seconds to save in, less than utils/run_logged.py gives


def first_machine() -> str:
    """HOST:PORT of the first machine of this Slurm job."""
    nodes = os.environ.get("SLURM_STEP_NODELIST") or os.environ.get("SLURM_JOB_NODELIST", "")
    if not nodes:
        sys.exit("error: --endpoint: HOST:PORT of the first machine is needed: this is no job of Slurm")
    names = subprocess.run(["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, check=True).stdout
    return f"{names.split()[0]}:{PORT + int(os.environ.get('SLURM_JOB_ID', '0')) % 1000}"


def arguments(words: list[str]) -> list[str]:
    """torch.distributed.run's, for this script's."""
    options = dict(zip(words[:6:2], words[1:6:2]))
    processes = max(1, int(options["--ngpu"]))
    where = [f"--nproc_per_node={processes}", f"--shutdown-timeout={SHUTDOWN}"]
    if options["--num_nodes"] == "1":
        return [*where, "--standalone", *words[6:]]
    endpoint = options["--endpoint"] or first_machine()
    if not re.fullmatch(r"[^:\s]+:\d+", endpoint):
        sys.exit(f"error: --endpoint: '{endpoint}' is not HOST:PORT")
    name = os.environ.get("SLURM_JOB_ID", "speechclip")
    where += [f"--nnodes={options['--num_nodes']}", "--rdzv_backend=c10d", f"--rdzv_endpoint={endpoint}"]
    return [*where, f"--rdzv_id={name}", *words[6:]]


def main() -> int:
    """The status of the whole."""
    given = arguments(sys.argv[1:])
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as run

    with tempfile.TemporaryDirectory() as folder:
        mark = Path(folder, "stopped")
        os.environ["SPEECHCLIP_STOPPED"] = str(mark)
        try:
            run(given)
        except (SignalException, ChildFailedError) as error:
            if mark.exists():
                return STOPPED
            if isinstance(error, SignalException):
                return 128 + int(error.sigval)
            rank, failure = error.get_first_failure()
            print(f"error: process {rank} of the training ended with status {failure.exitcode}", file=sys.stderr)
            return failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode
    return 0


if __name__ == "__main__":
    sys.exit(main())
