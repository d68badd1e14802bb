"""Run a command and append its output to a log. The output also goes to the terminal.

    run_logged.py LOG COMMAND [ARGUMENT...]

If standard output is a terminal, the command gets a terminal too and can draw a progress bar. The log keeps only the
last state of a redrawn line. SIGINT, SIGTERM and the death of the caller end the command and its children. Exit status
75 of a command that has saved its state is passed on. Standard library only.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import pty
import select
import signal
import subprocess
import sys
import termios
from pathlib import Path
from types import FrameType
from typing import BinaryIO

PR_SET_PDEATHSIG = 1  # linux/prctl.h
GRACE = 30.0  # seconds between SIGTERM and SIGKILL, as in Slurm
STOPPED = 75  # EXIT_RESUMABLE of speechclip.common.constants; this file uses the standard library only


class Log:
    """A log file. It keeps only the text after the last carriage return of each line."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.file: BinaryIO = path.open("ab", buffering=0)
        self.rest = b""

    def write(self, data: bytes) -> None:
        """Append the complete lines."""
        *lines, self.rest = (self.rest + data.replace(b"\r\n", b"\n")).split(b"\n")
        self.rest = self.rest[self.rest.rfind(b"\r", 0, -1) + 1 :]
        for line in lines:
            self.file.write(line.rstrip(b"\r").rpartition(b"\r")[2] + b"\n")

    def close(self) -> None:
        """Append an unfinished last line."""
        if self.rest:
            self.file.write(self.rest.rstrip(b"\r") + b"\n")
        self.file.close()


def open_output() -> tuple[int, int]:
    """Return the two ends of the output, for reading and writing: a terminal if this is one, else a pipe."""
    if not os.isatty(1):
        return os.pipe()
    reader, writer = pty.openpty()
    size = fcntl.ioctl(1, termios.TIOCGWINSZ, b"\0" * 8)
    fcntl.ioctl(writer, termios.TIOCSWINSZ, size)
    settings = termios.tcgetattr(writer)
    settings[1] &= ~termios.OPOST  # the outer terminal adds the carriage returns
    termios.tcsetattr(writer, termios.TCSANOW, settings)
    return reader, writer


def end(process: subprocess.Popen[bytes]) -> None:
    """End the command and its children, first with SIGTERM, then with SIGKILL."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, sign)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)
            return


def drain(reader: int, log: Log) -> None:
    """Copy the remaining output of the command."""
    while select.select([reader], [], [], 0)[0]:
        try:
            data = os.read(reader, 65536)
        except OSError:
            return
        if not data:
            return
        with contextlib.suppress(OSError):
            os.write(1, data)
        log.write(data)


def die_with_parent() -> None:
    """Make the kernel end the command if this process is killed. Otherwise it would keep the lock of the recipe."""
    with contextlib.suppress(OSError, AttributeError):  # only Linux has it
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL))


def copy(reader: int, log: Log, process: subprocess.Popen[bytes], parent: int) -> None:
    """Copy output until the command has ended. End the command if the caller dies."""
    while True:
        ready, _, _ = select.select([reader], [], [], 1.0)
        if ready:
            try:
                data = os.read(reader, 65536)
            except OSError:  # the other side of the terminal is closed
                data = b""
            if not data:
                return
            with contextlib.suppress(BrokenPipeError):
                os.write(1, data)
            log.write(data)
        elif process.poll() is not None:  # a background child still holds the pipe
            return
        if os.getppid() != parent:
            end(process)
            return


def main() -> int:
    """Run the command, and return its exit status, or 128 + the signal that ended it."""
    log, parent = Log(Path(sys.argv[1])), os.getppid()
    reader, writer = open_output()
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell starts background jobs with it ignored
    process = subprocess.Popen(
        sys.argv[2:],
        stdin=subprocess.DEVNULL,
        stdout=writer,
        stderr=writer,
        start_new_session=True,
        close_fds=False,
        preexec_fn=die_with_parent,
    )
    os.close(writer)

    def stop(number: int, _: FrameType | None) -> None:
        end(process)
        drain(reader, log)
        log.close()
        os._exit(STOPPED if process.returncode == STOPPED else 128 + number)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    copy(reader, log, process, parent)
    status = process.wait()
    log.close()
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(main())
