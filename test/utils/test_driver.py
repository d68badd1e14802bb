"""utils/driver.sh and utils/stages.sh: order, stamps, locks and failures. The stage scripts are stubs."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import sys
import time
from pathlib import Path

import fake_recipe
import pytest

FEATURES = ["extract_clip_embeddings", "extract_features", "extract_features", "extract_features"]
HEAD = ["train", "score_retrieval", "score_keywords"]
ALL = ["download", "prepare", "validate_data_dir", *FEATURES, *HEAD, *HEAD, "results"]


@pytest.fixture
def recipe(tmp_path: Path):
    return fake_recipe.FakeRecipe(tmp_path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory):
    """A recipe that has run once. Tests must not change it."""
    made = fake_recipe.FakeRecipe(tmp_path_factory.mktemp("finished"))
    result = made.run()
    assert result.returncode == 0, result.stderr
    return made, result, made.names()


@pytest.fixture
def done(finished, tmp_path: Path):
    """A copy of the finished recipe."""
    shutil.copytree(finished[0].folder.parents[1], tmp_path / "copy", symlinks=True)
    copy = object.__new__(fake_recipe.FakeRecipe)
    copy.folder = tmp_path / "copy" / "egs" / "mini"
    return copy


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.05)


def test_a_first_run_runs_every_stage_in_order(finished):
    recipe, result, names = finished
    assert names == ALL
    assert "stage 3 (train): tiny_parallel seed 0: running (not done yet)" in result.stdout
    assert "stage 3 (train): tiny_cascaded seed 0: done in" in result.stdout
    assert result.stderr == ""
    assert result.stdout.endswith("summary of --exp exp/tiny_parallel exp/tiny_cascaded --results exp/RESULTS.md\n")
    for file in ("exp/RESULTS.md", "exp/tiny_parallel/scores/retrieval.json", "exp/tiny_cascaded/scores/keywords.json"):
        assert (recipe.folder / file).is_file()
    assert "working on train" in (recipe.folder / "exp/tiny_parallel/log/3_train.log").read_text()


def test_a_second_run_skips_every_stage(done):
    started = time.monotonic()
    result = done.run()
    assert time.monotonic() - started < 5
    assert result.returncode == 0
    assert done.calls() == []
    assert result.stdout.count("up to date") == 10
    assert [line for line in result.stdout.splitlines() if "up to date" not in line] == [
        "summary of --exp exp/tiny_parallel exp/tiny_cascaded --results exp/RESULTS.md"
    ]


def test_layers_and_overrides_reach_training(done):
    done.run("--head", "cascaded", "--stage", "3", "--seed", "3", "--", "--optim.lr", "1e-4")
    calls = done.calls()
    assert [call.split()[0] for call in calls] == [*HEAD, "results"]
    assert calls[0].startswith("train --config conf/tiny.yaml") or "--config ../conf/cascaded.yaml" in calls[0]
    assert "--optim.lr 1e-4" in calls[0]
    assert "--seed 3" in calls[0]
    assert "--out exp/tiny_cascaded_seed3" in calls[0]


def test_layers_of_a_model_with_a_head_come_after_those_of_each(done):
    names = ["tiny", "cascaded", "tiny_cascaded"]
    files = [f"{folder}/{name}.yaml" for folder in ("../conf", "conf") for name in names]
    for file in files:
        (done.folder / file).parent.mkdir(exist_ok=True)
        (done.folder / file).write_text("optim:\n  lr: 1.0e-4\n")
    done.run("--head", "cascaded", "--stage", "3", "--stop_stage", "3")
    words = next(call for call in done.calls() if call.startswith("train ")).split()
    assert [words[at + 1] for at, word in enumerate(words) if word == "--config"] == files


def test_overrides_of_training_do_not_run_stage_2(done):
    result = done.run("--", "--optim.lr", "1e-4")
    assert result.returncode == 0
    assert done.names() == [*HEAD, *HEAD, "results"]
    reason = "running (overrides changed from ' ' to ' --optim.lr 1e-4')"
    assert f"stage 3 (train): tiny_parallel seed 0: {reason}" in result.stdout
    done.run("--", "--model.speech_encoder.normalize", "true")
    assert done.names() == [*FEATURES, *HEAD, *HEAD, "results"]


@pytest.mark.parametrize("words", [["--eval.sweep", "[1,2,7]"], ["--eval.sweep=[1,2,7]"]])
def test_overrides_of_scoring_do_not_train_again(done, words):
    scored = ["score_retrieval", "score_keywords"]
    result = done.run("--head", "cascaded", "--", *words)
    assert result.returncode == 0, result.stderr
    calls = done.calls()
    assert [call.split()[0] for call in calls] == [*scored, "results"]
    assert [call.partition("/scores ")[2] for call in calls[:2]] == [" ".join(words)] * 2
    assert done.run("--head", "cascaded", "--", *words).stdout.count("up to date") == 7
    done.run("--head", "cascaded", "--stage", "5", "--stop_stage", "5")
    assert done.names() == ["score_keywords"]  # without the override


def test_overrides_go_to_the_stages_that_take_them(done):
    mixed = ["--eval.bootstrap", "7", "--optim.lr=1e-4", "--eval.sweep=[1]", "--model.speech_encoder.normalize", "true"]
    assert done.run("--head", "cascaded", "--", *mixed).returncode == 0
    calls = {call.split()[0]: call for call in done.calls()}
    assert "--optim.lr=1e-4 --model.speech_encoder.normalize true " in calls["train"] and "eval" not in calls["train"]
    assert (
        "--model.speech_encoder.normalize true " in calls["extract_clip_embeddings"]
        and "optim" not in calls["extract_clip_embeddings"]
    )
    for name in ("score_retrieval", "score_keywords"):
        assert calls[name].endswith("/scores --eval.bootstrap 7 --eval.sweep=[1]")


def test_a_changed_option_runs_later_stages(done):
    done.run("--feats", "online")
    assert done.names() == ["extract_clip_embeddings", *HEAD, *HEAD, "results"]


def test_a_changed_layer_runs_only_its_head(done):
    (done.folder.parent / "conf" / "cascaded.yaml").write_text("b: 2\n")
    done.run(WEIGHTS="others")
    assert done.names() == [*HEAD, "results"]


def test_equal_data_runs_no_later_stage(done):
    with (done.folder / "local" / "prepare.sh").open("a") as script:
        script.write("# a comment\n")
    done.run()
    assert done.names() == ["download", "prepare", "validate_data_dir"]


def test_other_data_runs_every_later_stage(done):
    script = done.folder / "local" / "prepare.sh"
    script.write_text(script.read_text().replace('"a $split"', '"b $split"'))
    done.run()
    assert done.names() == ALL


@pytest.mark.parametrize(
    ("lost", "stages"),
    [
        ("exp/tiny_parallel/scores/retrieval.json", ["score_retrieval"]),
        ("exp/tiny_cascaded/best/model.safetensors", ["train"]),
        ("dump/tiny/dev/feats.scp", FEATURES),
        ("data/test/text", ["prepare", "validate_data_dir"]),
        ("exp/RESULTS.md", ["results"]),
    ],
)
def test_a_missing_output_is_written_again(done, lost, stages):
    (done.folder / lost).unlink()
    result = done.run()
    assert f"{lost} is missing" in result.stdout
    assert done.names() == stages  # the content is the same: nothing later runs


def test_force_runs_the_selected_stages(done):
    done.run("--stage", "4", "--stop_stage", "4", "--force", "true", "--head", "cascaded")
    assert done.names() == ["score_retrieval"]
    done.run("--stage", "3", "--stop_stage", "3", "--force", "true", "--head", "cascaded")
    assert done.calls()[0].endswith("--seed 0 --force true")


def test_stage_4_alone_works(done):
    shutil.rmtree(done.folder / "exp" / "tiny_parallel" / "scores")
    assert done.run("--stage", "4").returncode == 0
    assert done.names() == ["score_retrieval"]


def test_stop_stage(recipe):
    recipe.run("--stop_stage", "1")
    assert recipe.names() == ["download", "prepare", "validate_data_dir"]


def test_a_boolean_download_option_runs_only_stage_0(done):
    done.run("--pretrain", "true")
    assert done.calls() == ["download --corpus  --nj 2 --scenes 4000 --pretrain true --languages en --long_seconds 0"]
    done.run()
    assert done.calls() == []


def test_another_download_option_runs_stage_0(done):
    result = done.run("--scenes", "50", "--stop_stage", "0")
    assert "scenes changed from '4000' to '50'" in result.stdout
    assert done.calls() == ["download --corpus  --nj 2 --scenes 50 --pretrain false --languages en --long_seconds 0"]


def test_languages_make_a_run_of_their_own(done):
    for split in ("train", "dev", "test"):
        (done.folder / "data" / split / "utt2lang").write_text("a en\nb es\n")
    done.run("--stage", "3", "--stop_stage", "5", "--head", "cascaded", "--languages", "es")
    train, retrieval, keywords = done.calls()
    assert "--data.languages [es]" in train and "--out exp/tiny_cascaded_es" in train
    assert retrieval.endswith("--eval.languages [es]") and keywords.endswith("--eval.languages [es]")
    done.run("--stage", "3", "--stop_stage", "4", "--head", "cascaded", "--languages", "en es", "--tag", "b")
    assert ["[en,es]" in call and "exp/tiny_cascaded_en_es_b" in call for call in done.calls()] == [True, True]
    (done.folder / "data/test/utt2lang").write_text("a en\nb en\n")
    done.run("--stage", "3", "--stop_stage", "5", "--head", "cascaded", "--languages", "es")
    assert done.names() == ["score_retrieval", "score_keywords"]  # training does not read the test set


def test_the_own_language_of_a_recipe_needs_no_table(done):
    done.run("--stage", "3", "--stop_stage", "4", "--head", "parallel", "--languages", "en")
    assert done.calls() == []
    result = done.run("--languages", "e/s")
    assert result.returncode == 2 and "--languages: 'e/s' is not the name of a language" in result.stderr


def test_another_mirror_runs_only_stage_0(done):
    text = (done.folder / "run.sh").read_text()
    assert text.count("download_options=(scenes pretrain languages long_seconds)") == 1
    text = text.replace(
        "download_options=(scenes pretrain languages long_seconds)", "download_options=(scenes pretrain mirror)"
    )
    (done.folder / "run.sh").write_text(text.replace("pretrain=false ", "mirror= #: a URL\npretrain=false "))
    done.run("--mirror", "http://one/", "--stop_stage", "3")
    assert done.names() == ["download"]
    for options in ([], ["--scenes", "50"]):
        result = done.run(*options)
        assert result.returncode == 0 and done.names() == ["download"]
        assert "stage 3 (train): tiny_parallel seed 0: up to date" in result.stdout
    (done.folder / "corpus/captions.tsv").write_text("other captions\n")
    done.run("--stage", "0", "--stop_stage", "0", "--force", "true")
    done.calls()
    download = done.folder / "local/download.sh"
    download.write_text(download.read_text().replace("echo caption", "echo other"))
    done.run("--scenes", "50")
    assert done.names()[:2] == ["download", "prepare"]  # the content is an input


WITHOUT_EFFECT = [
    ["--data.workers", "2"], ["--data.eval_batch_size=3"], ["--train.log_interval", "7"],
    ["--train.tensorboard_utterances=0"],
]  # fmt: skip


@pytest.mark.parametrize("words", WITHOUT_EFFECT, ids=" ".join)
def test_overrides_without_effect_change_no_stamp(done, words):
    result = done.run("--", *words)
    assert result.stdout.count("up to date") == 10 and done.calls() == []
    done.run("--", *words, "--optim.lr", "1e-4", "--head", "parallel", "--stage", "3", "--stop_stage", "3")
    done.run("--stage", "3", "--stop_stage", "3", "--force", "true", "--head", "parallel", "--", *words)
    assert " ".join(words) in done.calls()[-1]  # training still gets them


def test_overrides_without_effect_are_those_of_training():
    from speechclip.train.state import WITHOUT_EFFECT as keys

    named = {word.partition("=")[0].removeprefix("--") for words in WITHOUT_EFFECT for word in words[:1]}
    assert named | {"eval."} == set(keys)


@pytest.mark.parametrize("options", [["--nj", "5"], ["--ngpu", "2"], ["--python", sys.executable]], ids=" ".join)
def test_options_without_effect_change_no_stamp(done, options):
    assert done.run(*options).stdout.count("up to date") == 10
    assert done.calls() == []


def test_another_version_runs_nothing_again(done):
    (done.folder.parents[1] / "speechclip/__init__.py").write_text('__version__ = "2.0"\n')
    assert done.run().stdout.count("up to date") == 10
    assert done.calls() == []


def test_training_to_equal_weights_scores_nothing_again(done):
    weights = done.folder / "exp/tiny_parallel/best/model.safetensors"
    options = ["--head", "parallel", "--stop_stage", "5", "--", "--model.head.dropout"]
    assert done.run(*options, "0.1", WEIGHTS=weights.read_text()).returncode == 0
    assert done.names() == ["train"]
    done.run(*options, "0.2", WEIGHTS="others")
    assert done.names() == HEAD


@pytest.mark.parametrize(
    "options", [["--force", "true"], ["--", "--optim.lr", "1"], ["--feats", "online"]], ids=" ".join
)
def test_the_driver_deletes_no_weights(done, options):
    """The training script alone decides about earlier weights; here it fails at once."""
    files = [
        path for name in ("best", "last") for path in sorted((done.folder / f"exp/tiny_parallel/{name}").iterdir())
    ]
    before = {path: path.read_bytes() for path in files}
    assert done.run("--head", "parallel", "--stage", "3", *options, FAIL="train").returncode == 1
    assert {path: path.read_bytes() for path in files} == before and len(files) == 3
    result = done.run("--head", "parallel", "--stop_stage", "5", WEIGHTS=before[files[1]].decode())
    assert result.returncode == 0, result.stderr
    assert done.names() == ["train", "train"]  # nothing after it


def test_a_missing_corpus_is_downloaded_unless_one_is_given(done):
    shutil.rmtree(done.folder / "corpus")
    assert "stage 0 (download): running (corpus/captions.tsv is missing)" in done.run("--stop_stage", "1").stdout
    assert done.names() == ["download"]
    shutil.rmtree(done.folder / "corpus")
    (done.folder / "mine").mkdir()
    download = done.folder / "local/download.sh"
    download.write_text('#!/usr/bin/env bash\necho "download $*" >>calls.log\n')
    result = done.run("--corpus", "mine", "--stop_stage", "1")
    assert result.returncode == 0, result.stderr
    assert done.names() == ["download", "prepare", "validate_data_dir"]
    assert done.run("--corpus", "mine", "--stop_stage", "1").stdout.count("up to date") == 2


def test_vocabularies_of_different_captions_are_different_files(done):
    done.run("--stop_stage", "2", "--vocabulary", "train", "--speech_encoder", "models/other")
    assert "--vocabulary data/clip_vocabulary_train.tsv --vocabulary_from train" in done.calls()[0]
    assert (done.folder / "data/clip_vocabulary_train.tsv").is_file()
    assert done.run().stdout.count("up to date") == 10 and done.calls() == []
    done.run("--vocabulary", "train", "--speech_encoder", "models/other", "--stage", "3", "--head", "cascaded")
    assert "--vocabulary data/clip_vocabulary_train.tsv" in done.calls()[0]


def test_a_vocabulary_of_another_dump_is_counted_again(done):
    """Two dump folders have tokenizers of their own. Each run counts its own vocabulary again."""
    (done.folder / "data/clip_vocabulary.tsv").write_text("of another tokenizer")
    result = done.run()
    assert "stage 2 (features): tiny: running (another run has changed data/clip_vocabulary.tsv)" in result.stdout
    assert done.names() == FEATURES  # the content is the same: nothing later runs


@pytest.mark.parametrize(
    ("options", "missing", "stage"),
    [
        (["--stage", "1"], "corpus/captions.tsv", 0),
        (["--stage", "2"], "data/train/wav.scp", 1),
        (["--stage", "3"], "data/train/wav.scp", 1),
        (["--stage", "4"], "exp/tiny_parallel/best", 3),
        (["--stage", "6"], "exp/tiny_parallel/scores/retrieval.json", 4),
    ],
)
def test_a_missing_input_names_its_stage(recipe, options, missing, stage):
    result = recipe.run(*options)
    assert result.returncode == 1
    assert f"{missing} is missing. Run stage {stage}: ./run.sh --stage {stage}" in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--model", "huge"], "--model: 'huge' is not one of: tiny"),
        (["--head", "parallel serial"], "--head: 'serial' is not one of: parallel cascaded hybrid"),
        (["--head", ""], "--head: is empty. Give at least one of: parallel"),
        (["--feats", "none"], "--feats: 'none' is not one of: dump online"),
        (["--seed", "0 x"], "--seed: 'x' is not a whole number"),
        (["--stop_stage", "8"], "--stop_stage: 8 is not a stage. The stages are 0 to 7"),
        (["--models", "nowhere", "--stage", "2"], "--models: nowhere: is not a folder. Run stage 0"),
        (["--push", "me/x", "--stop_stage", "7"], "--push: a hub repository holds one run. Give one --head"),
        (["--push", "me/x", "--head", "parallel", "--seed", "0 1"], "--push: a hub repository holds one run"),
        (["--vocabulary", "test"], "--vocabulary: 'test' is not one of: all train"),
        (["--supervision", "audio"], "--supervision: 'audio' is not one of: image text"),
        (["--stage", "4", "--stop_stage", "3"], "--stage: 4 is after --stop_stage 3"),
        (["--stage", "three"], "--stage: 'three' is not a whole number"),
        (["--tag", "a/b"], "--tag: 'a/b' cannot be part of a folder's name"),
        (["--tag", "plus"], "--tag: 'plus' is part of the names of heads"),
        (["--tag", "plus_wide"], "--tag: 'plus' is part of the names of heads"),
        (["--corpus", "nowhere"], "--corpus: nowhere: is not a folder"),
        (["--clip_embeddings", "no.npz"], "--clip_embeddings: no.npz: is missing"),
        (["--checkpoint", "exp/x"], "--checkpoint: exp/x: is missing"),
        (["--coarse", "egs"], "--coarse: is for --head reranker"),
        (["--head", "reranker", "--coarse", "nowhere"], "--coarse: nowhere: is not a folder"),
        (["--rerank", "exp/none"], "--rerank: exp/none: is not a folder"),
        (["--nj", "0"], "--nj: 0 is too small. Use at least 1"),
        (["--num_nodes", "0"], "--num_nodes: 0 is too small. Use at least 1"),
        (["--python", "nopython"], "--python: nopython: is not a program"),
        (["--moodel", "tiny"], "unknown option --moodel, did you mean --model?"),
        (["--augment", "2"], "--augment: '2' is not between 0 and 1"),
        (["--noise_dir", "nowhere"], "--noise_dir: nowhere: is not a directory"),
        (["--compare", "exp/x"], "--compare: is for --conditions true"),
        (["--compare", "exp/x", "--conditions", "true"], "--compare: exp/x: has no weights in best/."),
        (["--", "--bad.key", "1"], "unknown configuration key bad.key"),
    ],
)
def test_a_wrong_option_is_one_line_and_writes_nothing(recipe, options, reason):
    before = sorted(recipe.folder.rglob("*"))
    result = recipe.run(*options)
    assert result.returncode in (1, 2)
    assert reason in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert sorted(recipe.folder.rglob("*")) == before


def test_recognisers_and_conditions_are_stages(done):
    options = ("--head", "parallel", "--asr", "ctc pocketsphinx", "--seed", "0 1", "--conditions", "true")
    result = done.run(*options)
    assert result.returncode == 0, result.stderr
    calls = done.calls()
    asr = ["train_recognizer", "transcribe", "score_asr"]
    assert [call.split()[0] for call in calls] == [
        *HEAD, *asr, *asr, "transcribe", "score_asr", "score_conditions", "results"
    ]  # fmt: skip
    assert "--data_dirs data/train data/dev data/test" in calls[4]
    assert "--text_head exp/tiny_asr_ctc_text_head_seed1 --seed 1" in calls[8]
    weak, scored, conditions, results = calls[9:]
    assert "--data_dirs data/test --dump_root" in weak and "--text_head" not in scored
    assert "--run exp/tiny_parallel_seed1/best exp/tiny_parallel_seed1" in conditions
    assert "--asr_run exp/tiny_asr_ctc_seed1/recognizer exp/tiny_asr_ctc_text_head_seed1" in conditions
    assert "pocketsphinx" not in conditions
    assert "--transcripts exp/tiny_asr_ctc/transcripts/test.jsonl exp/tiny_asr_pocketsphinx/transcripts" in results
    assert done.run(*options).returncode == 0 and done.calls() == []  # everything is up to date


def test_augmentation_stores_copies_and_trains_again(done):
    result = done.run("--head", "parallel", "--augment", "0.5", "--tag", "noisy", "--nj", "1", "--stop_stage", "3")
    assert result.returncode == 0, result.stderr
    copies, training = done.calls()
    assert copies.startswith("extract_features") and "--copy 1" in copies and "[data/train]" in copies
    for call in (copies, training):
        assert "--data.augment.probability 0.5" in call
    assert "--out exp/tiny_parallel_noisy" in training


def test_conditions_score_earlier_runs_too(done):
    result = done.run("--head", "parallel", "--tag", "noisy", "--conditions", "true", "--compare", "exp/tiny_parallel")
    assert result.returncode == 0, result.stderr
    calls = done.calls()
    conditions = next(call for call in calls if call.startswith("score_conditions"))
    runs = [f"--run {exp}/best {exp}" for exp in ("exp/tiny_parallel_noisy", "exp/tiny_parallel")]
    assert " ".join(runs) in conditions
    assert "--exp exp/tiny_parallel_noisy exp/tiny_parallel" in calls[-1]  # the report, too


def test_help_fits_80_columns_and_names_all(recipe):
    result = recipe.run("--help")
    assert result.returncode == 0
    assert max(map(len, result.stdout.splitlines())) <= 80
    for option in ("stage", "stop_stage", "model", "head", "seed", "feats", "checkpoint", "pretrain", "python"):
        assert f"\n  --{option} " in result.stdout
    assert "--head parallel cascaded" in result.stdout
    assert "runs from N to the end" in " ".join(result.stdout.split())


def test_failing_stage_stops_the_recipe(recipe):
    result = recipe.run(FAIL="train")
    assert result.returncode == 1
    assert recipe.names()[-1] == "train"
    last = result.stderr.splitlines()[-1]
    log = "exp/tiny_parallel/log/3_train.log"
    assert last == f"error: run.sh: stage 3 (train) failed for tiny_parallel seed 0 with status 1. Log: {log}"
    assert "data/x: no good" in (recipe.folder / "exp/tiny_parallel/log/3_train.log").read_text()
    recipe.run()
    assert recipe.names() == [*HEAD, *HEAD, "results"]


def test_several_seeds_and_a_tag(done):
    done.run("--seed", "0 1", "--head", "parallel", "--tag", "wide")
    folders = [call.split("--out ")[1].split()[0] for call in done.calls() if call.startswith("train ")]
    assert folders == ["exp/tiny_parallel_wide", "exp/tiny_parallel_wide_seed1"]


def test_the_recorded_command_can_be_typed_again(done):
    options = ["--seed", "0 1", "--head", "parallel", "--tag", "wide", "--", "--train.note", "it's $x", "--data.x="]
    assert done.run(*options).returncode == 0
    command = (done.folder / "recipe_command").read_text()
    assert shlex.split(command) == ["./run.sh", *options]
    assert command.startswith("./run.sh --seed '0 1' --head parallel --tag wide -- --train.note ")


def test_precomputed_embeddings_take_clips_place(done):
    (done.folder / "images.npz").write_text("1")
    done.run("--clip_embeddings", "images.npz", "--head", "parallel", "--stop_stage", "2")
    call = done.calls()[0]
    assert "--model.clip.path= " in call
    assert "--clip_embeddings images.npz" in call
    (done.folder / "images.npz").write_text("22")  # the user's file changed
    done.run("--clip_embeddings", "images.npz", "--head", "parallel", "--stop_stage", "2")
    assert done.names() == FEATURES


def test_other_encoder_has_its_own_dump(done):
    done.run("--speech_encoder", "models/whisper", "--stop_stage", "2")
    assert "--model.speech_encoder.path models/whisper" in done.calls()[0]
    assert (done.folder / "dump/tiny_whisper/train/feats.scp").is_file()


def test_checkpoint_is_scored_and_nothing_trained(done):
    shutil.move(done.folder / "exp/tiny_cascaded/best", done.folder / "given")
    result = done.run("--checkpoint", "given", "--stage", "3")
    assert result.returncode == 0
    assert "skipped: --checkpoint given is scored" in result.stdout
    calls = done.calls()
    assert [call.split()[0] for call in calls] == ["score_retrieval", "score_keywords", "results"]
    assert "--checkpoint given" in calls[0]
    assert "--out exp/given/scores" in calls[0]


def test_a_published_checkpoint_is_converted_first(done):
    (done.folder / "epoch_3.ckpt").write_text("1")
    result = done.run("--checkpoint", "epoch_3.ckpt", "--stage", "4", "--clip", "models/ViT.pt", "--stop_stage", "7")
    assert result.returncode == 0, result.stderr
    calls = [call for call in done.calls() if call.split()[0] not in FEATURES]
    names = [call.split()[0] for call in calls]
    assert names == ["convert_checkpoint", "score_retrieval", "score_keywords", "results", "pack"]
    assert calls[0] == "convert_checkpoint --checkpoint epoch_3.ckpt --out exp/epoch_3/converted --clip models/ViT.pt"
    assert "--checkpoint exp/epoch_3/converted --data_dir data/test" in calls[1]
    assert "pack --checkpoint exp/epoch_3/converted --scores exp/epoch_3/scores --out exp/epoch_3/pack" in calls[-1]


@pytest.mark.parametrize("name", ["epoch_3.ckpt", "given"])
def test_checkpoints_with_the_same_name_have_two_folders(done, name):
    for folder in ("a", "b"):
        (done.folder / folder).mkdir()
        if name == "given":
            shutil.copytree(done.folder / "exp/tiny_cascaded/best", done.folder / folder / name)
        else:
            (done.folder / folder / name).write_text(folder)
    used = []
    for folder in ("a", "b", "a", "b"):
        result = done.run("--checkpoint", f"{folder}/{name}", "--stage", "4", "--clip", "models/ViT.pt")
        assert result.returncode == 0, result.stderr
        used.append({word.split("/")[1] for call in done.calls() for word in call.split() if word.startswith("exp/")})
    stem = name.removesuffix(".ckpt")
    first, second = (next(iter(names - {"RESULTS.md"})) for names in used[:2])
    assert first == stem and re.fullmatch(rf"{stem}_checkpoint_\d+", second)
    assert used[2] == used[3] == set()  # up to date: nothing was overwritten


def test_a_published_checkpoint_needs_no_features(recipe):
    (recipe.folder / "epoch_3.ckpt").write_text("1")
    (recipe.folder / "encoders").mkdir()
    (recipe.folder / "encoders" / "ViT-L-14.pt").write_text("1")
    text = (recipe.folder / "run.sh").read_text()
    (recipe.folder / "run.sh").write_text(text.replace('models="tiny"', 'models="tiny base large"'))
    options = ["--model", "large", "--checkpoint", "epoch_3.ckpt", "--models", "encoders"]
    assert recipe.run("--stop_stage", "1").returncode == 0
    recipe.calls()
    result = recipe.run(*options, "--stage", "2")
    assert result.returncode == 0, result.stderr
    told = "--feats online: scoring epoch_3.ckpt reads recordings, so no features are stored\n"
    assert result.stdout.startswith(told)
    calls = recipe.calls()
    names = ["extract_clip_embeddings", "convert_checkpoint", "score_retrieval", "score_keywords", "results"]
    assert [call.split()[0] for call in calls] == names
    assert "--model.clip.path encoders/ViT-L-14.pt" in calls[0] and "speech_encoder" not in calls[0]
    assert "--clip encoders/ViT-L-14.pt" in calls[1] and "--dump_dir dump/large/test" in calls[2]
    without = recipe.run("--model", "large", "--models", "encoders", "--stage", "2")
    assert "has none of: hubert_large_ll60k.pt hubert-large-ll60k. Run stage 0" in without.stderr
    (recipe.folder / "encoders" / "ViT-L-14.pt").unlink()
    without = recipe.run(*options, "--stage", "4")
    assert "has none of: ViT-L-14.pt clip-vit-large-patch14 ViT-L-14. Run stage 0" in without.stderr
    assert len(without.stderr.splitlines()) == 1


def test_scoring_a_checkpoint_keeps_stamps_of_other_runs(done):
    (done.folder / "epoch_3.ckpt").write_text("1")
    assert done.run("--checkpoint", "epoch_3.ckpt").returncode == 0
    assert "extract_features" not in done.names()
    for options in (["--stage", "3"], []):
        result = done.run(*options)
        assert result.stdout.count("up to date") == len(result.stdout.splitlines()) - 1  # the summary
    assert done.run("--checkpoint", "epoch_3.ckpt").stdout.count("up to date") == 6  # training is skipped
    assert done.calls() == []


@pytest.mark.parametrize("stage", ["5", "7"])
def test_a_missing_converted_checkpoint_names_stage_4(done, stage):
    (done.folder / "epoch_3.ckpt").write_text("1")
    result = done.run("--checkpoint", "epoch_3.ckpt", "--stage", stage)
    told = "exp/epoch_3/converted is missing. Run stage 4: ./run.sh --stage 4"
    assert result.returncode == 1 and told in result.stderr


@pytest.mark.parametrize("feats", ["dump", "online"])
def test_own_checkpoints_are_scored_as_they_were_trained(done, feats):
    shutil.move(done.folder / "exp/tiny_cascaded/best", done.folder / "given")
    (done.folder / "given/config.yaml").write_text(f"data:\n  feats: {feats}\n")
    result = done.run("--checkpoint", "given", "--stop_stage", "2", "--force", "true")
    assert result.returncode == 0
    assert ("extract_features" in done.names()) == (feats == "dump")
    assert result.stdout.startswith("--feats online: scoring given reads recordings") == (feats == "online")


def test_a_run_is_packed_on_request(done):
    assert done.run("--head", "parallel", "--stage", "7", "--push", "me/model").returncode == 0
    assert done.calls() == [
        "pack --checkpoint exp/tiny_parallel/best --scores exp/tiny_parallel/scores "
        "--out exp/tiny_parallel/pack --push me/model"
    ]
    assert "up to date" in done.run("--head", "parallel", "--stage", "7", "--push", "me/model").stdout


def test_the_supervised_topline_has_its_own_folder(done):
    done.run("--head", "parallel", "--supervision", "text", "--stage", "3", "--stop_stage", "3")
    call = done.calls()[0]
    assert "--train.supervision text" in call and "--out exp/tiny_parallel_supervised " in call


def test_encoders_are_found_in_a_folder_by_their_published_names(done):
    (done.folder / "encoders" / "hubert-base-ls960").mkdir(parents=True)
    (done.folder / "encoders" / "ViT-B-32.pt").write_text("1")
    text = (done.folder / "run.sh").read_text()
    (done.folder / "run.sh").write_text(text.replace('models="tiny"', 'models="tiny base large"'))
    done.run("--models", "encoders", "--model", "base", "--stage", "2", "--stop_stage", "2")
    call = done.calls()[0]
    assert "--model.speech_encoder.path encoders/hubert-base-ls960 --model.clip.path encoders/ViT-B-32.pt" in call
    result = done.run("--models", "encoders", "--model", "large", "--stage", "2", "--stop_stage", "2")
    assert "has none of: hubert_large_ll60k.pt hubert-large-ll60k. Run stage 0" in result.stderr


def test_launcher_and_torchrun(done):
    (done.folder / "cmd.sh").write_text('train_cmd="env LAUNCHED=1"\n')
    done.run("--stage", "3", "--stop_stage", "3", "--force", "true", "--head", "parallel")
    log = (done.folder / "exp/tiny_parallel/log/3_train.log").read_text().splitlines()
    assert "env LAUNCHED=1" in log[-2]
    assert done.names() == ["train"]
    done.run("--stage", "3", "--stop_stage", "3", "--ngpu", "2", "--force", "true", "--head", "parallel")
    log = (done.folder / "exp/tiny_parallel/log/3_train.log").read_text()
    assert "utils/torchrun.py --ngpu 2 --num_nodes 1 --endpoint  -m speechclip.bin.train" in log
    assert done.names() == ["train", "train"]


def test_several_machines_need_a_launcher(recipe):
    result = recipe.run("--num_nodes", "2")
    assert result.returncode == 2
    assert (
        "--num_nodes: train_cmd in cmd.sh is empty. Set a command that starts its arguments on 2 machines"
        in result.stderr
    )


def test_a_dry_run_prints_every_command_and_runs_none(done):
    before = {path: path.stat().st_mtime_ns for path in done.folder.rglob("*")}
    result = done.run("--force", "true", "--dry_run", "true", "--head", "parallel", "--stop_stage", "7")
    assert result.returncode == 0, result.stderr
    assert {path: path.stat().st_mtime_ns for path in done.folder.rglob("*")} == before
    for name in (
        "extract_clip_embeddings",
        "extract_features",
        "train",
        "score_retrieval",
        "score_keywords",
        "results",
        "pack",
    ):
        assert f"-m speechclip.bin.{name} " in result.stdout, name


def test_the_recipe_passes_on_the_status_of_a_saved_stage(recipe):
    stub = recipe.folder.parents[1] / "speechclip" / "bin" / "train.py"
    stub.write_text(
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: (print('saved', flush=True), sys.exit(75)))\n"
        "open('started', 'w').close()\ntime.sleep(60)\n"
    )
    process = recipe.start()
    wait_for(recipe.folder / "started")
    os.kill(process.pid, signal.SIGTERM)
    output, errors = process.communicate(timeout=30)
    assert process.returncode == 75
    told = "error: run.sh: stage 3 (train) was stopped and has saved its state. Run the same command to resume"
    assert errors.strip() == told
    assert output.endswith("saved\n")
    assert (recipe.folder / "exp/tiny_parallel/log/3_train.log").read_text().endswith("saved\n")
    stub.write_text("import sys\nsys.exit(75)\n")  # Slurm sends the signal to every process
    result = recipe.run()
    assert (result.returncode, result.stderr.strip()) == (75, told)


@pytest.mark.parametrize("nj", ["1", "2"])
def test_the_recipe_passes_on_the_status_of_stage_2(recipe, nj):
    stub = recipe.folder.parents[1] / "speechclip" / "bin" / "extract_features.py"
    stub.write_text(
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))\n"
        "open('started' + sys.argv[-1], 'w').close()\ntime.sleep(60)\n"
    )
    process = recipe.start("--nj", nj)
    for job in range(1, int(nj) + 1):
        wait_for(recipe.folder / f"started{job}")
    os.kill(process.pid, signal.SIGTERM)
    _, errors = process.communicate(timeout=30)
    told = "error: run.sh: stage 2 (features) was stopped and has saved its state. Run the same command to resume"
    assert (process.returncode, errors.strip()) == (75, told)


def test_a_second_run_is_refused_until_the_first_has_ended(recipe):
    first = recipe.start(SLEEP="train")
    try:
        wait_for(recipe.folder / "started")
        second = recipe.run()
        assert second.returncode == 1
        told = f"error: run.sh: {recipe.folder}: another run is active (process {first.pid}). Wait for it, or stop it"
        assert second.stderr.strip() == told
    finally:
        first.kill()  # only the shell; it cannot clean up
        first.communicate()
    after = recipe.run("--stop_stage", "0")  # the stage ends, and so does the lock
    assert (after.returncode, after.stderr) == (0, "")


@pytest.mark.parametrize(("sign", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_the_stage_and_frees_the_folder(recipe, sign, status):
    process = recipe.start(SLEEP="train")
    wait_for(recipe.folder / "started")
    os.kill(process.pid, sign)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == status
    assert errors.strip() == "error: run.sh: stopped in stage 3 (train). Run the same command to resume"
    (recipe.folder / "started").unlink()
    assert recipe.run().returncode == 0


def test_log_keeps_the_last_state_of_a_redrawn_line(tmp_path: Path):
    code = "import sys; sys.stdout.write('10%\\r50%\\r100%\\nend')"
    command = [
        sys.executable,
        str(fake_recipe.ROOT / "utils/run_logged.py"),
        str(tmp_path / "log"),
        sys.executable,
        "-c",
        code,
    ]
    assert os.spawnv(os.P_WAIT, sys.executable, command) == 0
    assert (tmp_path / "log").read_text() == "100%\nend\n"


# -- rerankers -------------------------------------------------------------------------------------------------------


def test_a_reranker_trains_on_the_parallel_run_of_its_seed(done):
    result = done.run("--head", "parallel reranker", "--seed", "0 2")
    assert result.returncode == 0, result.stderr
    calls = done.calls()
    assert [call.split()[0] for call in calls].count("extract_regions") == 1
    trained = {words[words.index("--out") + 1]: words for call in calls if (words := call.split())[0] == "train"}
    assert list(trained) == ["exp/tiny_parallel_seed2", "exp/tiny_reranker", "exp/tiny_reranker_seed2"]
    for seed in ("", "_seed2"):
        words = trained[f"exp/tiny_reranker{seed}"]
        assert words[words.index("--coarse") + 1] == f"exp/tiny_parallel{seed}/best"
    assert "--coarse" not in trained["exp/tiny_parallel_seed2"]
    again = done.run("--head", "parallel reranker", "--seed", "0 2")
    assert done.calls() == [] and again.returncode == 0


def test_a_reranker_follows_its_coarse_head(done):
    assert done.run("--head", "reranker", "--coarse", "exp/tiny_cascaded").returncode == 0
    words = next(call for call in done.calls() if call.startswith("train")).split()
    assert words[words.index("--coarse") + 1] == "exp/tiny_cascaded/best"
    (done.folder / "exp/tiny_cascaded/best/model.safetensors").write_text("other weights")
    assert done.run("--head", "reranker", "--coarse", "exp/tiny_cascaded", "--stop_stage", "3").returncode == 0
    assert done.names() == ["train"]
    shutil.rmtree(done.folder / "exp/tiny_parallel/best")
    result = done.run("--head", "reranker", "--stage", "3")
    assert result.returncode == 1
    assert "exp/tiny_parallel/best/model.safetensors is missing. Run stage 3 with --head parallel" in result.stderr


def test_rerank_runs_stage_4_again_when_it_changes(done):
    assert done.run("--head", "reranker").returncode == 0
    done.calls()
    options = ("--head", "parallel", "--rerank", "exp/tiny_reranker", "--stage", "4", "--stop_stage", "4")
    assert done.run(*options).returncode == 0
    (call,) = done.calls()
    assert call.startswith("score_retrieval --checkpoint exp/tiny_parallel/best")
    assert "--rerank exp/tiny_reranker/best" in call
    assert done.run(*options).returncode == 0 and done.calls() == []
    (done.folder / "exp/tiny_reranker/best/model.safetensors").write_text("other weights")
    assert done.run(*options).returncode == 0
    assert done.names() == ["score_retrieval"]
    assert done.run("--head", "parallel", "--stage", "4", "--stop_stage", "4").returncode == 0
    (call,) = done.calls()
    assert "--rerank" not in call


def test_rerank_needs_regions_of_stage_2(done):
    (done.folder / "other").mkdir()
    (done.folder / "other/model.safetensors").write_text("x")
    assert done.run("--head", "parallel", "--rerank", "other", "--stage", "2", "--stop_stage", "4").returncode == 0
    assert done.names() == ["extract_regions", "score_retrieval"]


# -- fast_vgs --------------------------------------------------------------------------------------------------------

FAST_VGS = ("--head", "fast_vgs")
TOWER_SETTINGS = "model:\n  speech_encoder:\n    part: convolutions\n  head:\n    fast_vgs:\n      regions: clip\n"
TOWERS = ["extract_regions", "extract_features", "extract_features", "extract_features"]


@pytest.fixture
def towers(done):
    """A finished recipe with settings of the head fast_vgs."""
    (done.folder / "conf/fast_vgs.yaml").write_text(TOWER_SETTINGS)
    return done


def test_fast_vgs_stores_no_hidden_states(towers):
    for split in ("train", "dev", "test"):
        (towers.folder / f"dump/tiny/{split}/feats.scp").unlink()
    (towers.folder / "data/clip_vocabulary.tsv").unlink()
    result = towers.run(*FAST_VGS, "--stop_stage", "3")
    assert result.returncode == 0, result.stderr
    calls = towers.calls()
    assert [call.split()[0] for call in calls] == ["extract_clip_embeddings", *TOWERS, "train"]
    assert all("--config conf/fast_vgs.yaml" in call for call in calls[1:])
    assert not (towers.folder / "dump/tiny/train/feats.scp").exists()
    shutil.rmtree(towers.folder / "dump/tiny/train/convolutions")
    result = towers.run(*FAST_VGS, "--stage", "3", "--force", "true")
    assert result.returncode == 1
    assert "dump/tiny/train/convolutions/feats.scp is missing. Run stage 2" in result.stderr


def test_fast_vgs_over_hidden_states_reads_those_of_other_heads(towers):
    (towers.folder / "conf/fast_vgs.yaml").write_text(TOWER_SETTINGS.replace("convolutions", "all"))
    assert towers.run(*FAST_VGS, "--stop_stage", "3").returncode == 0
    assert towers.names() == ["extract_regions", "train"]
    (towers.folder / "dump/tiny/train/feats.scp").unlink()
    result = towers.run(*FAST_VGS, "--stage", "3", "--force", "true")
    assert result.returncode == 1
    assert "dump/tiny/train/feats.scp is missing. Run stage 2" in result.stderr
    assert towers.run(*FAST_VGS, "--stop_stage", "2").returncode == 0
    assert towers.names() == ["extract_clip_embeddings", "extract_features", "extract_features", "extract_features"]


def test_fast_vgs_has_no_keywords_to_score(towers):
    result = towers.run(*FAST_VGS)
    assert result.returncode == 0, result.stderr
    assert not (towers.folder / "exp/tiny_fast_vgs/scores/keywords.json").exists()
    assert towers.names()[-4:] == [*HEAD, "results"]
    again = towers.run(*FAST_VGS)
    assert again.returncode == 0 and towers.calls() == []


def test_fast_vgs_next_to_another_head_keeps_its_run(towers):
    assert towers.run("--head", "parallel fast_vgs").returncode == 0
    assert towers.names() == [*TOWERS, *HEAD, "results"]
    assert towers.run(*FAST_VGS, "--stage", "3").returncode == 0
    assert "train" not in towers.names()


def test_fast_vgs_trains_again_with_other_regions(towers):
    assert towers.run(*FAST_VGS).returncode == 0
    towers.calls()
    regions = towers.folder / "dump/tiny/dev/regions/feats.scp"
    regions.unlink()
    assert towers.run(*FAST_VGS, "--stop_stage", "3").returncode == 0
    assert towers.names() == TOWERS  # the same regions as before
    stored = towers.folder / "dump/tiny/.done/2_towers"
    stored.unlink()
    detector = towers.folder / "detector.pth"
    detector.write_text("x")
    assert towers.run(*FAST_VGS, "--stop_stage", "3", "--detector", "detector.pth").returncode == 0
    calls = towers.calls()
    assert [call.split()[0] for call in calls] == [*TOWERS, "train"]
    assert "--detector detector.pth" in calls[0]


def test_settings_of_training_do_not_extract_towers_again(towers):
    assert towers.run(*FAST_VGS).returncode == 0
    towers.calls()
    assert towers.run(*FAST_VGS, "--stop_stage", "3", "--tag", "x", "--", "--optim.lr", "1e-4").returncode == 0
    assert towers.names() == ["train"]
    words = ("--", "--model.head.fast_vgs.regions", "frcnn")
    result = towers.run(*FAST_VGS, "--stop_stage", "2", *words)
    assert "without writing dump/tiny/train/regions_frcnn/feats.scp" in result.stderr  # the stub knows clip only
    assert "--model.head.fast_vgs.regions frcnn" in towers.calls()[0]


@pytest.mark.parametrize("option", ["detector", "region_files"])
def test_files_of_fast_vgs_must_exist(recipe, option):
    result = recipe.run(*FAST_VGS, f"--{option}", "none.pth")
    assert result.returncode != 0
    assert result.stderr == f"error: run.sh: --{option}: none.pth: is missing\n"
