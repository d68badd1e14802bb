"""egs/superb's generated corpora, read by s3prl."""

from __future__ import annotations

import hashlib
import re
import shutil
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from speechclip.common.compat import prepare
from speechclip.common.errors import UserError

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "egs" / "superb" / "local"))
import layouts  # noqa: E402
import spoken  # noqa: E402
from tasks import TASKS, check_corpus  # noqa: E402

needs_s3prl = pytest.mark.skipif(find_spec("s3prl") is None, reason="extra 's3prl' is not installed")


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every generated corpus in its smallest size."""
    folder = tmp_path_factory.mktemp("corpora")
    for name, make in layouts.MAKERS.items():
        make(folder / name, 1, 0)
    return folder


def _speakers_of_commands(corpus: Path) -> list[set[str]]:
    from s3prl.dataio.corpus.speech_commands import SpeechCommandsV1

    found = SpeechCommandsV1(str(corpus / "speech_commands_v0.01"), str(corpus / "speech_commands_test_set_v0.01"))
    splits = found.data_split
    assert {item["class_name"] for item in splits[2].values()} == {"yes", "no", "_unknown_", "_silence_"}
    return [
        {name.split("/")[1].split("_")[0] for name, item in split.items() if item["class_name"] != "_silence_"}
        for split in splits
    ]


def _speakers_of_librispeech(corpus: Path) -> list[set[str]]:
    from s3prl.dataio.corpus.librispeech import LibriSpeech

    return [{str(item["speaker"]) for item in split.values()} for split in LibriSpeech(str(corpus), 1).data_split]


def _speakers_of_snips(corpus: Path) -> list[set[str]]:
    from s3prl.dataio.corpus.snips import SNIPS

    parts = (["Ivy", "Joanna", "Joey", "Justin"], ["Aditi", "Amy"], ["Brian", "Emma"])
    found = SNIPS(str(corpus), *parts)
    assert all(len(i["transcription"].split()) == len(i["iob"].split()) for i in found.all_data.values())
    return [{item["speaker"] for item in split.values()} for split in found.data_split]


def _speakers_of_fluent(corpus: Path) -> list[set[str]]:
    from s3prl.dataio.corpus.fluent_speech_commands import FluentSpeechCommands

    from speechclip.upstream.provide import provide

    provide()
    splits = FluentSpeechCommands(str(corpus)).data_split
    assert all(Path(item["path"]).is_file() for split in splits for item in split.values())
    return [{item["speakerId"] for item in split.values()} for split in splits]


def _sessions_of_iemocap(corpus: Path) -> list[set[str]]:
    from s3prl.dataio.corpus.iemocap import IEMOCAP

    data = IEMOCAP(str(corpus)).all_data
    assert {item["emotion"] for item in data.values()} == {"neu", "hap", "ang", "sad"}
    return [{name for name, item in data.items() if item["session_id"] == session} for session in range(1, 6)]


@needs_s3prl
@pytest.mark.parametrize(
    ("layout", "read"),
    [
        ("speech_commands", _speakers_of_commands), ("librispeech", _speakers_of_librispeech),
        ("snips", _speakers_of_snips), ("fluent", _speakers_of_fluent), ("iemocap", _sessions_of_iemocap),
    ],
)  # fmt: skip
def test_s3prl_reads_disjoint_parts_of_a_generated_corpus(
    corpora: Path, layout: str, read: Callable[[Path], list[set[str]]]
) -> None:
    prepare()
    parts = read(corpora / layout)
    assert all(parts) and sum(map(len, parts)) == len(set().union(*parts))


@needs_s3prl
def test_s3prl_reads_the_generated_voxceleb(corpora: Path) -> None:
    prepare()
    from s3prl.dataio.corpus.voxceleb1sid import VoxCeleb1SID
    from s3prl.dataio.corpus.voxceleb1sv import VoxCeleb1SV

    corpus = corpora / "voxceleb1"
    splits = VoxCeleb1SID(str(corpus), 1, cache_root=corpus).data_split
    labels = [{item["label"] for item in split.values()} for split in splits]
    assert labels[0] == labels[1] == labels[2] and len(labels[0]) == 7
    train, valid, test, trials = VoxCeleb1SV(str(corpus), str(corpus), force_download=False).all_data
    assert len(train) == 15 and len(valid) == 5 and len(test) == 8
    assert {label for label, _, _ in trials} == {0, 1} and all(a in test and b in test for _, a, b in trials)


def test_generated_corpus_depends_only_on_its_seed(corpora: Path, tmp_path: Path) -> None:
    layouts.quesst14(tmp_path / "again", 1, 0)
    layouts.quesst14(tmp_path / "other", 1, 1)
    name = "Audio/quesst14_00000.wav"
    assert (tmp_path / "again" / name).read_bytes() == (corpora / "quesst14" / name).read_bytes()
    assert (tmp_path / "other" / name).read_bytes() != (corpora / "quesst14" / name).read_bytes()


@pytest.mark.parametrize(
    ("layout", "held_out"),
    [
        ("speech_commands", "test_set|valid"), ("voxceleb1", "^test/"), ("librispeech", "^(dev|test)-clean"),
        ("fluent", "/(valid|test)"), ("iemocap", ""), ("snips", "^(valid|test)"), ("librimix", "^wav/(dev|test)"),
        ("quesst14", ""),
    ],
)  # fmt: skip
@pytest.mark.parametrize("scale", [1, 10])
def test_generated_tests_use_unheard_voices(
    layout: str, held_out: str, scale: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Record the voices of each file, without speaking."""
    said: list[str] = []
    heard: dict[str, set[str]] = {}

    def take(self: Any, text: str, speaker: Any, seconds: float | None = None) -> np.ndarray:
        said.append(speaker.variant)
        return np.zeros(160, dtype=np.float32)

    def write(path: Path, wave: np.ndarray) -> None:
        name = str(path.relative_to(tmp_path))
        if layout == "speech_commands" and not name.startswith("speech_commands_test"):
            digest = hashlib.sha1(path.name.split("_")[0].encode()).hexdigest()
            name = f"{'valid' if int(digest, 16) % 2**27 * 100 / (2**27 - 1) < 10 else 'train'}/{name}"
        heard[name] = set(said)
        said.clear()

    monkeypatch.setattr(layouts.Studio, "take", take)
    monkeypatch.setattr(layouts, "write", write)
    layouts.MAKERS[layout](tmp_path, scale, 0)
    voices = {part: {voice.variant for voice in speakers.values()} for part, speakers in spoken.VOICES.items()}
    unheard = voices["dev"] | voices["test"]
    tests = {name: found for name, found in heard.items() if re.search(held_out, name) and found}
    assert tests and all(found <= unheard for found in tests.values())
    trains = [found for name, found in heard.items() if name not in tests]
    assert not trains or set().union(*trains) <= voices["train"]
    assert bool(trains) == bool(held_out)


def _without(corpus: Path, target: Path, *gone: str) -> Path:
    """Copy a corpus without some files."""
    shutil.copytree(corpus, target)
    for pattern in gone:
        for path in list(target.glob(pattern))[:1]:
            path.unlink()
    return target


@pytest.mark.parametrize(
    ("name", "gone", "message"),
    [
        (
            "sid",
            "dev/wav/*/*/*.wav",
            r"dev/wav/id.*wav or .*/test/wav/id.*iden_split.txt lists it. 1 of 28 .* of SID are",
        ),
        ("asv", "test/wav/*/*/*.wav", r"test/wav/id1027.*iden_split.txt lists it. 2 of 36 .* of ASV are missing"),
        ("ic", "wavs/speakers/*/*.wav", r"wavs/speakers/.*: is missing, but .*_data.csv lists it. 1 of 24 recordings"),
        ("sd", "wav/*.wav", r"\.wav: is missing, but .*wav.scp lists it. 1 of 6 recordings of SD are missing"),
    ],
)
def test_check_corpus_finds_missing_recordings(
    corpora: Path, tmp_path: Path, name: str, gone: str, message: str
) -> None:
    layout = TASKS[name].layout
    corpus = _without(corpora / layout, tmp_path / "copy", gone)
    for table in corpus.glob("*/wav.scp"):
        table.write_text(table.read_text().replace(str((corpora / layout).resolve()), str(corpus.resolve())))
    with pytest.raises(UserError, match=message):
        check_corpus(name, corpus)


def test_check_corpus_refuses_a_broken_list(corpora: Path, tmp_path: Path) -> None:
    corpus = _without(corpora / "voxceleb1", tmp_path / "copy")
    (corpus / "iden_split.txt").write_text("<html>\n")
    with pytest.raises(UserError, match="a list of SID's recordings differs from the published format"):
        check_corpus("sid", corpus)


@pytest.mark.parametrize("name", list(TASKS))
def test_check_corpus_accepts_generated_corpora(corpora: Path, tmp_path: Path, name: str) -> None:
    task = TASKS[name]
    check_corpus(name, corpora / task.layout)
    with pytest.raises(UserError, match=rf"is missing. {task.name} needs"):
        check_corpus(name, tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        check_corpus(name, tmp_path / "absent")
