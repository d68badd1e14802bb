"""Stage 0's part on encoders: downloads those original files of a model that a folder lacks in every published form.

obtain_models.py MODEL FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

from speechclip.data.corpora.sources import ENCODERS, FORMS
from speechclip.data.download import obtain
from speechclip.errors import exit_on_user_error


@exit_on_user_error
def main() -> None:
    """A file or folder of another name that holds the same encoder will do."""
    model, folder = sys.argv[1], Path(sys.argv[2])
    lacking = []
    for remote in ENCODERS.get(model, ()):
        found = next((name for name in FORMS[remote.name] if (folder / name).exists()), None)
        if found is None:
            lacking.append(remote)
        else:
            print(f"{folder / found}: there")
    obtain(lacking, folder)


if __name__ == "__main__":
    main()
