"""The end of stage 0: check that a corpus folder has all parts.

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
    """Print one line. The error for a missing part lists the parts and their publishers."""
    corpus, folder = find_corpus(sys.argv[1]), Path(sys.argv[2])
    try:
        corpus.find_parts(folder)
    except UserError as error:
        parts = "; ".join(remote.about for remote in corpus.sources)
        raise UserError(f"{error} ({parts}; without --corpus they are downloaded)") from error
    print(f"{folder}: photographs, captions and recordings found")


if __name__ == "__main__":
    main()
