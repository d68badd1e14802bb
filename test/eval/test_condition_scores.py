"""A recogniser with true transcripts against the topline, and scores under listening conditions."""

from __future__ import annotations

import json
from pathlib import Path

import fixtures
import numpy as np
import pytest
import torch

from speechclip.config import ClipConfig, SpeechEncoderConfig
from speechclip.data.conditioned import Interference
from speechclip.data.conditions import Condition
from speechclip.data.dataset import Batch, Split, StoreSource
from speechclip.eval.condition_systems import condition_report
from speechclip.eval.conditions import ConditionScorer, HeadSystem, RecognizerSystem, overtakes
from speechclip.eval.recognition import load_text_head, recognition_report, save_text_head
from speechclip.eval.score_files import write_conditions
from speechclip.features.clip import embed_texts, encode_captions
from speechclip.features.speech import extract_features
from speechclip.model.encoders.clip import OpenClip, load_clip
from speechclip.model.encoders.factory import load_speech_encoder
from speechclip.model.inference import embed_branches
from speechclip.model.network import Dimensions, build_network
from speechclip.model.recognizers.base import Recognizer, waves_of
from speechclip.model.text_head import TextHead
from speechclip.report.results.condition_tables import condition_tables
from speechclip.report.results.rows import ResultRow
from speechclip.report.runs import Scores
from speechclip.train.text_head import TextHeadSettings, dev_score, train_text_head


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> OpenClip:
    return load_clip(ClipConfig(str(fixtures.save_clip(tmp_path_factory.mktemp("clip") / "clip"))))


@pytest.fixture
def split(tmp_path: Path, clip: OpenClip) -> Split:
    data = fixtures.make_data(tmp_path / "test", images=6, each=3)
    fixtures.store_embeddings(data, tmp_path / "dump")
    embed_texts(data, tmp_path / "dump", clip, None)
    return Split.load(tmp_path / "test", tmp_path / "dump")


class _Oracle(Recognizer):
    """Recognises clean speech perfectly, and says nothing in noise."""

    name, description = "oracle", {"kind": "oracle"}

    def __init__(self, split: Split) -> None:
        self.known = {}
        source = Interference(split.data)
        for at, utterance in enumerate(split.data.utterances):
            wave = waves_of(_batch(source, at), "")[0]
            self.known[wave.numpy().tobytes()] = utterance.text

    def transcribe(self, batch: Batch) -> list[str]:
        return [self.known.get(wave.numpy().tobytes(), "") for wave in waves_of(batch, self.name)]


def _batch(interference: Interference, index: int) -> Batch:
    from speechclip.data.conditioned import ConditionedSource

    return ConditionedSource(interference, Condition("clean")).batch([index])


def test_true_transcripts_equal_the_topline(split: Split, clip: OpenClip) -> None:
    pytest.importorskip("jiwer", reason="the extra asr is not installed")
    texts = [utterance.clip_text for utterance in split.data.utterances]
    embeddings = np.concatenate(list(encode_captions(texts, clip)))
    report, ranks = recognition_report(split, texts, embeddings, 50)
    assert report["speech->image"] == report["text->image"]
    assert np.array_equal(ranks["speech->image"][0], ranks["text->image"][0])
    assert report["recognition"]["wer"] == 0.0
    worse, _ = recognition_report(split, ["" for _ in texts], embeddings, 50)
    assert worse["recognition"]["wer"] == 100.0


def test_text_head_learns_saves_and_loads(tmp_path: Path) -> None:
    data = fixtures.make_data(tmp_path / "train", images=30, each=2)
    fixtures.store_embeddings(data, tmp_path / "dump")
    split = Split.load(tmp_path / "train", tmp_path / "dump")
    assert split.texts is not None
    texts = split.texts / np.linalg.norm(split.texts, axis=1, keepdims=True)
    settings = TextHeadSettings(hidden=64, dropout=0.0, batch_size=30, steps=80, eval_interval=20, lr=1e-2)
    trained = train_text_head(texts, split, texts, split, settings, seed=0)
    untrained = TextHead(texts.shape[1], 8)
    assert np.allclose(untrained.embed(torch.from_numpy(texts)).numpy(), texts, atol=1e-6)  # it changes nothing
    assert trained.step > 0 and trained.dev_score > dev_score(untrained, torch.from_numpy(texts), split) + 20
    save_text_head(tmp_path / "head", trained.head, {"seed": 0})
    loaded = load_text_head(tmp_path / "head")
    assert np.array_equal(loaded.embed(torch.from_numpy(texts)).numpy(), trained.embed(texts))


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ([50, 40, 30], [60, 45, 20], 20 / 3),
        ([70, 40, 30], [60, 45, 40], "always"),
        ([50, 40, 20], [60, 45, 20], "never"),
    ],
)
def test_crossing_is_interpolated(first: list[float], second: list[float], expected: float | str) -> None:
    def conditions(scores: list[float]) -> dict[str, dict[str, object]]:
        return {
            f"white_{snr}": {"kind": "white", "value": float(snr), "speech->image": {"R@1": score}}
            for snr, score in zip((20, 10, 0), scores)
        }

    found = overtakes(conditions(first), conditions(second), "white")
    assert found == (pytest.approx(expected) if isinstance(expected, float) else expected)


def test_systems_are_scored_in_conditions(split: Split, clip: OpenClip, tmp_path: Path) -> None:
    pytest.importorskip("jiwer", reason="the extra asr is not installed")
    oracle, head = _Oracle(split), TextHead(fixtures.JOINT, 8).eval()
    systems = [RecognizerSystem("asr", 0, oracle, ""), RecognizerSystem("asr_head", 0, oracle, "", head)]
    unseen = np.array([utterance.speaker == "s1" for utterance in split.data.utterances])
    interference = Interference(split.data)
    scorer = ConditionScorer(split, interference, systems, {}, clip, unseen, batch_seconds=4.0, n_bootstrap=20)
    conditions = [Condition("clean"), Condition("white", 5.0), Condition("telephone"), Condition("held_out_speakers")]
    for condition in conditions:
        scorer.score(condition)
    found = scorer.scores["asr"].conditions
    assert list(found) == ["clean", "white_5", "telephone", "held_out_speakers"]
    texts = np.concatenate(list(encode_captions([u.clip_text for u in split.data.utterances], clip)))
    expected, _ = recognition_report(split, [u.text for u in split.data.utterances], texts, 20)
    assert found["clean"]["speech->image"] == expected["speech->image"]
    assert found["clean"]["recognition"]["wer"] == 0.0 and found["white_5"]["recognition"]["wer"] == 100.0
    assert found["held_out_speakers"]["n_utterances"] == 6
    assert scorer.scores["asr_head"].conditions["clean"]["speech->image"]["R@1"] == expected["speech->image"]["R@1"]
    report = condition_report(systems[0], systems, scorer.scores, conditions)
    report["provenance"] = {"data": {"test": "x"}}
    write_conditions(tmp_path / "scores", report, scorer.scores["asr"].ranks)
    assert json.loads((tmp_path / "scores" / "conditions.json").read_text())["conditions"].keys() == found.keys()


def test_clean_heads_equal_their_stored_features(tmp_path: Path) -> None:
    config = fixtures.with_paths(fixtures.settings(), hubert=fixtures.save_hubert(tmp_path / "hubert"))
    data = fixtures.make_data(tmp_path / "test", images=5, each=2)
    fixtures.store_embeddings(data, tmp_path / "dump")
    extract_features(config, str(data.path), str(tmp_path / "dump"), batch_seconds=60.0)
    split = Split.load(data.path, tmp_path / "dump")
    model = build_network(config.model, Dimensions(fixtures.WIDTH, fixtures.STATES, fixtures.JOINT)).eval()
    encoder = load_speech_encoder(config.model.speech_encoder)
    system = HeadSystem("head", 0, model, "e", half=True)
    unseen = np.ones(len(split.ids), bool)
    scorer = ConditionScorer(split, Interference(data), [system], {"e": encoder}, None, unseen, n_bootstrap=0)
    rows, _ = scorer._embed(Condition("clean"))
    stored = embed_branches(model, StoreSource(tmp_path / "dump", split.ids), 4)
    assert np.allclose(rows["head"], stored["parallel"], atol=1e-5)
    noisy, _ = scorer._embed(Condition("white", 0.0))
    assert not np.allclose(rows["head"], noisy["head"], atol=1e-2)


def _row(head: str, seed: int, score: float, wer: float | None = None) -> ResultRow:
    part = {"R@1": score, "R@10": score, "ci95": {"R@1": [score - 2, score + 2], "R@10": [score - 2, score + 2]}}
    entry = {"kind": "white", "value": 5.0, "speech->image": part}
    if wer is not None:
        entry["recognition"] = {"wer": wer, "ci95": {"wer": [wer, wer]}}
    content = {"conditions": {"white_5": entry}}
    if wer is None:
        test = {"R@1": {"difference": score - 30.0, "p": 0.04 if seed else 0.2}}
        content |= {
            "paired": {f"tiny_asr_ctc{'_seed1' if seed else ''}": {"white_5": test}},
            "overtakes": {f"tiny_asr_ctc{'_seed1' if seed else ''}": {"white": 7.25 if seed else "never"}},
        }
    scores = Scores(Path("conditions.json"), content)
    return ResultRow("mini", "tiny", head, "", seed, "conditions", "c", "t", "s", "command", "", scores)


def test_condition_tables_by_hand() -> None:
    rows = [_row("parallel", 0, 40.0), _row("parallel", 1, 50.0), _row("asr_ctc", 0, 30.0, wer=55.5)]
    tables = {table.title: table for table in condition_tables(rows)}
    cells = tables["Speech to images in listening conditions, R@1"].rows[0].cells
    assert [(cell.text, cell.interval) for cell in cells] == [("45.0", "[43.0, 47.0]"), ("30.0", "[28.0, 32.0]")]
    assert tables["Word error rate in listening conditions"].rows[0].cells[0].text == "55.5"
    assert tables["Paired differences in listening conditions, R@1"].rows[0].cells[0].text == "+15.0 (1/2)"
    assert tables["SNR in dB below which a head has a higher R@1, by seed"].rows[0].cells[0].text == "never; 7.2"
    assert condition_tables([]) == []


def test_condition_figure_is_drawn(tmp_path: Path) -> None:
    from speechclip.report.figures.condition_curves import condition_curves
    from speechclip.report.figures.style import write_figure

    rows = {
        "clean": ("clean", None),
        "white_20": ("white", 20.0),
        "white_5": ("white", 5.0),
        "reverb": ("reverb", None),
    }
    part = {"R@1": 40.0, "ci95": {"R@1": [35.0, 45.0]}}
    content = {name: {"kind": kind, "value": value, "speech->image": part} for name, (kind, value) in rows.items()}
    figure = condition_curves({"parallel": [content, content], "asr ctc": [content]})
    assert [axes.get_title() for axes in figure.axes] == ["white", "other conditions"]
    assert [line.get_label() for line in figure.axes[0].get_lines()] == ["parallel", "asr ctc"]
    assert [len(line.get_xdata()) for line in figure.axes[0].get_lines()] == [3, 3]
    files = write_figure(tmp_path / "x", tmp_path / "figure", condition_curves, {"parallel": [content]})
    assert all(path.stat().st_size > 1000 for path in files)


def test_heads_need_an_encoder_once(tmp_path: Path) -> None:
    from speechclip.eval.condition_systems import Systems

    folder = str(fixtures.save_hubert(tmp_path / "hubert"))
    systems = Systems()
    first = systems._encoder(SpeechEncoderConfig(path=folder))
    assert systems._encoder(SpeechEncoderConfig(path=folder)) == first and len(systems.encoders) == 1
