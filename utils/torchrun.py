"""Run a training stage through torch.distributed.run.

    torchrun.py --ngpu N --num_nodes M --endpoint HOST:PORT -m MODULE [ARGUMENT...]

The exit status is 75 if SIGTERM stopped any of the processes and they have saved their state.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from run_logged import STOPPED

PORT = 29400
SHUTDOWN = 25  # seconds to save; less than GRACE of utils/run_logged.py


def first_machine() -> str:
    """Return HOST:PORT of the first machine of this Slurm job."""
    nodes = os.environ.get("SLURM_STEP_NODELIST") or os.environ.get("SLURM_JOB_NODELIST", "")
    if not nodes:
        sys.exit("error: --endpoint: is empty, and this is not a Slurm job. Give HOST:PORT of the first machine.")
    names = subprocess.run(["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, check=True).stdout
    return f"{names.split()[0]}:{PORT + int(os.environ.get('SLURM_JOB_ID', '0')) % 1000}"


def arguments(words: list[str]) -> list[str]:
    """Translate the arguments of this script into those of torch.distributed.run."""
    options = dict(zip(words[:6:2], words[1:6:2]))
    processes = max(1, int(options["--ngpu"]))
    where = [f"--nproc_per_node={processes}", f"--shutdown-timeout={SHUTDOWN}"]
    if options["--num_nodes"] == "1":
        return [*where, "--standalone", *words[6:]]
    endpoint = options["--endpoint"] or first_machine()
    if not re.fullmatch(r"[^:\s]+:\d+", endpoint):
        sys.exit(f"error: --endpoint: '{endpoint}' is not of the form HOST:PORT.")
    name = os.environ.get("SLURM_JOB_ID", "speechclip")
    where += [f"--nnodes={options['--num_nodes']}", "--rdzv_backend=c10d", f"--rdzv_endpoint={endpoint}"]
    return [*where, f"--rdzv_id={name}", *words[6:]]


def main() -> int:
    """Start the processes, and return the exit status."""
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
            print(f"error: training process {rank} ended with status {failure.exitcode}", file=sys.stderr)
            return failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode
    return 0


if __name__ == "__main__":
    sys.exit(main())
