"""Download the original files of a model's encoders in stage 0, unless the folder has them in any published form.

download_models.py MODEL FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

from speechclip.common.arguments import exit_on_user_error
from speechclip.data.corpora.download import download
from speechclip.data.corpora.sources import ENCODERS, find_encoder


@exit_on_user_error
def main() -> None:
    """Look for each encoder under all its published names, and download the missing ones."""
    model, folder = sys.argv[1], Path(sys.argv[2])
    lacking = []
    for remote in ENCODERS.get(model, ()):
        found = find_encoder(folder, remote.name)
        if found is None:
            lacking.append(remote)
        else:
            print(f"{found}: found")
    download(lacking, folder)


if __name__ == "__main__":
    main()
