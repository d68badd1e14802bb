"""Prepare SpokenCOCO: data/{train,dev,test} and data/skipped.tsv from the corpus as it is published."""

from __future__ import annotations

from collections.abc import Sequence

from speechclip.bin import prepare_corpus
from speechclip.errors import exit_on_user_error


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    """Print the size of each split and the number of utterances skipped, by reason."""
    prepare_corpus("SpokenCOCO", "speechclip.data.corpora.spokencoco", argv)


if __name__ == "__main__":
    main()
