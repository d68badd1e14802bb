"""Errors of a script: one line and an exit status."""

from __future__ import annotations

import errno
import subprocess
import sys
from collections.abc import Callable

import pytest

from speechclip.common.arguments import exit_on_user_error
from speechclip.common.errors import UserError, is_disk_full, writing

FULL = "disk full while writing. Free some space and run the command again."


def raiser(error: BaseException) -> Callable[[], None]:
    @exit_on_user_error
    def main() -> None:
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "status", "printed"),
    [
        (UserError("a.wav: missing"), 1, "error: a.wav: missing\n"),
        (UserError("a.wav: two\nlines"), 1, "error: a.wav: two lines\n"),
        (OSError(errno.ENOSPC, "No space left on device", "exp/x"), 1, f"error: exp/x: {FULL}\n"),
        (OSError(errno.ENOSPC, "No space left on device"), 1, f"error: a file: {FULL}\n"),
        (OSError(errno.EDQUOT, "Quota exceeded", "exp/x"), 1, f"error: exp/x: {FULL}\n"),
        (PermissionError(errno.EACCES, "Permission denied", "exp/x"), 1, "error: exp/x: Permission denied\n"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_script_error_is_one_line_with_a_status(
    error: BaseException, status: int, printed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        raiser(error)()
    assert caught.value.code == status
    assert capsys.readouterr().err == printed


def test_script_bug_keeps_its_traceback() -> None:
    for error in (ValueError("x"), OSError("no file named")):
        with pytest.raises(type(error)):
            raiser(error)()


def test_script_returns_the_result() -> None:
    assert exit_on_user_error(lambda value: value + 1)(2) == 3


def test_writing_names_the_file() -> None:
    for error in (OSError(errno.ENOSPC, "No space"), RuntimeError("I/O error: No space left on device (os error 28)")):
        with pytest.raises(UserError, match=r"^exp/model: disk full while writing"), writing("exp/model"):
            raise error
        assert is_disk_full(error)
    for other in (ValueError("x"), OSError(errno.EACCES, "Permission denied"), UserError("f: r")):
        with pytest.raises(type(other)), writing("exp/model"):
            raise other
        assert not is_disk_full(other)


def test_script_ignores_a_closed_pipe() -> None:
    script = (
        "from speechclip.common.arguments import exit_on_user_error\n"
        "@exit_on_user_error\n"
        "def main():\n"
        "    for number in range(100000): print(number)\n"
        "main()\n"
    )
    command = f"{sys.executable} -c '{script}' | head -n 1"
    result = subprocess.run(
        command, shell=True, capture_output=True, text=True, check=False, env={"PYTHONPATH": ":".join(sys.path)}
    )
    assert result.stdout == "0\n"
    assert result.stderr == ""
