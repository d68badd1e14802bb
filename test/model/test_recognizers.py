"""Recognisers: CTC over hidden states, models of transformers with random weights, and pocketsphinx."""

from __future__ import annotations

import json
from pathlib import Path

import fixtures
import pytest
import torch

from speechclip.checkpoint.recognizers import load_recognizer, save_ctc
from speechclip.common.compat import prepare
from speechclip.common.errors import UserError
from speechclip.config import SpeechEncoderConfig
from speechclip.data.dataset import Batch, StoreSource
from speechclip.model.recognizers.ctc import (
    CtcNetwork,
    CtcRecognizer,
    CtcSettings,
    best_path,
    count_units,
    split_units,
)
from speechclip.train.recognizer import CtcTraining, train_ctc

SMALL = CtcSettings(width=16, layers=1, stride=2, kernel=3, dropout=0.0)


def _waves(*seconds: float) -> Batch:
    waves = tuple(torch.from_numpy(fixtures.wave(round(16000 * s), at)) for at, s in enumerate(seconds))
    return Batch(torch.arange(len(waves)), None, None, waves)


@pytest.mark.parametrize(
    ("kind", "expected"), [("words", ["red", "a", "dog"]), ("characters", ["d", " ", "e", "r", "a", "g", "o"])]
)
def test_units_are_counted(kind: str, expected: list[str]) -> None:
    assert count_units(["red  a", "Red dog"], kind) == expected


def test_captions_are_split_into_units() -> None:
    assert split_units(" A  dog ", "words") == ["a", "dog"]
    assert split_units("A  b", "characters") == ["a", " ", "b"]


def test_best_path_merges_repetitions_and_blanks() -> None:
    path = torch.tensor([[1, 1, 0, 1, 2, 2, 0, 0], [0, 2, 2, 1, 1, 1, 1, 1]])
    scores = torch.nn.functional.one_hot(path, 3).float()
    assert best_path(scores, torch.tensor([8, 3])) == [[1, 1, 2], [2]]


def test_ctc_network_ignores_padding() -> None:
    torch.manual_seed(0)
    network = CtcNetwork(3, 8, 5, SMALL).eval()
    states = torch.randn(2, 3, 11, 8)
    both, lengths = network(states, torch.tensor([11, 5]))
    alone, _ = network(states[1:, :, :5], torch.tensor([5]))
    assert lengths.tolist() == [6, 3] and both.shape == (2, 6, 6)
    assert torch.allclose(both[1, :3], alone[0], atol=1e-5)
    assert torch.allclose(both.exp().sum(-1), torch.ones(2, 6), atol=1e-5)


def test_ctc_learns_saves_and_loads(tmp_path: Path) -> None:
    pytest.importorskip("jiwer", reason="the extra asr is not installed")
    data = fixtures.make_data(tmp_path / "train", images=4, each=3)
    fixtures.store_features(data, tmp_path / "dump")
    source = StoreSource(tmp_path / "dump", [u.id for u in data.utterances])
    training = CtcTraining(batch_size=6, steps=60, lr=1e-2, eval_interval=30)
    trained = train_ctc(data, source, data, source, (3, fixtures.WIDTH), SMALL, training, seed=0)
    assert trained.facts["dev_wer"] < 60  # the untrained network says nothing: 100
    encoder = SpeechEncoderConfig(path=str(fixtures.save_hubert(tmp_path / "hubert")))
    weights = trained.network.state_dict()
    save_ctc(tmp_path / "asr", weights, trained.units, SMALL, encoder, trained.shape, {"seed": 0})
    loaded = load_recognizer(str(tmp_path / "asr"))
    batch = source.batch(range(6))
    before = CtcRecognizer("ctc", trained.network, trained.units, "words", {})
    assert loaded.transcribe(batch) == before.transcribe(batch)
    assert len(loaded.transcribe(_waves(0.5, 0.3))) == 2  # waveforms pass the encoder
    with pytest.raises(UserError, match="not loaded"):
        load_recognizer(str(tmp_path / "asr"), stored=True).transcribe(_waves(0.5))


def test_damaged_ctc_folder_is_one_line(tmp_path: Path) -> None:
    network = CtcNetwork(3, 8, 2, SMALL)
    save_ctc(tmp_path / "asr", network.state_dict(), ["a"], SMALL, SpeechEncoderConfig(path="x"), (3, 8), {})
    with pytest.raises(UserError, match="damaged recogniser"):  # a unit is missing
        load_recognizer(str(tmp_path / "asr"), stored=True)


def _save_wav2vec(folder: Path) -> Path:
    """Write a random CTC model of transformers with characters as its units."""
    prepare()
    import transformers

    folder.mkdir()
    units = ["<pad>", "<unk>", "|", *"abcdefgh"]
    (folder / "vocab.json").write_text(json.dumps({unit: at for at, unit in enumerate(units)}))
    tokenizer = transformers.Wav2Vec2CTCTokenizer(
        str(folder / "vocab.json"), pad_token="<pad>", unk_token="<unk>", word_delimiter_token="|"
    )
    extractor = transformers.Wav2Vec2FeatureExtractor()
    transformers.Wav2Vec2Processor(extractor, tokenizer).save_pretrained(folder)
    config = transformers.Wav2Vec2Config(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, conv_dim=[8] * 7,
        num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=2, vocab_size=len(units), pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.Wav2Vec2ForCTC(config).save_pretrained(folder)
    return folder


def test_ctc_model_of_transformers_reads_long_audio(tmp_path: Path) -> None:
    recognizer = load_recognizer(str(_save_wav2vec(tmp_path / "wav2vec")))
    texts = recognizer.transcribe(_waves(0.5, 40.0, 1.0))
    assert recognizer.name == "wav2vec" and len(texts) == 3
    assert all(set(text.replace("<unk>", "")) <= set("abcdefgh ") for text in texts)
    assert texts[0] == recognizer.transcribe(_waves(0.5))[0]  # the batch has no effect
    assert len(texts[1]) > len(texts[0])


def _save_whisper(folder: Path) -> Path:
    """Write a random Whisper of transformers with bytes and timestamps as its units. It never ends early."""
    prepare()
    import transformers
    from transformers.models.gpt2.tokenization_gpt2 import bytes_to_unicode

    folder.mkdir()
    special = ["<|endoftext|>", "<|startoftranscript|>", "<|notimestamps|>"]
    vocabulary = [*bytes_to_unicode().values(), special[0]]
    (folder / "vocab.json").write_text(json.dumps({unit: at for at, unit in enumerate(vocabulary)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = transformers.WhisperTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
    tokenizer.add_special_tokens({"additional_special_tokens": special[1:]})
    tokenizer.add_tokens([f"<|{0.02 * at:.2f}|>" for at in range(1501)])
    transformers.WhisperProcessor(transformers.WhisperFeatureExtractor(), tokenizer).save_pretrained(folder)
    end, start, plain = tokenizer.convert_tokens_to_ids(special)
    ends = {"decoder_start_token_id": start, "eos_token_id": end, "pad_token_id": end, "bos_token_id": end}
    config = transformers.WhisperConfig(
        vocab_size=len(tokenizer), d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, max_target_positions=24,
        suppress_tokens=None, begin_suppress_tokens=None, **ends,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.WhisperForConditionalGeneration(config)
    model.generation_config = transformers.GenerationConfig(
        max_length=12, no_timestamps_token_id=plain, is_multilingual=False, return_timestamps=False,
        max_initial_timestamp_index=1, suppress_tokens=[end, start], **ends,
    )  # fmt: skip
    model.save_pretrained(folder)
    return folder


def test_whisper_reads_batches_and_long_audio(tmp_path: Path) -> None:
    recognizer = load_recognizer(str(_save_whisper(tmp_path / "whisper")))
    texts = recognizer.transcribe(_waves(0.5, 1.0, 40.0))
    assert len(texts) == 3 and texts[2]  # only timestamps and special tokens are left out
    assert texts[:2] == recognizer.transcribe(_waves(0.5, 1.0))
    assert recognizer.description["kind"] == "whisper"


def test_wrong_recognisers_are_one_line(tmp_path: Path) -> None:
    fixtures.save_hubert(tmp_path / "hubert")
    for path in (tmp_path / "missing", tmp_path / "hubert"):
        with pytest.raises(UserError) as error:
            load_recognizer(str(path))
        assert "\n" not in str(error.value) and path.name in str(error.value)


def test_pocketsphinx_needs_no_network() -> None:
    pytest.importorskip("pocketsphinx", reason="the extra asr is not installed")
    recognizer = load_recognizer("pocketsphinx")
    assert recognizer.weak and recognizer.name == "pocketsphinx"
    first = recognizer.transcribe(_waves(0.6, 0.4))
    assert len(first) == 2 and all(isinstance(text, str) for text in first)
    assert recognizer.transcribe(_waves(0.6, 0.4)) == first
    with pytest.raises(UserError, match="needs waveforms"):
        recognizer.transcribe(Batch(torch.arange(1), torch.zeros(1, 1, 2, 3), torch.tensor([2]), None))
