"""The mini recipe: scenes, captions, speech, alignments, data directories, shipped models, demo and tour."""

from __future__ import annotations

import csv
import shutil
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

MINI = Path(__file__).resolve().parents[2] / "egs" / "mini"
sys.path.insert(0, str(MINI / "local"))

import captions  # noqa: E402
import captions_es  # noqa: E402
import generate  # noqa: E402
import narrate  # noqa: E402
import prepare  # noqa: E402
import render  # noqa: E402
import scenes  # noqa: E402
import ship_model  # noqa: E402
import speak  # noqa: E402

COUNTS = {"train": 4000, "dev": 200, "test": 200}


@pytest.fixture(scope="module")
def plan() -> list[generate.Record]:
    return generate.plan_corpus(0, COUNTS, 3)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("mini") / "corpus"
    generate.generate(out, 0, {"train": 2, "dev": 2, "test": 2}, 3, 1)
    return out


def test_random_scene_depends_only_on_seed_split_and_index() -> None:
    first = scenes.random_scene(0, "train", 5)
    assert first == scenes.random_scene(0, "train", 5)
    others = [scenes.random_scene(*key) for key in ((1, "train", 5), (0, "dev", 5), (0, "train", 6))]
    assert first not in others
    pictures = [np.asarray(render.render(first, scenes.generator(0, "train", 5, 2))) for _ in range(2)]
    assert pictures[0].shape == (64, 64, 3)
    np.testing.assert_array_equal(*pictures)


def test_render_draws_every_shape_texture_and_background() -> None:
    for number, shape in enumerate(scenes.SHAPES):
        texture = ("", *scenes.TEXTURES)[number % 6]
        thing = scenes.Thing(shape, "red", texture, "big", 1, 1, 1)
        other = scenes.Thing(shape, "red", texture, "big", 1, 0, 0)
        ground = scenes.BACKGROUNDS[number % len(scenes.BACKGROUNDS)]
        drawn = [
            np.asarray(render.render(scenes.Scene((t,), ground), np.random.default_rng(0)), int) for t in (thing, other)
        ]
        assert np.abs(drawn[0] - drawn[1]).max() > 60, shape


def test_plan_corpus_has_no_caption_in_two_splits(plan: list[generate.Record]) -> None:
    assert len({record.utterance for record in plan}) == len(plan)
    assert len(plan) == 13200
    assert generate.caption_overlap(plan) == set()
    texts = {split: {r.caption for r in plan if r.split == split} for split in COUNTS}
    assert not texts["train"] & (texts["dev"] | texts["test"])
    assert plan == generate.plan_corpus(0, COUNTS, 3)


def test_plan_corpus_spreads_content_words_evenly(plan: list[generate.Record]) -> None:
    counts = Counter(word for record in plan for word in set(record.caption.split()) & captions.CONTENT_WORDS)
    assert 100 <= len(captions.CONTENT_WORDS) <= 140
    assert set(counts) == captions.CONTENT_WORDS
    assert max(counts.values()) < 0.12 * len(plan)
    lengths = [len(record.caption.split()) for record in plan]
    assert min(lengths) >= 5
    assert max(lengths) <= 14


def test_captions_describe_the_scene() -> None:
    for index in range(200):
        scene = scenes.random_scene(3, "train", index)
        names = {name for thing in scene.things for name in (thing.shape, captions.PLURALS[thing.shape])}
        for caption in captions.captions_of(3, "train", index, scene, 3):
            words = caption.split()
            assert caption == " ".join(words)
            assert caption.isascii()
            assert caption.replace(" ", "").isalpha()
            assert len(names & set(words)) >= 2
            shapes = {*scenes.SHAPES, *captions.PLURALS.values()} & set(words)
            assert shapes <= names
            assert {*scenes.COLOURS} & set(words) <= {thing.colour for thing in scene.things}


def test_keywords_are_content_words_of_the_caption() -> None:
    rng = np.random.default_rng(0)
    words = captions.keywords(rng, "there is a red star above two green boats on the grass", 4).split()
    assert 2 <= len(words) <= 4
    assert set(words) <= {"red", "star", "above", "two", "green", "boats", "grass"}


def test_voices_of_the_splits_are_disjoint() -> None:
    ids = [speaker for voices in speak.VOICES.values() for speaker in voices]
    variants = [voice.variant for voices in speak.VOICES.values() for voice in voices.values()]
    assert len(set(ids)) == len(ids)
    assert len(set(variants)) == len(variants)
    assert len(speak.VOICES["train"]) >= 12
    assert len(speak.VOICES["dev"]) >= 2
    assert len(speak.VOICES["test"]) == 4


def test_spanish_captions_describe_the_same_scenes() -> None:
    nouns = captions_es._NOUNS
    shapes = {form for singular, plural, _ in nouns.values() for form in (singular, plural)}
    assert set(nouns) == set(scenes.SHAPES) and set(captions_es._COLOURS) == set(scenes.COLOURS)
    assert set(captions_es._BACKGROUNDS) == set(scenes.BACKGROUNDS)
    for index in range(200):
        scene = scenes.random_scene(3, "train", index)
        names = {form for thing in scene.things for form in nouns[thing.shape][:2]}
        found = captions.captions_of(3, "train", index, scene, 3, language="es")
        assert found == captions.captions_of(3, "train", index, scene, 3, language="es")
        for caption in found:
            words = caption.split()
            assert 5 <= len(words) <= 15 and caption.replace(" ", "").isalpha() and caption == caption.lower()
            assert len(names & set(words)) >= 2 and shapes & set(words) <= names
            assert " de el " not in caption and " a el " not in caption


@pytest.mark.parametrize(
    ("word", "feminine", "plural", "expected"),
    [("rojo", True, False, "roja"), ("rojo", False, True, "rojos"), ("verde", True, True, "verdes"),
     ("azul", False, True, "azules"), ("carmesí", True, True, "carmesíes"), ("lima", True, True, "lima"),
     ("a rayas", True, True, "a rayas")],
)  # fmt: skip
def test_spanish_adjectives_agree(word: str, feminine: bool, plural: bool, expected: str) -> None:
    assert captions_es._agree(word, feminine, plural) == expected


def test_a_second_language_leaves_the_first_unchanged(plan: list[generate.Record]) -> None:
    both = generate.plan_corpus(0, {"train": 40, "dev": 2, "test": 2}, 3, ("en", "es"))
    small = generate.plan_corpus(0, {"train": 40, "dev": 2, "test": 2}, 3)
    english, spanish = both[: len(small)], both[len(small) :]
    assert [replace(record, language="") for record in english] == small
    assert {record.language for record in spanish} == {"es"} and len(spanish) == len(small)
    assert {record.image for record in spanish} == {record.image for record in small}
    assert not {r.utterance for r in spanish} & {r.utterance for r in small}
    assert all(r.speaker in speak.voices_of(r.split, "es") for r in spanish)
    assert generate.caption_overlap(both) == set()
    variants = {split: {v.variant for v in speak.voices_of(split, "es").values()} for split in COUNTS}
    assert not variants["train"] & (variants["dev"] | variants["test"])


def test_corpus_of_two_languages_has_utt2lang(corpus: Path, tmp_path: Path) -> None:
    from speechclip.data.kaldi import DataDir

    out = tmp_path / "corpus"
    shutil.copytree(corpus, out)
    counts = {"train": 1, "dev": 1, "test": 1}
    generate.generate(out, 0, counts, 1, 1, ("en", "es"))
    assert (out / "captions.tsv").read_text().startswith("utterance\timage\tsplit\tspeaker\tcaption\tlanguage\n")
    prepare.prepare(out, tmp_path / "data")
    data = DataDir.load(tmp_path / "data/test")
    assert data.languages == ("en", "es") and len(data.utterances) == 2 and len(data.images) == 1
    ctm = {line.split()[4] for line in (tmp_path / "data/test/ctm").read_text().splitlines()}
    assert ctm == {word for utterance in data.utterances for word in utterance.text.split()}
    generate.generate(out, 0, counts, 1, 1)
    prepare.prepare(out, tmp_path / "data")
    assert not (tmp_path / "data/test/utt2lang").exists()


def test_say_does_not_depend_on_earlier_utterances() -> None:
    text = "there is a small red star of gold on the grass"
    voices = [voice for split in speak.VOICES.values() for voice in split.values()]
    first = [speak.say(text, voice) for voice in voices]
    for voice, (samples, words) in reversed(list(zip(voices, first, strict=True))):
        again, words_again = speak.say(text, voice)
        np.testing.assert_array_equal(samples, again)
        assert words == words_again
    assert len({samples.tobytes() for samples, _ in first}) == len(voices)


def test_say_aligns_words_in_order_within_the_audio() -> None:
    for index, voice in enumerate(speak.VOICES["test"].values()):
        scene = scenes.random_scene(0, "test", index)
        text = captions.captions_of(0, "test", index, scene, 1)[0]
        samples, words = speak.say(text, voice)
        assert samples.dtype == np.float32
        assert 0.1 < np.abs(samples).max() <= 1
        assert [word.word for word in words] == text.split()
        edges = [edge for word in words for edge in (word.start, word.end)]
        assert edges == sorted(edges)
        assert edges[0] >= 0
        assert edges[-1] <= len(samples) / speak.SAMPLE_RATE
        assert all(word.end - word.start > 0.015 for word in words)
        assert 1 < len(samples) / speak.SAMPLE_RATE < 6


def test_say_rejects_an_unknown_voice() -> None:
    with pytest.raises(ValueError, match="unknown_variant: not a voice variant"):
        speak.say("a star", speak.Voice("en-us", "unknown_variant", 50, 50, 190))


def test_generate_keeps_files_and_replaces_other_settings(corpus: Path, tmp_path: Path) -> None:
    times = {path: path.stat().st_mtime_ns for path in corpus.rglob("*.flac")}
    assert len(times) == 18
    assert len(list(corpus.glob("images/*.png"))) == 6
    lost = sorted(times)[0]
    before = lost.read_bytes()
    lost.unlink()
    generate.generate(corpus, 0, {"train": 2, "dev": 2, "test": 2}, 3, 1)
    assert lost.read_bytes() == before
    assert all(path.stat().st_mtime_ns == time for path, time in times.items() if path != lost)
    other = tmp_path / "corpus"
    shutil.copytree(corpus, other)
    generate.generate(other, 1, {"train": 1, "dev": 1, "test": 1}, 3, 1)
    assert len(list(other.rglob("*.flac"))) == 9
    assert len(list(other.glob("images/*.png"))) == 3
    scene = "images/train00000.png"
    assert (other / scene).read_bytes() != (corpus / scene).read_bytes()


def test_prepare_writes_valid_data_directories(corpus: Path, tmp_path: Path) -> None:
    from speechclip.data.audio import load_audio
    from speechclip.data.kaldi import DataDir

    assert prepare.prepare(corpus, tmp_path) == {"train": 6, "dev": 6, "test": 6}
    for split in ("train", "dev", "test"):
        data = DataDir.load(tmp_path / split)
        assert len(data.utterances) == 6
        assert len(data.images) == 2
        ctm = [line.split() for line in (tmp_path / split / "ctm").read_text().splitlines()]
        for utterance in data.utterances:
            mine = [fields for fields in ctm if fields[0] == utterance.id]
            assert [fields[4] for fields in mine] == utterance.text.split()
            seconds = len(load_audio(utterance.wav)) / 16000
            assert float(mine[-1][2]) + float(mine[-1][3]) <= seconds + 1e-3
            assert utterance.id.startswith(utterance.speaker)


def test_prepare_labels_keywords_of_each_image(corpus: Path, tmp_path: Path) -> None:
    from speechclip.data.kaldi import read_table
    from speechclip.data.spoken_keywords import read_keyword_table

    prepare.prepare(corpus, tmp_path)
    labels, text = read_keyword_table(tmp_path / "test/utt2keywords"), read_table(tmp_path / "test/text")
    image = read_table(tmp_path / "test/utt2img")
    assert labels.keys() == text.keys() and not (tmp_path / "train/utt2keywords").exists()
    for key, words in labels.items():
        spoken = {word for other, caption in text.items() if image[other] == image[key] for word in caption.split()}
        assert words == spoken & {*scenes.SHAPES, *scenes.COLOURS} and words
    assert len({frozenset(words) for words in labels.values()}) == 2  # one set for each image


def test_narratives_are_long_descriptions_of_scenes(corpus: Path, tmp_path: Path) -> None:
    from speechclip.data.audio import load_audio
    from speechclip.data.kaldi import DataDir

    out, data = tmp_path / "corpus", tmp_path / "data"
    shutil.copytree(corpus, out)
    records = narrate.generate(out, 0, {"dev": 1, "test": 2}, 12.0, 1)
    assert prepare.prepare(out, data) == {"train": 6, "dev": 6, "test": 6, "dev_long": 1, "test_long": 2}
    long = DataDir.load(data / "test_long")
    assert list(long.images) == ["test00000", "test00001"] and len(records) == 3
    for utterance in long.utterances:
        wave = load_audio(utterance.wav)
        assert 12 <= len(wave) / 16000 < 20 and utterance.speaker in speak.VOICES["test"]
        own = captions.captions_of(0, "test", int(utterance.image_id[-5:]), scenes.random_scene(
            0, "test", int(utterance.image_id[-5:])), 9)  # fmt: skip
        assert " ".join(own).startswith(utterance.text) and utterance.text.startswith(" ".join(own[:3]))
        words = [line.split() for line in (data / "test_long/ctm").read_text().splitlines()]
        words = [fields for fields in words if fields[0] == utterance.id]
        assert [fields[4] for fields in words] == utterance.text.split()
        starts = [float(fields[2]) for fields in words]
        assert starts == sorted(starts) and starts[-1] + float(words[-1][3]) <= len(wave) / 16000 + 1e-3
        for _, _, start, length, _ in words[:: len(words) // 4]:  # the words are where the sound is
            first, last = (round(time * 16000) for time in (float(start), float(start) + float(length)))
            assert np.abs(wave[first:last]).max() > 0.02
    (out / "narratives.tsv").unlink()
    assert prepare.prepare(out, data) == {"train": 6, "dev": 6, "test": 6}
    assert not (data / "test_long").exists()


def test_prepare_names_the_missing_file(corpus: Path, tmp_path: Path) -> None:
    from speechclip.common.errors import MissingFileError

    with pytest.raises(MissingFileError, match="captions.tsv: is missing"):
        prepare.prepare(tmp_path, tmp_path / "data")


def test_shipped_demo_queries_find_their_scenes() -> None:
    from speechclip import SpeechCLIP
    from speechclip.search.index import ImageIndex

    models = MINI / "models"
    model, index = SpeechCLIP.from_pretrained(models / "hybrid"), ImageIndex.open(models / "demo" / "index")
    index.check_model(model, models / "hybrid")
    with (models / "demo" / "queries.tsv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert len(rows) == 6
    assert len(index) == len(list((models / "demo" / "images").glob("*.png"))) == 60
    speech = model.encode_speech([models / "demo" / "queries" / row["query"] for row in rows])
    found = [[index.ids[item] for item in ids] for ids in index.search(speech.numpy(), 5)[0]]
    assert sum(row["scene"] == ids[0] for row, ids in zip(rows, found, strict=True)) >= 4
    assert all(row["scene"] in ids for row, ids in zip(rows, found, strict=True))


def test_ship_model_writes_a_head_and_a_demo(corpus: Path, tmp_path: Path) -> None:
    from speechclip import SpeechCLIP
    from speechclip.search.index import ImageIndex

    source, models = MINI / "models", tmp_path / "models"
    for name in ("hubert", "clip"):
        shutil.copytree(source / name, models / name)
    head = ship_model.ship_head(source / "hybrid", source / "hybrid", models)
    demo = ship_model.ship_demo(head, corpus, models, scenes=2, queries=2)
    assert {path.name for path in models.iterdir()} == {"hubert", "clip", "hybrid", "demo"}
    index = ImageIndex.open(demo / "index")
    assert index.ids == ["test00000", "test00001"]
    assert Path(index.model_path()).resolve() == head.resolve()
    query = next(path for path in sorted((demo / "queries").iterdir()))
    ours, shipped = (SpeechCLIP.from_pretrained(folder).encode_speech(query) for folder in (head, source / "hybrid"))
    np.testing.assert_array_equal(ours.numpy(), shipped.numpy())
    texts = [path.read_text(encoding="utf-8") for path in models.rglob("*") if path.suffix in (".json", ".yaml")]
    assert not any(str(tmp_path) in text or str(MINI) in text for text in texts)


@pytest.mark.slow
def test_tour_runs_from_start_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbclient = pytest.importorskip("nbclient", reason="extra 'dev' is not installed: nbclient is missing")
    import nbformat

    monkeypatch.setenv("PYTHONPATH", str(MINI.parents[1]))
    notebook = nbformat.read(MINI / "tour.ipynb", as_version=4)
    nbclient.NotebookClient(notebook, timeout=250, resources={"metadata": {"path": str(tmp_path)}}).execute()
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    printed = ["".join(part["text"] for part in cell.outputs if part.get("name") == "stdout") for cell in cells]
    assert printed[1].startswith("a striped olive boat near a dotted crimson star")
    assert printed[2].splitlines()[3].endswith("a striped olive boat near a dotted crimson star")
    assert len(printed[3].splitlines()) == 8  # keywords
    assert printed[4].count("test000") == 4
    assert printed[5] == "['events']\n"
    assert all(not cell.outputs for cell in nbformat.read(MINI / "tour.ipynb", as_version=4).cells if "outputs" in cell)


def test_shipped_hubert_returns_finite_states() -> None:
    from speechclip.common.compat import prepare as prepare_packages

    prepare_packages()
    import torch
    from transformers import AutoFeatureExtractor, HubertModel

    folder = MINI / "models" / "hubert"
    model, extractor = HubertModel.from_pretrained(folder).float().eval(), AutoFeatureExtractor.from_pretrained(folder)
    assert model.config.feat_extract_norm == "layer"
    assert model.config.do_stable_layer_norm
    assert extractor.do_normalize
    samples, _ = speak.say("a red star above two boats", speak.VOICES["dev"]["dv01"])
    inputs = extractor(samples, sampling_rate=16000, return_tensors="pt").input_values
    with torch.inference_mode():
        states = model(inputs, output_hidden_states=True).hidden_states
    assert states[0].shape[1] == (len(samples) - 400) // 320 + 1
    assert all(bool(torch.isfinite(state).all()) for state in states)


def test_shipped_clip_retrieves_scenes() -> None:
    from speechclip.common.compat import prepare as prepare_packages

    prepare_packages()
    import open_clip
    import sentencepiece
    import tiny_clip
    import torch

    folder = MINI / "models" / "clip"
    model = open_clip.create_model(f"local-dir:{folder}").float().eval()
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / "spm.model"))
    drawn = [scenes.random_scene(11, "dev", index) for index in range(20)]
    pictures = np.stack([np.asarray(render.render(s, scenes.generator(11, "dev", i, 2))) for i, s in enumerate(drawn)])
    texts = [captions.captions_of(11, "dev", i, scene, 1)[0] for i, scene in enumerate(drawn)]
    tokens = torch.from_numpy(tiny_clip.encode(pieces, texts))
    assert int(tokens.max()) == model.vocab_size - 1 == pieces.get_piece_size() + 1
    with torch.inference_mode():
        seen = model.encode_image(torch.from_numpy(tiny_clip.to_input(pictures)), normalize=True)
        read = model.encode_text(tokens, normalize=True)
    assert bool(torch.isfinite(seen).all())
    assert bool(torch.isfinite(read).all())
    figures = tiny_clip.retrieval(seen.numpy(), read.numpy(), np.arange(20))
    assert figures["text->image"]["R@1"] >= 60
    assert figures["image->text"]["R@1"] >= 60


def test_recalls_match_a_solution_by_hand() -> None:
    import tiny_clip

    images, texts = np.eye(3), np.array([[1.0, 0, 0], [0, 0.2, 0.9], [0, 0.9, 0.1]])
    figures = tiny_clip.retrieval(images, texts, np.array([0, 1, 1]))
    assert figures["text->image"]["R@1"] == pytest.approx(66.67)
    assert figures["image->text"] == {"R@1": 66.67, "R@5": 66.67, "R@10": 66.67}
