"""The end of stage 0: whether a corpus has all its parts, wherever they lie in it.

check_corpus.py CORPUS FOLDER
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from speechclip.common.arguments import exit_on_user_error
from speechclip.common.errors import UserError
from speechclip.data.corpora.sources import SOURCES


@exit_on_user_error
def main() -> None:
    """A part that is not there is told with what the parts are and who has them."""
    name, folder = sys.argv[1], Path(sys.argv[2])
    try:
        importlib.import_module(f"speechclip.data.corpora.preparation.{name}").find_parts(folder)
    except UserError as error:
        parts = "; ".join(remote.about for remote in SOURCES[name])
        raise UserError(f"{error} ({parts}; without --corpus they are downloaded)") from error
    print(f"{folder}: photographs, captions and recordings are there")


if __name__ == "__main__":
    main()
