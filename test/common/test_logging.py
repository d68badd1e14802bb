"""The log of the scripts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
import logging
from speechclip.common.arguments import configure_logging
configure_logging()
logging.info("a library logs to the root logger, which configures it")
logging.getLogger("library").warning("of a library")
logging.getLogger("library").info("not shown")
logging.getLogger("speechclip.part").info("one")
logging.getLogger("speechclip.part").warning("two")
"""


def test_configure_logging_prints_each_line_once() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "one\n"
    assert done.stderr == "warning: of a library\nwarning: two\n"
