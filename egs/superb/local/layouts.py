"""Generated corpora: one function ``make(root, scale, seed)`` per layout. Scale 1 is for tests, 10 for a small run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from spoken import DEV, GRAMMAR, SAMPLE_RATE, SPEAKERS, TEST, TRAIN, UNHEARD, Studio, Voice, lines, write

COMMANDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")
OTHER_WORDS = ("bed", "cat", "happy", "three", "house", "bird")
LEXICONS = (
    "https://huggingface.co/datasets/s3prl/g2p/raw/main/lexicon/librispeech-lexicon-200k-g2p.txt",
    "https://huggingface.co/datasets/s3prl/g2p/raw/main/lexicon/librispeech-lexicon-allothers-g2p.txt",
)  # s3prl downloads these; a generated corpus puts its own lexicon into the cache under their names


def _speaker_hash(wanted: str, number: int) -> str:
    """Return a speaker id that Speech Commands' own rule assigns to ``wanted``, "train" or "valid"."""
    for attempt in range(10_000):
        name = hashlib.sha1(f"{number} {attempt}".encode()).hexdigest()[:8]
        share = int(hashlib.sha1(name.encode()).hexdigest(), 16) % 2**27 * (100.0 / (2**27 - 1))
        if share < 10 if wanted == "valid" else share >= 20:
            return name
    raise AssertionError("no id found")


def speech_commands(root: Path, scale: int, seed: int) -> None:
    """Generate Speech Commands v0.01 and its test set. Train, validation and test speakers differ."""
    studio = Studio(seed, noise=0.03)
    train, test = root / "speech_commands_v0.01", root / "speech_commands_test_set_v0.01"
    people = {"train": TRAIN[: 2 + 2 * scale], "valid": DEV, "test": TEST}
    words = (COMMANDS + OTHER_WORDS) if scale > 1 else ("yes", "no", "bed")
    for split, speakers in people.items():
        for speaker in speakers:
            name = _speaker_hash("valid" if split == "valid" else "train", SPEAKERS.index(speaker))
            for word in words:
                for take in range(3 if scale > 1 else 1):
                    label = word if split != "test" or word in COMMANDS else "_unknown_"
                    folder = test if split == "test" else train
                    file = f"{name}_nohash_{take}.wav" if split != "test" else f"{name}_{word}_{take}.wav"
                    write(folder / label / file, studio.take(word, speaker, 1.0))
    write(train / "_background_noise_" / "hum.wav", studio.quiet(2.0 + 6 * (scale > 1)))
    for number in range(1 + 4 * (scale > 1)):
        write(test / "_silence_" / f"{number}.wav", studio.quiet(1.0))


def voxceleb1(root: Path, scale: int, seed: int) -> None:
    """Generate VoxCeleb1 with identification split and verification trials.

    Trials use voices that no other task trains on. Identification trains on all of its speakers, as in VoxCeleb1.
    """
    studio = Studio(seed, noise=0.02)
    known, trial = TRAIN[: min(3 + 2 * scale, 20)], UNHEARD[: 2 if scale == 1 else None]
    names = [f"id{10001 + i}" for i in range(len(known))] + [f"id{10270 + i}" for i in range(len(trial))]
    split, trials = [], []
    each = {"1": max(2, scale), "2": 1 + (scale > 1), "3": 1 + scale // 3}
    for name, speaker in zip(names, known + trial):
        number = 0
        for code, count in each.items():
            for _ in range(count):
                number += 1
                uid = f"{name}/video{code}/{number:05d}.wav"
                half = "test" if speaker in trial else "dev"
                write(root / half / "wav" / uid, studio.take(studio.sentence(), speaker))
                split.append(f"{code} {uid}")
    test = [row.split()[1] for row in split if row.split()[1][:7] in names[len(known) :]]
    for first in test:
        trials += [f"{int(first[:7] == second[:7])} {first} {second}" for second in test if first < second]
    lines(root / "iden_split.txt", split)
    lines(root / "voxceleb1_test_v2.txt", trials)


def librispeech(root: Path, scale: int, seed: int) -> None:
    """Generate LibriSpeech's train-clean-100, dev-clean and test-clean with different speakers."""
    studio = Studio(seed)
    parts = {
        "train-clean-100": (TRAIN[: 2 + 2 * scale], 3 * scale), "dev-clean": (DEV, 1 + scale),
        "test-clean": (TEST, 1 + scale),
    }  # fmt: skip
    for part, (speakers, count) in parts.items():
        for speaker in speakers:
            reader = str(100 + SPEAKERS.index(speaker))
            texts = [studio.sentence() for _ in range(count)]
            folder = root / part / reader / "1"
            for at, text in enumerate(texts):
                write(folder / f"{reader}-1-{at:04d}.flac", studio.take(text, speaker))
            lines(folder / f"{reader}-1.trans.txt", [f"{reader}-1-{i:04d} {t.upper()}" for i, t in enumerate(texts)])
    people = [f"{100 + i} | M | train-clean-100 | 1.0 | speaker {i}" for i in range(len(SPEAKERS))]
    lines(root / "SPEAKERS.TXT", [";ID | SEX | SUBSET | MINUTES | NAME", *people])
    words = sorted({word.upper() for choices in GRAMMAR for word in choices})
    for url in LEXICONS:  # letters instead of phonemes
        file = f"{hashlib.sha256(url.encode()).hexdigest()}.{Path(url).name}"
        lines(root / "home" / ".cache" / "s3prl" / "download" / file, [f"{w} {' '.join(w)}" for w in words])


def fluent(root: Path, scale: int, seed: int) -> None:
    """Generate Fluent Speech Commands with action, object and location."""
    studio = Studio(seed)
    intents = [
        ("turn on the lights", "activate", "lights", "none"), ("turn off the lamp", "deactivate", "lamp", "none"),
        ("heat up in the kitchen", "increase", "heat", "kitchen"), ("quieter please", "decrease", "volume", "none"),
    ]  # fmt: skip
    for part, speakers in (("train", TRAIN), ("valid", DEV), ("test", TEST)):
        rows = [",path,speakerId,transcription,action,object,location"]
        for number, speaker in enumerate(speakers[: 2 * scale]):
            for at, (text, *labels) in enumerate(intents):
                path = f"wavs/speakers/{part}{number}/{part}{number}-{at}.wav"
                write(root / path, studio.take(text, speaker))
                rows.append(",".join([str(len(rows) - 1), path, f"{part}{number}", text, *labels]))
        lines(root / "data" / f"{part}_data.csv", rows)


def iemocap(root: Path, scale: int, seed: int) -> None:
    """Generate IEMOCAP: five sessions with one speaker each. Emotions differ in pitch and tempo."""
    studio = Studio(seed)
    manner = {"neu": (0, 0), "hap": (15, 10), "ang": (5, 60), "sad": (-20, -50)}
    sessions: list[list[dict[str, str]]] = []
    for session in range(1, 6):
        scene, rows, found = f"Ses0{session}F_impro01", [], []
        for take in range(scale):
            for emotion, (pitch, rate) in manner.items():
                name = f"{scene}_F{take:02d}{len(rows) % 10}"
                path = f"Session{session}/sentences/wav/{scene}/{name}.wav"
                base = UNHEARD[session - 1]
                voice = Voice(base.language, base.variant, base.pitch + pitch, 50, base.rate + rate)
                write(root / path, studio.take(studio.sentence(), voice))
                rows.append(f"[0.0 - 1.0]\t{name}\t{emotion}\t[2.5, 2.5, 2.5]")
                found.append({"path": path, "label": emotion})
        lines(root / f"Session{session}" / "dialog" / "EmoEvaluation" / f"{scene}.txt", rows)
        sessions.append(found)
    for test in range(5):  # s3prl downloads these files for the real corpus
        train = [item for number, rows_ in enumerate(sessions) if number != test for item in rows_]
        for part, items in (("train", train), ("test", sessions[test])):
            file = root / "metadata" / f"test_session{test + 1}_{part}_metadata.json"
            lines(file, [json.dumps({"meta_data": items})])


def snips(root: Path, scale: int, seed: int) -> None:
    """Generate Audio SNIPS with slots in IOB format and named speakers."""
    studio = Studio(seed)
    people = {
        "train": (("Ivy", "Joanna", "Joey", "Justin"), TRAIN), "valid": (("Aditi", "Amy"), DEV),
        "test": (("Brian", "Emma"), TEST),
    }  # fmt: skip
    rows, number = [], 0
    for part, (names, voices) in people.items():
        for name, voice in zip(names, voices):
            for at in range(2 * scale):
                artist, city = (str(studio.rng.choice(some)) for some in (["MADONNA", "PRINCE"], ["PARIS", "BERLIN"]))
                text, tags, intent = (
                    (f"PLAY {artist}", "O artist", "PlayMusic"),
                    (f"WEATHER IN {city}", "O O city", "GetWeather"),
                )[at % 2]  # fmt: skip
                uid = f"{name}-snips-{part}-{number}"
                number += 1
                write(root / part / name / f"{uid}.wav", studio.take(text.lower(), voice))
                rows.append(f"{uid} BOS {text} EOS\tO {tags} {intent}")
    lines(root / "all.iob.snips.txt", rows)


def librimix(root: Path, scale: int, seed: int) -> None:
    """Generate LibriMix: Kaldi directories of two-speaker mixtures with segments."""
    studio = Studio(seed)
    for part, voices in (("train", TRAIN[:8]), ("dev", DEV), ("test", TEST)):
        tables: dict[str, list[str]] = {name: [] for name in ("wav.scp", "segments", "utt2spk", "reco2dur")}
        for number in range(2 * scale):
            pair = [voices[(number + i) % len(voices)] for i in range(2)]
            turns = [studio.take(studio.sentence(), voice) for voice in pair]
            start = round(len(turns[0]) * 0.7)  # they overlap
            mix = np.zeros(max(len(turns[0]), start + len(turns[1])), dtype=np.float32)
            mix[: len(turns[0])] += turns[0]
            mix[start : start + len(turns[1])] += turns[1]
            record = f"{part}{number}"
            path = (root / "wav" / f"{record}.wav").resolve()
            write(path, np.clip(mix, -1, 1))
            tables["wav.scp"].append(f"{record} {path}")
            tables["reco2dur"].append(f"{record} {len(mix) / SAMPLE_RATE:.3f}")
            for i, (begin, turn) in enumerate(zip((0, start), turns)):
                utterance, end = f"{record}_spk{i}_0", (begin + len(turn)) / SAMPLE_RATE
                tables["segments"].append(f"{utterance} {record} {begin / SAMPLE_RATE:.3f} {end:.3f}")
                tables["utt2spk"].append(f"{utterance} {record}_spk{i}")
        for name, rows in tables.items():
            lines(root / part / name, rows)


def quesst14(root: Path, scale: int, seed: int) -> None:
    """Generate QUESST 2014: spoken queries, and documents by other voices that contain some of them."""
    studio = Studio(seed)
    texts = [studio.sentence() for _ in range(3 * scale)]
    keys: dict[str, list[str]] = {"utterances": [], "dev": [], "eval": []}
    for number, text in enumerate(texts):
        path = f"Audio/quesst14_{number:05d}.wav"
        write(root / path, studio.take(text, DEV[number % len(DEV)]))
        keys["utterances"].append(f"quesst14Database/{path} nnenglish")
    for part, folder in (("dev", "dev_queries"), ("eval", "eval_queries")):
        for number in range(scale + 1):
            path = f"{folder}/quesst14_{part}_{number:04d}.wav"
            words = " ".join(texts[number % len(texts)].split()[1:3])
            write(root / path, studio.take(words, TEST[number % len(TEST)]))
            keys[part].append(f"quesst14Database/{path} nnenglish")
    for name, rows in keys.items():
        lines(root / "scoring" / f"language_key_{name}.lst", rows)


MAKERS: dict[str, Callable[[Path, int, int], None]] = {
    "speech_commands": speech_commands, "voxceleb1": voxceleb1, "librispeech": librispeech, "fluent": fluent,
    "iemocap": iemocap, "snips": snips, "librimix": librimix, "quesst14": quesst14,
}  # fmt: skip
