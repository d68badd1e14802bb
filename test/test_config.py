"""Configuration: layers, overrides, errors that name the key, and every YAML of the recipes."""

from __future__ import annotations

import ast
import dataclasses
import re
from pathlib import Path

import pytest
import yaml

from speechclip.common.errors import UserError
from speechclip.config import Bound, Config, OptimConfig, build_parser, known_keys, load, parse, save, to_dict

ROOT = Path(__file__).resolve().parents[1]
# egs/superb holds settings of s3prl, whose own test reads them
YAMLS = sorted(path for path in ROOT.glob("egs/**/conf/*.yaml") if "superb" not in path.parts)


def _layer(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_config_defaults_are_the_published_settings() -> None:
    config = load([])
    assert config == Config()
    optim, data = config.optim, config.data
    assert (optim.lr, optim.final_lr, optim.warmup_steps, optim.max_steps) == (1e-4, 1e-8, 5000, 50000)
    assert (optim.weight_decay, optim.clip_norm, data.batch_size, data.max_seconds) == (1e-6, 4.0, 256, 6.4)
    assert config.model.loss.temperature == 0.07
    assert config.model.head.quantizer_temperature == 0.1


def test_load_later_layers_and_overrides_win(tmp_path: Path) -> None:
    first = _layer(tmp_path / "a.yaml", "model:\n  head:\n    name: cascaded\n    keywords: 4\noptim:\n  lr: 0.5\n")
    second = _layer(tmp_path / "b.yaml", "model:\n  head:\n    keywords: 6\noptim:\n  lr: 1e-3\n")
    config = load([first, second])
    assert (config.model.head.name, config.model.head.keywords, config.optim.lr) == ("cascaded", 6, 1e-3)
    assert load([second, first]).optim.lr == 0.5
    config = load([first, second], ["--optim.lr", "2e-3", "--model.head.keywords=7"])
    assert (config.model.head.name, config.model.head.keywords, config.optim.lr) == ("cascaded", 7, 2e-3)
    assert config.optim.max_steps == 50000


def test_loads_do_not_depend_on_earlier_ones(tmp_path: Path) -> None:
    layer = tmp_path / "layer.yaml"
    layer.write_text("optim:\n  lr: 1.0\nmodel:\n  speech_encoder:\n    layers: [1, 2]\n", encoding="utf-8")
    assert load([layer], ["--optim.max_steps", "70000"]).optim.max_steps == 70000
    with pytest.raises(UserError):
        load([layer], ["--optim.max_steps", "many"])
    assert load([]) == Config()


def test_load_reads_lists_null_and_numbers(tmp_path: Path) -> None:
    path = _layer(tmp_path / "a.yaml", "model:\n  speech_encoder:\n    layers: [0, 6]\n    normalize: true\n")
    assert load([path]).model.speech_encoder.layers == [0, 6]
    config = load([path], ["--model.speech_encoder.layers", "null", "--optim.betas", "[0.8, 0.9]"])
    assert config.model.speech_encoder.layers is None
    assert config.model.speech_encoder.normalize is True
    assert config.optim.betas == (0.8, 0.9)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optim:\n  learning_rate: 1\n", "unknown configuration key 'optim.learning_rate'"),
        ("optim:\n  warmup_step: 1\n", "'optim.warmup_step'; did you mean 'optim.warmup_steps'?"),
        ("lr: 1\n", "unknown configuration key 'lr'; did you mean 'optim.lr'?"),
        ("model:\n  heads:\n    name: parallel\n", "unknown configuration key 'model.heads'"),
        ("optim.lr: 3\n", "optim.lr"),  # a dotted key is read or refused, never passed over
        ("# nothing\n", "is empty. A configuration sets at least one key."),
        ("- 1\n", "a configuration is a mapping of keys, not list"),
        ("a: [\n", "not a YAML file"),
    ],
)
def test_load_bad_layer_names_file_and_key(tmp_path: Path, text: str, message: str) -> None:
    path = _layer(tmp_path / "bad.yaml", text)
    if text.startswith("optim.lr"):
        assert load([path]).optim.lr == 3
        return
    for words in ([f"--config={path}"], ["--config", str(path)]):
        with pytest.raises(UserError) as caught:
            parse(build_parser("x", ""), words)
        assert str(caught.value).startswith(f"{path}: ")
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)


def test_load_unreadable_layer_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing.yaml: is missing"):
        load([tmp_path / "nothing.yaml"])
    (tmp_path / "latin.yaml").write_bytes(b"model: \xff\n")
    with pytest.raises(UserError, match="latin.yaml: not a YAML file"):
        load([tmp_path / "latin.yaml"])
    with pytest.raises(UserError, match=f"{tmp_path}: not a YAML file"):
        load([tmp_path])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--optim.lrr", "1"], "unknown configuration key 'optim.lrr'; did you mean 'optim.lr'?"),
        (["--keywords", "3"], "unknown configuration key 'keywords'; did you mean 'model.head.keywords'?"),
        (["--optim.lr", "fast"], "optim.lr"),
        (["--optim.lr", "null"], "optim.lr"),
        (["--optim.max_steps", "1.5"], "optim.max_steps"),
        (["--data.feats", "none"], "data.feats"),
        (["--model.speech_encoder.layers", "all"], "model.speech_encoder.layers"),
        (["--optim.betas", "[0.9]"], "optim.betas"),
        (["--model.speech_encoder.state_norm", "perhaps"], "model.speech_encoder.state_norm"),
        (["stray"], "stray"),
    ],
)
def test_load_bad_override_names_the_key(words: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        load([], words)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("text", "key"), [
    ("optim:\n  lr: fast\n", "optim.lr"), ("data:\n  feats: 3\n", "data.feats"),
    ("optim:\n  lr: null\n", "optim.lr: null is not allowed"), ("model: null\n", "configuration key 'model'"),
])  # fmt: skip
def test_load_wrong_type_in_a_layer_names_the_key(tmp_path: Path, text: str, key: str) -> None:
    with pytest.raises(UserError, match=re.escape(key)):
        load([_layer(tmp_path / "a.yaml", text)])


RANGES = {
    "model.head.attention_heads": "0", "model.head.dropout": "1", "model.head.input_dropout": "-0.1",
    "model.head.keywords": "0", "model.head.quantizer_temperature": "0", "model.loss.temperature": "-1",
    "model.speech_encoder.layers": "[]", "model.speech_encoder.window_seconds": "0",
    "data.batch_size": "1", "optim.lr": "0", "data.eval_batch_size": "0",
    "data.bucket_batches": "0", "data.time_mask_frames": "0", "data.time_masks": "-1", "data.workers": "-1",
    "data.max_seconds": "-1", "optim.max_steps": "0", "optim.warmup_steps": "50001",
    "optim.final_lr": "-1", "optim.weight_decay": "-1", "optim.clip_norm": "-1", "optim.ema_decay": "1",
    "optim.betas": "[0.9, 1.0]", "train.eval_interval": "0", "train.log_interval": "0", "train.patience": "-1",
    "eval.neighbours": "0", "eval.bootstrap": "-1", "eval.span_mass": "0", "eval.boundary_tolerance": "-0.1",
    "model.head.cif.frames_per_keyword": "0", "model.head.cif.layers": "0", "model.head.cif.width": "4",
    "model.head.cif.dropout": "1", "model.head.cif.scaling_steps": "-1", "model.head.cif.tail_threshold": "0",
    "model.head.cif.max_keywords": "0", "model.loss.parallel_weight": "-1", "model.loss.cascaded_weight": "-1",
    "model.loss.quantity_weight": "-1",
}  # fmt: skip


@pytest.mark.parametrize("key", sorted(RANGES))
def test_config_value_out_of_bounds_names_the_key(key: str) -> None:
    with pytest.raises(UserError, match=rf"^{re.escape(key)}: .* is not "):
        load([], [f"--{key}={RANGES[key]}"])


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_config_refuses_numbers_that_are_not_finite(value: float) -> None:
    with pytest.raises(UserError, match=r"^optim.lr: (inf|nan) is not positive\. Change the value\.$"):
        Config(optim=OptimConfig(lr=value))


@pytest.mark.parametrize(("key", "value"), [("data.max_seconds", "0.005"), ("optim.final_lr", "0.01")])
def test_config_refuses_values_that_contradict(key: str, value: str) -> None:
    with pytest.raises(UserError, match=f"^{key}: {value} is "):
        load([], [f"--{key}={value}"])


def test_bound_describes_itself() -> None:
    shown = {str(item.metadata["bound"]) for item in dataclasses.fields(OptimConfig) if "bound" in item.metadata}
    assert shown == {"positive", "at least 0", "in [0, 1)", "at least 1"}
    assert str(Bound(1, odd=True)) == "odd and positive"


def test_config_refuses_negative_or_repeated_layers() -> None:
    for value in ("[-1]", "[3, 3]"):
        with pytest.raises(UserError, match="^model.speech_encoder.layers: "):
            load([], [f"--model.speech_encoder.layers={value}"])


def test_save_and_load_round_trip(tmp_path: Path) -> None:
    words = [
        "--optim.lr=3e-4",
        "--model.speech_encoder.layers=[0, 2]",
        "--model.clip.path=a: b#c",
        "--optim.betas=[0.5, 0.6]",
    ]
    config = load([], words)
    save(config, tmp_path / "c.yaml")
    assert load([tmp_path / "c.yaml"]) == config
    assert yaml.safe_load((tmp_path / "c.yaml").read_text()) == to_dict(config)
    save(Config(), tmp_path / "d.yaml")
    assert load([tmp_path / "d.yaml"]) == Config()


def test_config_is_frozen() -> None:
    for part in (Config(), Config().model, Config().model.head, Config().optim):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(part, dataclasses.fields(part)[0].name, None)


def test_recipes_have_yaml_files() -> None:
    assert YAMLS


@pytest.mark.parametrize("path", YAMLS, ids=[str(path.relative_to(ROOT)) for path in YAMLS])
def test_recipes_yaml_files_load(path: Path) -> None:
    heads = [head for head in (ROOT / "egs" / "conf").glob("*.yaml") if path.stem.startswith(head.stem)]
    own = [file for file in [path.with_name("tiny.yaml")] if file.is_file() and heads]  # the model of mini
    layers = [*sorted(heads, key=lambda head: len(head.stem))[-1:], *own, path]
    config = load(layers)
    layer = yaml.safe_load(path.read_text())
    assert layer, "a layer has to set a key"

    def walk(node: dict, prefix: str = "") -> list[str]:
        return [
            k
            for key, v in node.items()
            for k in (walk(v, f"{prefix}{key}.") if isinstance(v, dict) else [prefix + key])
        ]

    assert set(walk(layer)) <= set(known_keys())
    assert config == load(layers)


def _own_files() -> list[Path]:
    return [path for path in (ROOT / "speechclip").rglob("*.py") if path.name != "config.py"]


def test_config_keys_are_all_read() -> None:
    names = set()
    for path in _own_files():
        names |= {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
    unread = [key for key in known_keys() if key.rsplit(".", 1)[-1] not in names]
    assert not unread


def test_config_keys_are_documented() -> None:
    parser = build_parser("x", "")
    shown = parser.format_help()
    for key in known_keys():
        assert f"--{key}" in shown
    classes = [type(getattr(Config(), item.name)) for item in dataclasses.fields(Config)]
    classes += [type(getattr(Config().model, item.name)) for item in dataclasses.fields(Config().model)]
    for cls in classes:
        if cls.__name__ != "ModelConfig":
            for item in dataclasses.fields(cls):
                assert re.search(rf"^\s+{item.name}: ", cls.__doc__ or "", re.MULTILINE), (cls.__name__, item.name)


def test_slice_settings_differ_in_head_and_objectives_alone() -> None:
    conf = ROOT / "egs" / "flickr8k" / "conf"
    plain, both = load([conf / "few_images.yaml"]), load([conf / "few_images_both.yaml"])
    assert both != plain and both.train.objectives.active
    head = dataclasses.replace(plain.model.head, pooling="both")
    train = dataclasses.replace(plain.train, objectives=both.train.objectives)
    assert both == dataclasses.replace(plain, model=dataclasses.replace(plain.model, head=head), train=train)
