"""The writer of all corpora: languages of the utterances, and files that are checked while the corpus is read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from speechclip.data.corpora.preparation import SPLITS, Candidate, Limits, Skipped, write_corpus
from speechclip.data.kaldi import DataDir, Utterance, read_table


def test_write_corpus_writes_languages(tmp_path: Path) -> None:
    image = tmp_path / "a.png"
    Image.new("RGB", (8, 8), "red").save(image)
    items = []
    for number, (split, language) in enumerate((split, language) for split in SPLITS for language in ("de", "en")):
        wav = tmp_path / f"{number}.wav"
        soundfile.write(wav, 0.1 * np.sin(np.arange(8000) * 0.1), 16000)
        utterance = Utterance(f"s-{number}", wav, "a dog", "s", "a", language=language)
        items.append(Candidate(utterance, image, split))
    data = tmp_path / "data"
    write_corpus(tmp_path, data, items, limits=Limits())
    assert DataDir.load(data / "train").languages == ("de", "en")
    assert read_table(data / "test/utt2lang") == {"s-4": "de", "s-5": "en"}
    unknown = [replace(item, utterance=replace(item.utterance, language="")) for item in items]
    write_corpus(tmp_path, data, unknown, limits=Limits())
    assert not (data / "test/utt2lang").exists()
    assert DataDir.load(data / "train").languages == ()


@pytest.mark.parametrize("nj", [1, 2])
@pytest.mark.parametrize("bad", [(), (1, 4)])
def test_write_corpus_checks_files_in_batches(
    tmp_path: Path, nj: int, bad: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("speechclip.data.corpora.file_checks._CHUNK", 2)
    captions = []

    def items() -> Iterator[Candidate | Skipped]:
        for number in range(9):
            image, wav = tmp_path / f"{number // 2}.png", tmp_path / f"{number}.wav"
            if number % 2 == 0:  # two utterances share an image, which another process may read already
                Image.new("RGB", (8, 8), "red").save(image)
            soundfile.write(wav, 0.1 * np.sin(np.arange(8000 + number) * 0.1), 16000)
            if number in bad:
                wav.write_bytes(b"x")
            captions.append((SPLITS[number % 3], f"dog {number}"))
            yield Candidate(Utterance(f"s-{number}", wav, "a dog", "s", image.stem), image, SPLITS[number % 3])
        yield Skipped("s-9", "list", "no image")

    data = tmp_path / "data"
    summary = write_corpus(tmp_path, data, items(), limits=Limits(max_bad=0.5, nj=nj), captions=captions)
    left = [number for number in range(9) if number not in bad]
    for at, split in enumerate(SPLITS):
        assert list(read_table(data / split / "wav.scp")) == [f"s-{number}" for number in left if number % 3 == at]
        hours = sum(8000 + number for number in left if number % 3 == at) / 16000 / 3600
        assert summary.splits[split].hours == pytest.approx(hours)
    rows = [line.split("\t")[0] for line in (data / "skipped.tsv").read_text().splitlines()[1:]]
    assert rows == ["s-9", *(f"s-{number}" for number in bad)]
    assert len((data / "captions.tsv").read_text().splitlines()) == 9
