"""The registry of corpora, the ids of photographs, and the rows of skipped.tsv."""

from __future__ import annotations

from pathlib import Path

import pytest

import speechclip.data.corpora
from speechclip.bin.prepare_corpus import main
from speechclip.common.errors import UserError
from speechclip.data.corpora.preparation import caption_problem, make_image_ids
from speechclip.data.corpora.registry import corpus_names, find_corpus

NEW = """
from speechclip.data.corpora.preparation import Limits, Summary

LIMITS = Limits(max_bad=0.5)
LICENCE = "free"

def find_parts(corpus):
    return None

def prepare_tiny(corpus_dir, data_dir, limits=LIMITS):
    return Summary({}, {f"{corpus_dir} {data_dir} {limits.max_bad} {limits.nj}": 1})
"""


def test_registry_finds_the_corpora() -> None:
    assert {"flickr8k", "spokencoco", "places"} <= set(corpus_names())
    for name in corpus_names():
        corpus = find_corpus(name)
        assert corpus.name == name and corpus.download is not None and corpus.sources and corpus.licence
        assert corpus.page.startswith("https://")
    with pytest.raises(
        UserError, match=rf"^unknown corpus 'sources' \(known: {' '.join(corpus_names())}\)\. Choose a known one\.$"
    ):
        find_corpus("sources")


def test_registry_finds_a_new_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tiny.py").write_text(NEW)
    known = corpus_names()
    monkeypatch.setattr(speechclip.data.corpora, "__path__", [*speechclip.data.corpora.__path__, str(tmp_path)])
    assert corpus_names() == sorted([*known, "tiny"])
    tiny = find_corpus("tiny")
    assert (tiny.sources, tiny.download, tiny.page, tiny.mteb_tasks) == ((), None, "", frozenset())
    main(["--name", "tiny", "--corpus", "in", "--out", "out", "--nj", "1"])
    assert "in out 0.5 1" in capsys.readouterr().out


def test_script_lists_the_corpora(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--name", "imagenet", "--corpus", "in"])
    assert caught.value.code == 2
    assert capsys.readouterr().err == f"error: --name: unknown corpus 'imagenet' (known: {' '.join(corpus_names())})\n"


@pytest.mark.parametrize(
    ("paths", "ids"),
    [
        (["val/1.jpg", "val/2.jpg"], ["1", "2"]),
        (["kitchen/1.jpg", "street/1.jpg"], ["kitchen_1", "street_1"]),
        (["1.jpg", "1.png"], ["1.jpg", "1.png"]),
        (["a/1.jpg", "a/1.png", "b/1.jpg", "2.jpg"], ["a_1.jpg", "a_1.png", "b_1", "2"]),
        (["a b.jpg", "a_b.jpg"], ["a%20b.jpg", "a_b.jpg"]),
        (["a/1.jpg", "b/1.jpg", "a_1.jpg"], ["a_1.jpg", "b_1", "a_1"]),
        (["1.jpg", "1.jpg"], ["1"]),
        (["x.jpg.1", "x.jpg"], ["x.jpg", "x"]),
        (["my photo.jpg"], ["my_photo"]),
    ],
)
def test_image_ids_differ_for_different_photographs(paths: list[str], ids: list[str]) -> None:
    assert make_image_ids(paths) == dict(zip(dict.fromkeys(paths), ids))


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("a dog", None),
        ("", "empty caption"),
        ("\n", "empty caption"),
        (None, "caption is not a text"),
        (1.5, "caption is not a text"),
        (["a"], "caption is not a text"),
        ("\udfff", "caption is not valid Unicode"),
    ],
)
def test_caption_problem_names_the_reason(value: object, problem: str | None) -> None:
    assert caption_problem(value) == problem
