"""Check at the end of stage 0 that a corpus has all its parts.

check_corpus.py CORPUS FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

from speechclip.common.arguments import exit_on_user_error
from speechclip.common.errors import UserError
from speechclip.data.corpora.registry import find_corpus


@exit_on_user_error
def main() -> None:
    """Search the corpus for its parts. The error for a missing part lists all parts and their sources."""
    corpus, folder = find_corpus(sys.argv[1]), Path(sys.argv[2])
    try:
        corpus.find_parts(folder)
    except UserError as error:
        parts = "; ".join(remote.about for remote in corpus.sources)
        raise UserError(f"{error} The parts are: {parts}. Without --corpus they are downloaded.") from error
    print(f"{folder}: found photographs, captions and recordings")


if __name__ == "__main__":
    main()
