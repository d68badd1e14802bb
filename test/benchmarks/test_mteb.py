"""The offline task of mteb made from the mini test set: equal to retrieval.json, result files, loader and reranker."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import speechclip.benchmarks  # noqa: F401 # before mteb
from speechclip.api import BATCH, SpeechCLIP
from speechclip.bin.mteb import main
from speechclip.bin.score_retrieval import main as score_retrieval
from speechclip.checkpoint.pretrained import mini_folder
from speechclip.common.errors import UserError
from speechclip.data.embeddings import save_embeddings
from speechclip.data.kaldi import DataDir

pytest.importorskip("mteb", reason="extra 'mteb' is not installed")
from speechclip.benchmarks.mteb import MtebReranker, load_encoder  # noqa: E402
from speechclip.benchmarks.mteb_meta import describe  # noqa: E402
from speechclip.benchmarks.mteb_run import evaluate  # noqa: E402
from speechclip.benchmarks.mteb_tasks import caveats, data_dir_tasks, load_undecoded, named_tasks  # noqa: E402

MINI = Path(__file__).resolve().parents[2] / "egs" / "mini"
sys.path.insert(0, str(MINI / "local"))
import generate  # noqa: E402
import prepare  # noqa: E402

SCENES = 40  # the first of the 200 of the mini test set
TASKS = {"A2I": "speech->image", "I2A": "image->speech"}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a part of the mini test set, the mini model and its retrieval.json."""
    top = tmp_path_factory.mktemp("recipes") / "mini"
    models = mini_folder().parent
    for name in ("hybrid", "hubert", "clip"):
        shutil.copytree(models / name, top / "models" / name)
    settings = top / "models" / "hybrid" / "config.yaml"
    lines = [line for line in settings.read_text().splitlines() if "eval_batch_size" not in line]
    # the batches of the API: the number of frames of an utterance depends on its batch
    lines.insert(lines.index("data:") + 1, f"  eval_batch_size: {BATCH}")
    settings.write_text("\n".join([line.replace("feats: dump", "feats: online") for line in lines]) + "\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(top)
        generate.generate(Path("corpus"), 0, {"train": 1, "dev": 1, "test": SCENES}, 3, 1)
        prepare.prepare(Path("corpus"), Path("data"))
        data, model = DataDir.load("data/test"), SpeechCLIP.from_pretrained("models/hybrid")
        save_embeddings(
            Path("dump/image_embeddings.npz"), list(data.images), model.encode_image(data.images.values()).numpy()
        )
        words = ["--checkpoint", "models/hybrid", "--data_dir", "data/test", "--dump_dir", "dump", "--out", "scores"]
        patch.setattr(sys, "argv", ["score_retrieval", *words, "--eval.bootstrap", "0"])
        score_retrieval()
    return top


@pytest.fixture(scope="module")
def results(recipe: Path) -> dict[str, Any]:
    """The result files of both tasks, by direction."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(recipe)
        main(["--model", "models/hybrid", "--data", "data/test", "--out", "out", "--trained_on", "mini"])
    found = list((recipe / "out/results/local__hybrid").glob("*/MiniTest*.json"))
    assert len(found) == 2
    return {TASKS[path.stem.removeprefix("MiniTest")[:3]]: json.loads(path.read_text()) for path in found}


@pytest.mark.parametrize("direction", TASKS.values())
def test_hit_rates_equal_retrieval_json(direction: str, recipe: Path, results: dict[str, Any]) -> None:
    expected = json.loads((recipe / "scores/retrieval.json").read_text())[direction]
    (row,) = results[direction]["scores"]["test"]
    for k in (1, 5, 10):
        assert 100 * row[f"hit_rate_at_{k}"] == pytest.approx(expected[f"R@{k}"], abs=1e-3), k
    assert 10 < expected["R@1"] < 95  # the numbers are not trivial
    if direction == "image->speech":  # three utterances per image
        assert row["recall_at_1"] <= 1 / 3 < row["hit_rate_at_1"]


def test_result_files_are_those_of_mteb(recipe: Path, results: dict[str, Any]) -> None:
    from mteb.results import TaskResult

    (path,) = (recipe / "out/results/local__hybrid").glob("*/MiniTestA2IRetrieval.json")
    result = TaskResult.from_disk(path)
    assert (result.task_name, result.get_score()) == ("MiniTestA2IRetrieval", pytest.approx(result.get_score()))
    meta = json.loads((path.parent / "model_meta.json").read_text())
    assert meta["name"] == "local/hybrid" and meta["revision"] == path.parent.name
    assert meta["modalities"] == ["audio", "image", "text"] and meta["training_datasets"] == []
    assert meta["n_parameters"] > 1e6 and meta["embed_dim"] == 128 and meta["license"] is None
    assert str(recipe) not in (path.parent / "model_meta.json").read_text()


def test_second_run_uses_the_results(
    recipe: Path, results: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(recipe)
    monkeypatch.setattr(SpeechCLIP, "encode_speech", None)  # not called
    main(["--model", "models/hybrid", "--data", "data/test", "--out", "out", "--trained_on", "mini"])
    shown = capsys.readouterr()
    assert shown.out.count("MiniTest") == 4  # two rows with the paths of their files
    assert "hit_rate_at_k" in shown.err


class Oracle:
    """A reranker that knows the answers: an utterance and its image have the same key."""

    def __init__(self, data: DataDir) -> None:
        from speechclip.data.audio import load_audio
        from speechclip.data.images import load_image

        self.images = {load_image(path).tobytes(): name for name, path in data.images.items()}
        self.speech = {load_audio(str(item.wav)).tobytes(): item.image_id for item in data.utterances}

    def speech_features(self, waves: Any) -> list[str]:
        return [self.speech[item.numpy().tobytes()] for item in waves]

    def image_features(self, images: Any) -> list[str]:
        return [self.images[item.tobytes()] for item in images]

    def score_pairs(self, speech: Any, images: Any) -> Tensor:
        return torch.tensor([float(left == right) for left, right in zip(speech, images, strict=True)])


@pytest.mark.slow
def test_reranker_orders_the_best_documents(
    recipe: Path, results: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(recipe)
    encoder = load_encoder("me/encoder", "", "cpu", path="models/hybrid", trained_on="mini")
    meta = describe(encoder.model.network, "models/hybrid", name="me/oracle", trained_on="mini", reranker=True)
    oracle = MtebReranker(Oracle(DataDir.load("data/test")), meta)
    rows = list(evaluate(encoder, data_dir_tasks("data/test"), Path("out2"), reranker=oracle, top_k=5))
    assert [row.model for row in rows] == ["me/encoder", "me/oracle"] * 2
    for coarse, fine in zip(rows[::2], rows[1::2], strict=True):
        # the oracle finds an answer first if it is among the five best of the encoder
        assert fine.scores["hit_rate_at_1"] == pytest.approx(coarse.scores["hit_rate_at_5"], abs=1e-5)
        assert coarse.scores["hit_rate_at_1"] < fine.scores["hit_rate_at_1"]
        assert (
            fine.path.is_file() and json.loads((fine.path.parent / "model_meta.json").read_text())["is_cross_encoder"]
        )


@pytest.mark.slow
def test_hub_layout_loads_without_decoding(
    recipe: Path, results: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The layout of mteb's tasks on the hub: parquet files with Audio and Image columns."""
    import datasets
    from mteb.abstasks.retrieval import AbsTaskRetrieval

    monkeypatch.chdir(recipe)
    # the cache of datasets takes two folders of this name for the same data
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(recipe / "cache"))
    data, place = DataDir.load(recipe / "data/test"), recipe / "hub"
    speech = [{"bytes": (recipe / item.wav).read_bytes(), "path": None} for item in data.utterances]
    images = [{"bytes": (recipe / path).read_bytes(), "path": None} for path in data.images.values()]
    queries = datasets.Dataset.from_dict({"id": [item.id for item in data.utterances], "audio": speech})
    corpus = datasets.Dataset.from_dict({"id": list(data.images), "image": images})
    pairs = {
        "query-id": [item.id for item in data.utterances],
        "corpus-id": [item.image_id for item in data.utterances],
        "score": [1] * len(speech),
    }
    parts = {
        "queries": queries.cast_column("audio", datasets.Audio()),
        "corpus": corpus.cast_column("image", datasets.Image()),
        "qrels": datasets.Dataset.from_dict(pairs),
    }
    listed = []
    for name, part in parts.items():
        (place / name).mkdir(parents=True)
        part.to_parquet(place / name / "test.parquet")
        listed.append(f"- config_name: {name}\n  data_files:\n  - split: test\n    path: {name}/test.parquet\n")
    (place / "README.md").write_text("---\nconfigs:\n" + "".join(listed) + "---\n")
    metadata = data_dir_tasks(recipe / "data/test")[0].metadata
    place_of = {"dataset": {"path": str(place), "revision": "main"}, "name": "HubA2IRetrieval"}
    task = type("HubTask", (AbsTaskRetrieval,), {"metadata": metadata.model_copy(update=place_of)})()
    encoder = load_encoder("me/encoder", "", "cpu", path=str(recipe / "models/hybrid"), trained_on="mini")
    (row,) = evaluate(encoder, [task], recipe / "out3")
    expected = results["speech->image"]["scores"]["test"][0]
    assert row.scores["hit_rate_at_1"] == pytest.approx(expected["hit_rate_at_1"], abs=1e-5)
    assert row.scores["ndcg_at_10"] == pytest.approx(expected["ndcg_at_10"], abs=1e-5)


def test_published_meta_is_complete(recipe: Path) -> None:
    network = SpeechCLIP.from_pretrained(recipe / "models/hybrid").network
    meta = describe(network, "hybrid_large_coco", loader=load_encoder)
    assert {name for name, value in meta.model_dump().items() if value is None} <= {
        "adapted_from", "superseded_by", "contacts", "experiment_kwargs", "output_dtypes", "extra_requirements_groups",
        "n_active_parameters_override",
    }  # fmt: skip
    assert meta.name == "speechclip/hybrid_large_coco" and meta.loader is load_encoder
    assert {"SpokenCOCOA2IRetrieval", "SpokenCOCOI2ARetrieval"} <= meta.training_datasets
    changed = describe(network, "mini", changes={"license": "mit", "release_date": "2026-01-02"})
    assert (changed.license, changed.release_date) == ("mit", "2026-01-02")
    with pytest.raises(UserError, match="ModelMeta: licence: .*Correct the field in --meta"):
        describe(network, "mini", changes={"licence": "mit"})


def test_named_tasks_exist_and_have_caveats() -> None:
    from speechclip.benchmarks.mteb_meta import CORPORA

    names = sorted(set().union(*(corpus.tasks for corpus in CORPORA.values())))
    tasks = {task.metadata.name: task for task in named_tasks(names)}
    assert list(tasks) == names
    flickr = caveats(tasks["FlickrImageToAudioRetrieval"], {"FlickrImageToAudioRetrieval"})
    assert "8,091" in flickr[0] and "and of this model" in flickr[0] and "hit_rate_at_k" in flickr[1]
    assert caveats(tasks["SpokenCOCOA2IRetrieval"], set()) == []
    (trained,) = caveats(tasks["SpokenCOCOA2IRetrieval"], {"SpokenCOCOA2IRetrieval"})
    assert "another split" in trained
    with pytest.raises(UserError, match="--tasks: 'SpokenCocoA2I' is not a task of mteb .*Did you mean"):
        named_tasks(["SpokenCocoA2I"])


def test_missing_data_is_one_line() -> None:
    (task,) = named_tasks(["SpokenCOCOA2IRetrieval"])
    with pytest.raises(UserError, match="SpokenCOCOA2IRetrieval: its data cannot be loaded: ") as caught:
        load_undecoded(task)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        pytest.param(["--model", "mini"], "--tasks or --data is needed", id="no task"),
        pytest.param(["--model", "mini", "--tasks", "X", "--batch_size", "0"], "at least 1", id="batch size"),
        pytest.param(["--model", "owner/model", "--data", "data/test"], "Give it with --trained_on", id="corpus"),
        pytest.param(["--model", "models/hybrid", "--data", "data/none"], "data/none", id="data directory"),
        pytest.param(["--model", "mini", "--data", "data/test", "--reranker", "mini"], "has a hybrid", id="reranker"),
    ],
)
def test_command_errors_are_one_line(
    words: list[str], problem: str, recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(recipe)
    with pytest.raises(SystemExit):
        main(words)
    shown = capsys.readouterr().err
    assert problem in shown and shown.count("\n") == 1


def test_embeddings_are_float32(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(recipe)
    encoder = load_encoder("", "", "cpu", path=str(recipe / "models/hybrid"), trained_on="none")
    found = encoder.encode([{"text": ["a boat"]}], task_metadata=data_dir_tasks(recipe / "data/test")[0].metadata,
                           hf_split="test", hf_subset="default")  # fmt: skip
    assert found.dtype == np.float32 and found.shape == (1, 128)
