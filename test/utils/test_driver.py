"""utils/driver.sh and its stages: order, stamps, locks, failures. The stage scripts are stubs."""

from __future__ import annotations

import hashlib
import json
import os
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
    """A recipe that has run once; not to be changed."""
    made = fake_recipe.FakeRecipe(tmp_path_factory.mktemp("finished"))
    result = made.run()
    assert result.returncode == 0, result.stderr
    return made, result, made.names()


@pytest.fixture
def done(finished, tmp_path: Path):
    """A copy of it."""
    shutil.copytree(finished[0].folder.parents[1], tmp_path / "copy", symlinks=True)
    copy = object.__new__(fake_recipe.FakeRecipe)
    copy.folder = tmp_path / "copy" / "egs" / "mini"
    return copy


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.05)


def test_whole_run(finished):
    recipe, result, names = finished
    assert names == ALL
    assert "stage 3 (train): tiny_parallel seed 0: not done yet" in result.stdout
    assert "stage 3 (train): tiny_cascaded seed 0: done in" in result.stdout
    assert result.stderr == ""
    for file in ("RESULTS.md", "exp/tiny_parallel/scores/retrieval.json", "exp/tiny_cascaded/scores/keywords.json"):
        assert (recipe.folder / file).is_file()
    assert "working on train" in (recipe.folder / "exp/tiny_parallel/log/3_train.log").read_text()


def test_second_run_does_nothing_and_says_so(done):
    started = time.monotonic()
    result = done.run()
    assert time.monotonic() - started < 5
    assert result.returncode == 0
    assert done.calls() == []
    assert result.stdout.count("up to date") == len(result.stdout.splitlines()) == 10


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


def test_overrides_of_training_leave_features_alone(done):
    result = done.run("--", "--optim.lr", "1e-4")
    assert result.returncode == 0
    assert done.names() == [*HEAD, *HEAD, "results"]
    assert "stage 3 (train): tiny_parallel seed 0: overrides changed from ' ' to ' --optim.lr 1e-4'" in result.stdout
    done.run("--", "--model.speech_encoder.normalize", "true")
    assert done.names() == [*FEATURES, *HEAD, *HEAD, "results"]


@pytest.mark.parametrize("words", [["--eval.sweep", "[1,2,7]"], ["--eval.sweep=[1,2,7]"]])
def test_overrides_of_scoring_reach_it_and_train_nothing_anew(done, words):
    scored = ["score_retrieval", "score_keywords"]
    result = done.run("--head", "cascaded", "--", *words)
    assert result.returncode == 0, result.stderr
    calls = done.calls()
    assert [call.split()[0] for call in calls] == [*scored, "results"]
    assert [call.partition("/scores ")[2] for call in calls[:2]] == [" ".join(words)] * 2
    assert done.run("--head", "cascaded", "--", *words).stdout.count("up to date") == 7
    done.run("--head", "cascaded", "--stage", "5", "--stop_stage", "5")
    assert done.names() == ["score_keywords"]  # without it, as it was before


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


def test_changed_option_runs_what_follows(done):
    done.run("--feats", "online")
    assert done.names() == ["extract_clip_embeddings", *HEAD, *HEAD, "results"]


def test_changed_layer_runs_only_its_head(done):
    (done.folder.parent / "conf" / "cascaded.yaml").write_text("b: 2\n")
    done.run()
    assert done.names() == [*HEAD, "results"]


def test_script_that_makes_the_same_data_changes_nothing_later(done):
    with (done.folder / "local" / "prepare.sh").open("a") as script:
        script.write("# a comment\n")
    done.run()
    assert done.names() == ["download", "prepare", "validate_data_dir"]


def test_other_data_runs_everything_later(done):
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
        ("RESULTS.md", ["results"]),
    ],
)
def test_missing_output_is_made_again(done, lost, stages):
    (done.folder / lost).unlink()
    result = done.run()
    assert f"{lost} is missing" in result.stdout
    assert done.names() == stages  # the same content came back, so nothing later has to run


def test_force_runs_the_stages_asked_for(done):
    done.run("--stage", "4", "--stop_stage", "4", "--force", "true", "--head", "cascaded")
    assert done.names() == ["score_retrieval"]
    done.run("--stage", "3", "--stop_stage", "3", "--force", "true", "--head", "cascaded")
    assert (done.folder / "exp/tiny_cascaded/last/state").read_text() == "fresh"


def test_stage_4_alone_works(done):
    shutil.rmtree(done.folder / "exp" / "tiny_parallel" / "scores")
    assert done.run("--stage", "4").returncode == 0
    assert done.names() == ["score_retrieval"]


def test_stop_stage(recipe):
    recipe.run("--stop_stage", "1")
    assert recipe.names() == ["download", "prepare", "validate_data_dir"]


def test_recipe_option_asks_for_work_and_changes_nothing_later(done):
    done.run("--pretrain", "true")
    assert done.calls() == ["download --corpus  --nj 2 --scenes 4000 --pretrain true"]
    done.run()
    assert done.calls() == []


def test_recipe_option_with_another_value_runs_its_stage(done):
    result = done.run("--scenes", "50", "--stop_stage", "0")
    assert "scenes changed from '4000' to '50'" in result.stdout
    assert done.calls() == ["download --corpus  --nj 2 --scenes 50 --pretrain false"]


def test_where_something_comes_from_runs_its_stage_and_changes_nothing_later(done):
    text = (done.folder / "run.sh").read_text()
    assert text.count("download_options=(scenes pretrain)") == 1
    text = text.replace("download_options=(scenes pretrain)", "download_options=(scenes pretrain mirror)")
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
    assert done.names()[:2] == ["download", "prepare"]  # what came counts


def test_stamps_of_before_hold_on(done):
    """Stamps told nothing of what is aside, and what came after them saw all inputs."""
    path = done.folder / "data/.done/0_download"
    old = json.loads(path.read_text())
    assert old.pop("aside") == ["scenes"] and old["inputs"]["scenes"] == "4000"
    path.write_text(json.dumps(old))
    stamps = done.folder / "data/.done"
    after = json.loads((stamps / "1_prepare").read_text())
    seen = {name: value for name, value in old["inputs"].items() if not name.startswith("script ")}
    after["inputs"]["stage 0_download"] = hashlib.sha256(
        json.dumps([seen, old["outputs"]], sort_keys=True).encode()
    ).hexdigest()
    (stamps / "1_prepare").write_text(json.dumps(after))
    result = done.run("--stop_stage", "1")
    assert result.stdout.count("up to date") == 2 and done.calls() == []


def test_a_corpus_that_is_gone_is_obtained_again_and_one_of_the_users_is_not_asked_for(done):
    shutil.rmtree(done.folder / "corpus")
    assert "stage 0 (download): corpus/captions.tsv is missing" in done.run("--stop_stage", "1").stdout
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


def test_a_vocabulary_that_another_dump_has_replaced_is_counted_again(done):
    """Two dump folders with tokenizers of their own: each makes its own again before it goes on."""
    (done.folder / "data/clip_vocabulary.tsv").write_text("of another tokenizer")
    result = done.run()
    assert "stage 2 (features): tiny: data/clip_vocabulary.tsv is another run's" in result.stdout
    assert done.names() == FEATURES  # it came out as it was: nothing later has to run


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
def test_missing_input_names_the_stage_that_makes_it(recipe, options, missing, stage):
    result = recipe.run(*options)
    assert result.returncode == 1
    assert f"{missing} is missing: stage {stage} makes it (./run.sh --stage {stage})" in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--model", "huge"], "--model: this recipe has no 'huge' (it has: tiny)"),
        (["--head", "parallel serial"], "--head: this recipe has no 'serial' (it has: parallel cascaded hybrid"),
        (["--head", ""], "--head: at least one"),
        (["--feats", "none"], "--feats: this recipe has no 'none' (it has: dump online)"),
        (["--seed", "0 x"], "--seed: 'x' is not a whole number"),
        (["--stop_stage", "8"], "there are stages 0 to 7"),
        (["--models", "nowhere", "--stage", "2"], "--models: nowhere: no such folder (stage 0 makes it)"),
        (["--push", "me/x", "--stop_stage", "7"], "--push: a repository holds the pack of one run: give one --head"),
        (["--push", "me/x", "--head", "parallel", "--seed", "0 1"], "--push: a repository holds the pack of one run"),
        (["--vocabulary", "test"], "--vocabulary: this recipe has no 'test' (it has: all train)"),
        (["--supervision", "audio"], "--supervision: this recipe has no 'audio' (it has: image text)"),
        (["--stage", "4", "--stop_stage", "3"], "nothing to do from stage 4 to stage 3"),
        (["--stage", "three"], "--stage: 'three' is not a whole number"),
        (["--tag", "a/b"], "--tag: 'a/b' does not fit"),
        (["--tag", "plus"], "--tag: 'plus' belongs to the names of heads"),
        (["--tag", "plus_wide"], "--tag: 'plus' belongs to the names of heads"),
        (["--corpus", "nowhere"], "--corpus: nowhere: no such folder"),
        (["--clip_embeddings", "no.npz"], "--clip_embeddings: no.npz: no such file"),
        (["--checkpoint", "exp/x"], "--checkpoint: exp/x: no such checkpoint"),
        (["--nj", "0"], "--nj: at least one process is needed"),
        (["--num_nodes", "0"], "--num_nodes: at least one machine is needed"),
        (["--python", "nopython"], "--python: nopython: no such program"),
        (["--moodel", "tiny"], "unknown option --moodel, did you mean --model?"),
        (["--", "--bad.key", "1"], "unknown configuration key bad.key"),
    ],
)
def test_mistakes_are_one_line_before_anything_is_written(recipe, options, reason):
    before = sorted(recipe.folder.rglob("*"))
    result = recipe.run(*options)
    assert result.returncode in (1, 2)
    assert reason in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert sorted(recipe.folder.rglob("*")) == before


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
    assert last == f"error: run.sh: stage 3 (train) failed for tiny_parallel seed 0 (status 1); its log: {log}"
    assert "data/x: no good" in (recipe.folder / "exp/tiny_parallel/log/3_train.log").read_text()
    recipe.run()
    assert recipe.names() == [*HEAD, *HEAD, "results"]


def test_cut_training_is_resumed_and_a_changed_one_is_not(recipe):
    (recipe.folder / "exp/tiny_parallel/last").mkdir(parents=True)
    recipe.run("--head", "parallel", FAIL="train")
    (recipe.folder / "exp/tiny_parallel/last").mkdir(exist_ok=True)
    recipe.run("--head", "parallel")
    assert (recipe.folder / "exp/tiny_parallel/last/state").read_text() == "resumed"
    recipe.run("--head", "parallel", "--", "--optim.lr", "1")
    assert (recipe.folder / "exp/tiny_parallel/last/state").read_text() == "fresh"


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
    assert "nothing to train" in result.stdout
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


def test_a_published_checkpoint_plans_no_dump_and_needs_no_other_speech_encoder(recipe):
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
    told = "--feats online: epoch_3.ckpt takes recordings, no hidden states are stored for it\n"
    assert result.stdout.startswith(told)
    calls = recipe.calls()
    names = ["extract_clip_embeddings", "convert_checkpoint", "score_retrieval", "score_keywords", "results"]
    assert [call.split()[0] for call in calls] == names
    assert "--model.clip.path encoders/ViT-L-14.pt" in calls[0] and "speech_encoder" not in calls[0]
    assert "--clip encoders/ViT-L-14.pt" in calls[1] and "--dump_dir dump/large/test" in calls[2]
    without = recipe.run("--model", "large", "--models", "encoders", "--stage", "2")
    assert "has none of: hubert_large_ll60k.pt hubert-large-ll60k (stage 0 downloads it)" in without.stderr
    (recipe.folder / "encoders" / "ViT-L-14.pt").unlink()
    without = recipe.run(*options, "--stage", "4")
    assert "has none of: ViT-L-14.pt clip-vit-large-patch14 ViT-L-14 (stage 0 downloads it)" in without.stderr
    assert len(without.stderr.splitlines()) == 1


def test_scoring_a_published_checkpoint_leaves_the_runs_here_up_to_date(done):
    (done.folder / "epoch_3.ckpt").write_text("1")
    assert done.run("--checkpoint", "epoch_3.ckpt").returncode == 0
    assert "extract_features" not in done.names()
    for options in (["--stage", "3"], []):
        result = done.run(*options)
        assert result.stdout.count("up to date") == len(result.stdout.splitlines())
    assert done.run("--checkpoint", "epoch_3.ckpt").stdout.count("up to date") == 6  # all but what is not trained
    assert done.calls() == []


@pytest.mark.parametrize("stage", ["5", "7"])
def test_what_a_published_checkpoint_is_converted_to_is_of_stage_4(done, stage):
    (done.folder / "epoch_3.ckpt").write_text("1")
    result = done.run("--checkpoint", "epoch_3.ckpt", "--stage", stage)
    told = "exp/epoch_3/converted is missing: stage 4 makes it (./run.sh --stage 4)"
    assert result.returncode == 1 and told in result.stderr


@pytest.mark.parametrize("feats", ["dump", "online"])
def test_a_checkpoint_of_ones_own_is_scored_as_it_was_trained(done, feats):
    shutil.move(done.folder / "exp/tiny_cascaded/best", done.folder / "given")
    (done.folder / "given/config.yaml").write_text(f"data:\n  feats: {feats}\n")
    result = done.run("--checkpoint", "given", "--stop_stage", "2", "--force", "true")
    assert result.returncode == 0
    assert ("extract_features" in done.names()) == (feats == "dump")
    assert result.stdout.startswith("--feats online: given takes recordings") == (feats == "online")


def test_a_run_is_packed_on_request(done):
    assert done.run("--head", "parallel", "--stage", "7", "--push", "me/model").returncode == 0
    assert done.calls() == [
        "pack --checkpoint exp/tiny_parallel/best --scores exp/tiny_parallel/scores "
        "--out exp/tiny_parallel/pack --push me/model"
    ]
    assert "up to date" in done.run("--head", "parallel", "--stage", "7", "--push", "me/model").stdout


def test_the_supervised_topline_is_a_run_of_its_own(done):
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
    assert "has none of: hubert_large_ll60k.pt hubert-large-ll60k (stage 0 downloads it)" in result.stderr


def test_launcher_and_torchrun(done):
    (done.folder / "cmd.sh").write_text('train_cmd="env LAUNCHED=1"\n')
    done.run("--stage", "3", "--stop_stage", "3", "--force", "true", "--head", "parallel")
    log = (done.folder / "exp/tiny_parallel/log/3_train.log").read_text().splitlines()
    assert "env LAUNCHED=1" in log[-2]
    assert done.names() == ["train"]
    done.run("--stage", "3", "--stop_stage", "3", "--ngpu", "2", "--head", "parallel")
    log = (done.folder / "exp/tiny_parallel/log/3_train.log").read_text()
    assert "utils/torchrun.py --ngpu 2 --num_nodes 1 --endpoint  -m speechclip.bin.train" in log
    assert done.names() == ["train", "train"]


def test_several_machines_want_a_launcher(recipe):
    result = recipe.run("--num_nodes", "2")
    assert result.returncode == 2
    assert "--num_nodes: train_cmd of cmd.sh has to start its arguments on each of 2 machines" in result.stderr


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


def test_a_stage_that_was_stopped_and_has_saved_gives_its_status_to_the_recipe(recipe):
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
    told = "error: run.sh: stage 3 (train) was stopped and has saved; the same command goes on from there"
    assert errors.strip() == told
    assert output.endswith("saved\n")
    assert (recipe.folder / "exp/tiny_parallel/log/3_train.log").read_text().endswith("saved\n")
    stub.write_text("import sys\nsys.exit(75)\n")  # asked by somebody else: Slurm asks every process
    result = recipe.run()
    assert (result.returncode, result.stderr.strip()) == (75, told)


@pytest.mark.parametrize("nj", ["1", "2"])
def test_stage_2_that_has_stored_its_batches_ends_the_recipe_with_that_status(recipe, nj):
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
    told = "error: run.sh: stage 2 (features) was stopped and has saved; the same command goes on from there"
    assert (process.returncode, errors.strip()) == (75, told)


def test_a_second_run_beside_it_is_refused_and_a_killed_ones_stage_is_waited_for(recipe):
    first = recipe.start(SLEEP="train")
    try:
        wait_for(recipe.folder / "started")
        second = recipe.run()
        assert second.returncode == 1
        assert (
            second.stderr.strip() == f"error: run.sh: another run is at work in {recipe.folder} (process {first.pid})"
        )
    finally:
        first.kill()  # the shell alone, without a chance to tidy up
        first.communicate()
    after = recipe.run("--stop_stage", "0")  # its stage notices and ends, the lock goes with it
    assert (after.returncode, after.stderr) == (0, "")


@pytest.mark.parametrize(("sign", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_the_stage_and_frees_the_folder(recipe, sign, status):
    process = recipe.start(SLEEP="train")
    wait_for(recipe.folder / "started")
    os.kill(process.pid, sign)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == status
    assert errors.strip() == "error: run.sh: stopped in stage 3 (train); the same command goes on from there"
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
