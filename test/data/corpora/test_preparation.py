"""The writer of all corpora: languages of the utterances."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import soundfile
from PIL import Image

from speechclip.data.corpora.preparation import SPLITS, Candidate, Limits, write_corpus
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
