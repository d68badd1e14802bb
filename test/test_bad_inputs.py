"""Bad inputs, each with the exact error line. All run in one process: no training and no subprocess."""

from __future__ import annotations

import pickle
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from bad_inputs import (
    BOMB,
    Act,
    C,
    Evil,
    P,
    archive,
    arrays,
    audio,
    checkpoint,
    copied,
    corpus,
    ctm,
    encoder,
    in_data,
    in_dump,
    key_bomb,
    layer,
    link,
    option,
    saved,
    table,
    tar,
    torch_file,
    two_widths,
    wav,
    without,
    words,
    wrote,
    zipped,
)  # fmt: skip
from fixtures import make_data, store_embeddings, store_features, wave

from speechclip.checkpoint.folder import read_checkpoint, read_weights
from speechclip.common.errors import UserError
from speechclip.config import load
from speechclip.convert.torchfile import read_torch_file
from speechclip.data.alignments import read_ctm
from speechclip.data.audio import load_audio
from speechclip.data.corpora.flickr8k import prepare_flickr8k
from speechclip.data.dataset import Split, StoreSource
from speechclip.data.embeddings import load_embeddings
from speechclip.data.features import FeatureStore, write_index
from speechclip.data.images import load_image
from speechclip.data.kaldi import DataDir, read_table
from speechclip.data.vocabulary import Vocabulary
from speechclip.eval.score_files import compare_rank_files
from speechclip.features.clip import vocabulary_texts
from speechclip.train.state import read_progress


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a data directory ``d`` of two images and its ``dump``."""
    folder = tmp_path_factory.mktemp("good")
    data = make_data(folder / "d", images=2, each=1)
    store_embeddings(data, folder / "dump")
    store_features(data, folder / "dump")
    return folder


ROWS: list[tuple[str, Act, str]] = [
    ("table_missing", lambda t: read_table(t / "wav.scp"),
     "{t}/wav.scp: is missing"),
    ("table_empty", table(""),
     "{t}/wav.scp: empty"),
    ("table_no_value", table("a\n"),
     "{t}/wav.scp:1: 'a': no value"),
    ("table_duplicate", table("a x\na y\n"),
     "{t}/wav.scp:2: duplicate id 'a'"),
    ("table_unsorted", table("b x\na y\n"),
     "{t}/wav.scp:2: not sorted: 'a' after 'b' (sort with LC_ALL=C)"),
    ("table_not_utf8", table(b"a \xff\n"),
     "{t}/wav.scp:1: not UTF-8 (byte 0xff at column 3)"),
    ("table_windows", table("a x\r\n"),
     "{t}/wav.scp:1: ends in a carriage return (Windows line end)"),
    ("table_mark", table("\ufeffa x\n"),
     "{t}/wav.scp:1: starts with a byte order mark"),
    ("table_no_key", table(" x\n"),
     "{t}/wav.scp:1: no id at the start of the line"),
    ("table_blank_line", table("a x\n\nb y\n"),
     "{t}/wav.scp:2: no id at the start of the line"),
    ("table_hard_space", table("a\u00a0b x\n"),
     "{t}/wav.scp:1: white space in the id 'a\\xa0b'"),
    ("table_two_problems", table("a\nb\n"),
     "{t}/wav.scp:1: 'a': no value (and 1 more)"),
    ("data_missing", lambda t: DataDir.load(t / "none"),
     "{t}/none/wav.scp: is missing"),
    ("data_command", in_data("wav.scp", r" .*$", " sox a.wav -t wav - |"),
     "{t}/d/wav.scp: 's0-i00': a command, not a path: sox a.wav -t wav - |"),
    ("data_no_audio", in_data("wav.scp", r" .*$", " ../../nothing.wav"),
     "{t}/d/wav.scp: 's0-i00': missing audio file ../../nothing.wav"),
    ("data_no_image", in_data("img.scp", r" .*$", " nothing.png"),
     "{t}/d/img.scp: 'i00': missing image file nothing.png"),
    ("data_folder_as_audio", in_data("wav.scp", r" .*$", " /"),
     "{t}/d/wav.scp: 's0-i00': missing audio file /"),
    ("data_text_lacks", in_data("text", r"^.*\n", ""),
     "{t}/d/text: utterance 's0-i00' of wav.scp is missing"),
    ("data_image_lacks", in_data("utt2img", r" i00", " i07"),
     "{t}/d/img.scp: image 'i07' of utterance 's0-i00' is missing (and 1 more)"),
    ("data_speaker_lacks", in_data("spk2utt", r"^s0", "s9"),
     "{t}/d/spk2utt: speaker 's0' of utt2spk is missing (and 1 more)"),
    ("data_other_speaker", in_data("utt2spk", r" s0", " s1"),
     "{t}/d/spk2utt: speaker 's0': not the utterances that utt2spk gives this speaker (and 1 more)"),
    ("split_no_embeddings", without("dump/image_embeddings.npz", lambda t: Split.load(t / "d", t / "dump")),
     "{t}/dump/image_embeddings.npz: is missing"),
    ("split_other_image", lambda t: load_embeddings(t / "dump/image_embeddings.npz", ["a00"]),
     "{t}/dump/image_embeddings.npz: no embedding for a00"),
    ("store_no_index", without("dump/feats.scp", lambda t: FeatureStore(t / "dump")),
     "{t}/dump/feats.scp: is missing"),
    ("store_traversal", in_dump("feats.scp", lambda c: c.replace(b"feats.0000", b"../feats.0000")),
     "{t}/dump/feats.scp: 's0-i00': not a shard and a number of frames: ../feats.0000.safetensors 27."
     " Extract the features again."),
    ("store_no_number", in_dump("feats.scp", lambda c: c.replace(b"\n", b"x\n", 1)),
     "{t}/dump/feats.scp: 's0-i00': not a shard and a number of frames: feats.0000.safetensors 27x."
     " Extract the features again."),
    ("store_no_shard", without("dump/feats.0000.safetensors", lambda t: FeatureStore(t / "dump")),
     "{t}/dump/feats.0000.safetensors: is missing"),
    ("store_cut", in_dump("feats.0000.safetensors", lambda c: c[:-1]),
     "{t}/dump/feats.0000.safetensors: truncated or corrupt features (19063 of 19064 bytes)."
     " Extract the features again."),
    ("store_no_header", in_dump("feats.0000.safetensors", lambda c: c[:7]),
     "{t}/dump/feats.0000.safetensors: truncated or corrupt features (no readable header)."
     " Extract the features again."),
    ("store_huge_header", in_dump("feats.0000.safetensors", lambda c: b"\xff" * 8 + c[8:]),
     "{t}/dump/feats.0000.safetensors: truncated or corrupt features (no readable header)."
     " Extract the features again."),
    ("store_other_format", in_dump("feats.0000.safetensors", lambda c: c.replace(b"features 1", b"features 9")),
     "{t}/dump/feats.0000.safetensors: not a shard of features. Extract the features again."),
    ("store_lacks_one", lambda t: write_index(t / "dump", ["other", "no1"]),
     "{t}/dump/feats.scp: no features of utterance 'no1' and 1 more"),
    ("store_lacks_layer", lambda t: StoreSource(t / "dump", ["s0-i00"], [0, 9]),
     "{t}/dump/feats.scp: layer 9 is not stored, only [0, 1, 2]"),
    ("ctm_missing", lambda t: read_ctm(t / "ctm"),
     "{t}/ctm: is missing. Check the path."),
    ("ctm_short", ctm("a 1 0.0 0.5\n"),
     "{t}/ctm: line 1: not valid. Write utterance, channel, start, duration and word."),
    ("ctm_word_for_time", ctm("a 1 0.0 0.5 dog\na 1 soon 0.5 dog\n"),
     "{t}/ctm: line 2: not valid. Write utterance, channel, start, duration and word."),
    ("ctm_negative", ctm("a 1 -1 0.5 dog\n"),
     "{t}/ctm: line 1: not valid. Write utterance, channel, start, duration and word."),
    ("ctm_endless", ctm("a 1 0 inf dog\n"),
     "{t}/ctm: line 1: not valid. Write utterance, channel, start, duration and word."),
    ("ctm_not_utf8", ctm(b"a 1 0 1 \xff\n"),
     "{t}/ctm: not UTF-8. Save it as UTF-8."),
    ("ctm_of_others", ctm("b 1 0 1 dog\n"),
     "{t}/ctm: no alignment of the 1 utterances. Check the utterance ids."),
    ("words_missing", lambda t: Vocabulary.load(t / "v.tsv"),
     "{t}/v.tsv: is missing"),
    ("words_empty", words(""),
     "{t}/v.tsv: empty. Extract the CLIP embeddings again."),
    ("words_two_fields", words("1\t2\n"),
     "{t}/v.tsv: line 1: expected id, count and subword, separated by tabs. Correct the line."),
    ("words_no_number", words("1\t2\ta\nx\t2\tb\n"),
     "{t}/v.tsv: line 2: expected id, count and subword, separated by tabs. Correct the line."),
    ("words_twice", words("1\t2\ta\n1\t1\tb\n"),
     "{t}/v.tsv: an id occurs twice. Extract the CLIP embeddings again."),
    ("words_not_utf8", words(b"1\t2\t\xff\n"),
     "{t}/v.tsv: not UTF-8. Extract the CLIP embeddings again."),
    ("captions_no_tab", lambda t: vocabulary_texts([], wrote(t, "captions.tsv", "train\ta\nb c\n"), only_train=True),
     "{t}/captions.tsv: line 2: expected split and caption, separated by a tab. Correct the line."),
    ("arrays_missing", lambda t: load_embeddings(t / "e.npz"),
     "{t}/e.npz: is missing"),
    ("arrays_text", lambda t: load_embeddings(wrote(t, "e.npz", "ids")),
     "{t}/e.npz: not a readable .npz file. Save it with numpy.savez."),
    ("arrays_one", arrays(ids=["a"]),
     "{t}/e.npz: needs the arrays ids and embeddings. Save it with both."),
    ("arrays_pickled", arrays(ids=np.array(["a"], dtype=object), embeddings=np.ones((1, 2))),
     "{t}/e.npz: not a readable .npz file. Save it with numpy.savez."),
    ("arrays_words", arrays(ids=["a"], embeddings=np.array([["x", "y"]])),
     "{t}/e.npz: the embeddings are not numbers. Save it with an array of numbers."),
    ("arrays_too_few", arrays(ids=["a", "b"], embeddings=np.ones((1, 2))),
     "{t}/e.npz: 2 ids for embeddings of shape (1, 2). Store a row for each id."),
    ("arrays_twice", arrays(ids=["a", "a"], embeddings=np.ones((2, 2))),
     "{t}/e.npz: duplicate ids. Save each id once."),
    ("arrays_lack", arrays(ids=["b"], embeddings=np.ones((1, 2))),
     "{t}/e.npz: no embedding for a"),
    ("arrays_zero", arrays(ids=["a"], embeddings=np.zeros((1, 2))),
     "{t}/e.npz: the embedding of a is zero or not finite. Remove or correct it."),
    ("arrays_nan", arrays(ids=["a"], embeddings=np.full((1, 2), np.nan)),
     "{t}/e.npz: the embedding of a is zero or not finite. Remove or correct it."),
    ("arrays_bomb", lambda t: load_embeddings(wrote(t, "e.npz", zipped(("embeddings.npy", bytes(1 << 22))))),
     "{t}/e.npz: refused: 4206 bytes would unpack to 4194304. Save it again uncompressed."),
    ("scores_widths", two_widths,
     "{t}/g.npz: 3 dimensions, {t}/q.npz has 2. Use embeddings of one joint space."),
    ("ranks_missing", lambda t: compare_rank_files([t / "a.npz"], [t / "b.npz"]),
     "{t}/a.npz: is missing"),
    ("ranks_text", lambda t: compare_rank_files([wrote(t, "a.npz", "x")], [t / "b.npz"]),
     "{t}/a.npz: not a readable .npz file. Save it with numpy.savez."),
    ("config_missing", lambda t: load([t / "c.yaml"]),
     "{t}/c.yaml: is missing. Give an existing configuration file."),
    ("config_empty", layer(""),
     "{t}/c.yaml: is empty. A configuration sets at least one key."),
    ("config_list", layer("- 1\n"),
     "{t}/c.yaml: a configuration is a mapping of keys, not list. Write 'key: value' lines."),
    ("config_syntax", layer("a: [\n"),
     "{t}/c.yaml: not a YAML file: while parsing a flow node expected the node content, but found '<stream "
     "end>'   in \"<unicode string>\", line 2, column 1:          ^. Correct the YAML."),
    ("config_unknown", layer("optim:\n  learning_rate: 1\n"),
     "{t}/c.yaml: unknown configuration key 'optim.learning_rate'; did you mean 'optim.weight_decay'?"),
    ("config_type", layer("optim:\n  lr: fast\n"),
     "\"optim.lr\": Expected a <class 'float'>. Got value: fast"),
    ("config_range", layer("optim:\n  lr: 0\n"),
     "optim.lr: 0.0 is not positive. Change the value."),
    ("config_choice", layer("data:\n  feats: none\n"),
     "\"data.feats\": Expected a typing.Literal['dump', 'online']. Got value: none"),
    ("config_code", layer("optim: !!python/object/apply:os.system [touch x]\n"),
     "{t}/c.yaml: not a YAML file: could not determine a constructor for the tag "
     "'tag:yaml.org,2002:python/object/apply:os.system'   in \"<unicode string>\", line 1, column 8:     "
     "optim: !!python/object/apply:os.system  ...             ^. Correct the YAML."),
    ("config_bomb", layer(BOMB + "optim:\n  lr: *h\n"),
     "{t}/c.yaml: expands to more than 10000 values. Write out fewer anchors."),
    ("config_within_itself", layer("optim: &o\n  lr: *o\n"),
     "{t}/c.yaml: expands to more than 10000 values. Write out fewer anchors."),
    ("config_deep", layer("optim: " + "[" * 2000 + "]" * 2000),
     "{t}/c.yaml: nested too deeply for a configuration. Remove some levels."),
    ("config_large", layer("# " + "x" * (1 << 20) + "\n"),
     "{t}/c.yaml: too large for a configuration, which has at most 1048576 bytes. Remove what is not configuration."),
    ("config_date", layer("optim:\n  lr: 2020-13-45\n"),
     "{t}/c.yaml: not a YAML file: month must be in 1..12. Correct the YAML."),
    ("option_unknown", option("--optim.lrr", "1"),
     "unknown configuration key 'optim.lrr'; did you mean 'optim.lr'?"),
    ("option_type", option("--optim.max_steps", "1.5"),
     "\"optim.max_steps\": Expected a <class 'int'>. Got value: 1.5"),
    ("option_range", option("--data.batch_size=0"),
     "data.batch_size: 0 is not at least 2. Change the value."),
    ("option_no_value", option("--optim.lr"),
     "argument --optim.lr: expected one argument"),
    ("option_stray", option("stray"),
     "unrecognized arguments: stray"),
    ("checkpoint_missing", lambda t: read_checkpoint(t / "c"),
     "{t}/c/model.safetensors: is missing"),
    ("checkpoint_file. Save it with numpy.savez.", lambda t: read_checkpoint(wrote(t, "c.ckpt", "")),
     "{t}/c.ckpt: a file, not a checkpoint folder. Convert a published checkpoint with tools/convert_checkpoint.sh."),
    ("checkpoint_no_provenance", checkpoint(config="optim:\n  lr: 1\n"),
     "{t}/c/provenance.json: is missing"),
    ("checkpoint_list", checkpoint(config="optim:\n  lr: 1\n", provenance="[]"),
     "{t}/c/provenance.json: a JSON object is needed, this is a list. Correct the file."),
    ("checkpoint_no_config", checkpoint(provenance=P),
     "{t}/c/config.yaml: is missing. Give an existing configuration file."),
    ("checkpoint_unknown_key", checkpoint(provenance=P, config="run: rm\n"),
     "{t}/c/config.yaml: unknown configuration key 'run'"),
    ("checkpoint_sums", checkpoint(provenance=P, config=C, sums="0" * 64 + "  model.safetensors\n"),
     "{t}/c/model.safetensors: damaged or truncated: its checksum differs. No previous checkpoint exists."),
    ("checkpoint_sums_elsewhere", checkpoint(provenance=P, config=C, sums="0" * 64 + "  ../../etc/passwd\n"),
     "{t}/c/SHA256SUMS: damaged or truncated: its checksum differs. No previous checkpoint exists."),
    ("weights_text", lambda t: read_weights(wrote(t, "w.safetensors", "weights")),
     "{t}/w.safetensors: damaged or truncated: Error while deserializing header: header too small."
     " Copy the checkpoint again."),
    ("progress_text", lambda t: read_progress(wrote(t, "training_state.json", "{").parent),
     "{t}/training_state.json: missing or damaged. Move {t} away to start training over."),
    ("progress_unknown", lambda t: read_progress(wrote(t, "training_state.json", '{"steps": 3}').parent),
     "{t}/training_state.json: missing or damaged. Move {t} away to start training over."),
    ("audio_missing", lambda t: load_audio(t / "a.wav"),
     "{t}/a.wav: missing audio file. Check the path."),
    ("audio_folder", lambda t: load_audio(t),
     "{t}: not a file. Check the path."),
    ("audio_empty", audio(b""),
     "{t}/a.wav: empty audio file (0 bytes). Copy the file again."),
    ("audio_text", audio(b"hello, is this a recording?"),
     "{t}/a.wav: not readable as audio (Format not recognised). Convert the file to wav or flac."),
    ("audio_no_samples", audio(wav(np.zeros(0, dtype=np.float32))),
     "{t}/a.wav: zero-length audio. Record it again."),
    ("audio_cut", audio(wav(wave(800, 0))[:-100]),
     "{t}/a.wav: truncated audio: 1500 of 1600 bytes of samples. Copy the file again."),
    ("audio_nan", audio(wav(np.full(100, np.nan, dtype=np.float32), subtype="FLOAT")),
     "{t}/a.wav: NaN or infinite samples. Write the file again."),
    ("image_missing", lambda t: load_image(t / "i.png"),
     "{t}/i.png: missing image file. Check the path."),
    ("image_text", lambda t: load_image(wrote(t, "i.png", "a picture")),
     "{t}/i.png: not an image. Save it as JPEG or PNG."),
    ("image_empty", lambda t: load_image(wrote(t, "i.png", "")),
     "{t}/i.png: empty image file (0 bytes). Copy the file again."),
    ("torch_missing", lambda t: read_torch_file(t / "f.pt"),
     "{t}/f.pt: is missing. Check the path."),
    ("torch_text", torch_file(b"weights"),
     "{t}/f.pt: damaged pickle (ValueError: at position 0, opcode b'w' unknown). Give a file of torch."),
    ("torch_python_pickle", torch_file(pickle.dumps({"a": 1}, protocol=2)),
     "{t}/f.pt: a pickle, but not written by torch. Use a checkpoint file."),
    ("torch_code", torch_file(saved({"state_dict": Evil()})),
     "{t}/f.pt: calls __builtin__.print, which is refused: only plain values are read."
     " Use a file from a source that you trust."),
    ("torch_code_legacy", torch_file(saved(Evil(), _use_new_zipfile_serialization=False)),
     "{t}/f.pt: calls __builtin__.print, which is refused: only plain values are read."
     " Use a file from a source that you trust."),
    ("torch_cut", torch_file(saved({"a": torch.ones(99)})[:-400]),
     "{t}/f.pt: damaged or truncated: a zip archive without its end. Copy or download the file again."),
    ("torch_zip_of_others", torch_file(zipped(("x.txt", b"x"))),
     "{t}/f.pt: data.pkl is missing in the zip archive: not written by torch. Use a checkpoint file."),
    ("torch_bomb", torch_file(zipped(("a/data.pkl", bytes(1 << 22)))),
     "{t}/f.pt: would unpack from 4198 to 4194304 bytes: refused. Use a file from a source that you trust."),
    ("torch_key_bomb", torch_file(zipped(("a/data.pkl", key_bomb()))),
     "{t}/f.pt: damaged pickle (TypeError: a key is a nested container). Give a file of torch."),
    ("clip_missing", encoder(lambda t: t / "clip", "clip"),
     "{t}/clip: no such folder. A CLIP is an open_clip folder, hf-hub:ID or NAME:PRETRAINED."),
    ("clip_empty", encoder(lambda t: t, "clip"),
     "{t}/open_clip_config.json: is missing. A CLIP folder has open_clip's format."),
    ("encoder_empty", encoder(lambda t: t),
     "{t}/config.json: is missing. A speech encoder is a transformers folder or a hub id."),
    ("encoder_text", encoder(lambda t: wrote(t, "h.pt", "x")),
     "{t}/h.pt: damaged pickle (ValueError: at position 0, opcode b'x' unknown). Give a file of torch."),
    ("zip_climbs", archive("a.zip", zipped(("../evil", b"x"))),
     "a.zip: damaged archive (../evil is outside of the folder). Put x into {t} yourself (ask)."),
    ("zip_absolute", archive("a.zip", zipped(("/tmp/evil", b"x"))),
     "a.zip: damaged archive (/tmp/evil is outside of the folder). Put x into {t} yourself (ask)."),
    ("zip_bomb", archive("a.zip", zipped(*((str(at), bytes(1 << 24)) for at in range(3)))),
     "a.zip: refused: would unpack to over 34 MB or 10000000 files. Put x into {t} yourself (ask)."),
    ("zip_cut", archive("a.zip", zipped(("x", b"x" * 1000), method=zipfile.ZIP_STORED)[:-9]),
     "a.zip: damaged archive (neither zip nor tar). Put x into {t} yourself (ask)."),
    ("tar_climbs", archive("a.tar.gz", tar((tarfile.TarInfo("../evil"), b"x"))),
     "a.tar.gz: damaged archive (../evil is outside of the folder). Put x into {t} yourself (ask)."),
    ("tar_link", archive("a.tar.gz", tar((link("x", "/etc"), b""), (tarfile.TarInfo("x/evil"), b"x"))),
     "a.tar.gz: damaged archive (x is outside of the folder). Put x into {t} yourself (ask)."),
    ("tar_bomb", archive("a.tar.gz", tar(*((tarfile.TarInfo(str(at)), bytes(1 << 24)) for at in range(3)))),
     "a.tar.gz: refused: would unpack to over 34 MB or 10000000 files. Put x into {t} yourself (ask)."),
    ("tar_lacks", archive("a.tar.gz", tar((tarfile.TarInfo("y"), b"y"))),
     "a.tar.gz: does not contain x. Put x into {t} yourself (ask)."),
    ("corpus_missing", lambda t: prepare_flickr8k(t / "f", t / "data"),
     "{t}/f: no such corpus folder. Check the path."),
    ("tokens_no_tab", corpus("Flickr8k_text/Flickr8k.token.txt", "1.jpg#0 a dog\n"),
     "{t}/f/Flickr8k_text/Flickr8k.token.txt:1: not <image>#<number><tab><caption>. Correct the line."),
    ("tokens_no_number", corpus("Flickr8k_text/Flickr8k.token.txt", "1.jpg#x\ta dog\n"),
     "{t}/f/Flickr8k_text/Flickr8k.token.txt:1: not <image>#<number><tab><caption>. Correct the line."),
    ("tokens_two", corpus("Flickr8k_text/Flickr8k.token.txt", "1.jpg#0\ta dog\n1.jpg#0\ta cat\n"),
     "{t}/f/Flickr8k_text/Flickr8k.token.txt:2: another caption 1.jpg#0. Remove one of them."),
    ("tokens_not_utf8", corpus("Flickr8k_text/Flickr8k.token.txt", b"1.jpg#0\t\xff\n"),
     "{t}/f/Flickr8k_text/Flickr8k.token.txt:1: not UTF-8 (byte 0xff). Use the original file."),
    ("recordings_fields", corpus("flickr_audio/wav2capt.txt", "1_0.wav 1.jpg 0\n"),
     "{t}/f/flickr_audio/wav2capt.txt:1: not <recording> <image> #<number>. Correct the line."),
    ("speakers_number", corpus("flickr_audio/wav2spk.txt", "1_0.wav seven\n"),
     "{t}/f/flickr_audio/wav2spk.txt:1: not <recording> <speaker number>. Correct the line."),
    ("splits_both", corpus("Flickr8k_text/Flickr_8k.devImages.txt", "1.jpg\n"),
     "{t}/f/Flickr8k_text/Flickr_8k.devImages.txt:1: 1.jpg is in train as well. Remove it from one of them."),
]  # fmt: skip


@pytest.mark.parametrize(("name", "act", "line"), ROWS, ids=[row[0] for row in ROWS])
def test_bad_input_is_one_line(
    good: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str, act: Act, line: str
) -> None:
    copied(good, tmp_path)
    before = {path for path in tmp_path.parent.iterdir() if path != tmp_path}
    with pytest.raises(UserError) as caught:
        act(tmp_path)
    assert str(caught.value).replace(str(tmp_path), "{t}") == line
    assert "ran" not in capfd.readouterr().out
    assert before == {path for path in tmp_path.parent.iterdir() if path != tmp_path}  # no other file was written
    assert not Path("/tmp/evil").exists()


def test_bad_inputs_are_many_and_different() -> None:
    assert len({row[0] for row in ROWS}) == len(ROWS) >= 60
    assert len({row[2] for row in ROWS}) > 0.8 * len(ROWS)
