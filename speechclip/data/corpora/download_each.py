"""Download many small files, such as recordings that are published one by one."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from urllib.parse import quote

from speechclip.common.errors import UserError
from speechclip.common.files import make_folder
from speechclip.data.corpora.download import MirrorFailure, transfer_file

logger = logging.getLogger(__name__)


def download_each(
    files: Iterable[tuple[str, Path]], bases: Sequence[str], missing_file: Path, *, threads: int = 16,
    pause: float = 2.0, max_missing: float = 0.01,
) -> int:  # fmt: skip
    """Download many small files, several at a time. Existing files are kept, so a second call resumes.

    Args:
        files: path below the base address, and path on disk.
        bases: addresses, tried in order.
        missing_file: receives the paths that no address has, one per line. It is removed if no file is missing.
        threads: downloads at a time.
        pause: seconds before a second attempt; doubled before each further one.
        max_missing: share of the files that may be missing.

    Returns:
        the number of missing files.

    Raises:
        UserError: an address cannot be reached, or too many files are missing.
    """
    missing: list[str] = []
    count = 0

    def fetch(item: tuple[str, Path]) -> str | None:
        name, path = item
        if path.exists():
            return None
        make_folder(path.parent)
        part = path.with_name(f"{path.name}.part")
        for base in bases:
            try:
                transfer_file(f"{base}/{quote(name)}", part, pause, None, quiet=True)
            except MirrorFailure as failure:
                if "HTTP status 40" not in str(failure) and base == bases[-1]:
                    raise UserError(f"{base}/{name}: {failure}. Run the command again to resume.") from failure
                continue
            part.replace(path)
            return None
        part.unlink(missing_ok=True)
        return name

    with ThreadPoolExecutor(threads) as pool:
        waiting = iter(files)
        while block := list(islice(waiting, 64 * threads)):  # map() alone would read all of them first
            missing += [name for name in pool.map(fetch, block) if name is not None]
            count += len(block)
            logger.info("%d recordings, %d missing", count, len(missing))
    if len(missing) > max_missing * count:
        raise UserError(f"{bases[-1]}/{missing[0]}: missing, and {len(missing)} of {count} files. Give a mirror.")
    if missing:
        missing_file.write_text("".join(f"{name}\n" for name in missing), encoding="utf-8")
    else:
        missing_file.unlink(missing_ok=True)
    return len(missing)
