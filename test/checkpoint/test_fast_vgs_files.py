"""Published checkpoints of FaST-VGS: every tensor, the number of layers, and scores by plain tensor operations."""

from __future__ import annotations

import pickle
from pathlib import Path

import fast_vgs_files as files
import pytest
import torch

from speechclip import SpeechCLIP
from speechclip.bin.convert_checkpoint import main as convert
from speechclip.checkpoint.pretrained import load_pretrained
from speechclip.checkpoint.published import CACHE_VARIABLE
from speechclip.common.errors import UserError
from speechclip.convert.fast_vgs import convert_fast_vgs, read_fast_vgs
from speechclip.data.dataset import Batch
from speechclip.data.regions import Regions
from speechclip.model.cross_modal import score_all_pairs
from speechclip.model.network import SpeechNetwork
from speechclip.upstream import hubconf
from speechclip.upstream.expert import UpstreamExpert


def waves() -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(4)
    return tuple(
        torch.randn(count, generator=generator) for count in (3300, 4800, 5600, 2000)
    )  # one is cut, two padded


def regions() -> Regions:
    generator = torch.Generator().manual_seed(5)
    return Regions(torch.randn(3, 4, files.REGION, generator=generator), torch.rand(3, 4, 4, generator=generator))


@torch.no_grad()
def our_scores(model: SpeechNetwork) -> tuple[torch.Tensor, torch.Tensor]:
    output = model(Batch(torch.arange(4), None, None, waves()))
    sequences, coarse = model.head.image(regions())
    return output.embedding @ coarse.T, score_all_pairs(model.head.scorer, output.sequence, output.valid, sequences, 5)


def plain_scores(state: dict[str, torch.Tensor], layers: int) -> tuple[torch.Tensor, torch.Tensor]:
    speech = [files.speech_tower(wave, state, layers) for wave in waves()]
    images = [files.image_tower(*pair, state) for pair in zip(*regions())]
    coarse = torch.stack([torch.stack([s[2] @ i[1] for i in images]) for s in speech])
    fine = torch.stack([torch.stack([files.fine_score(s[0], s[1], i[0], state) for i in images]) for s in speech])
    return coarse, fine


@pytest.mark.parametrize("layers", [2, 4])  # as FaST-VGS, and as FaST-VGS+, whose higher layers are not used
def test_scores_equal_plain_tensor_operations(layers: int, tmp_path: Path) -> None:
    state = files.write_bundle(tmp_path, layers)
    model = load_pretrained(tmp_path / "best_bundle.pth")
    assert model.config.head.fast_vgs.speech_layers == layers
    coarse, fine = plain_scores(state, 2)
    assert coarse.std() > 0.02  # 1,000 times the tolerance
    assert fine.std() > 0.001
    ours = our_scores(model)
    torch.testing.assert_close(ours[0], coarse, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours[1], fine, atol=1e-5, rtol=1e-5)


def test_converted_folder_gives_the_same_scores(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files.write_bundle(tmp_path)
    convert(["--checkpoint", str(tmp_path / "best_bundle.pth"), "--out", str(tmp_path / "out")])
    assert "no output depends on" in capsys.readouterr().out
    ours, again = (
        our_scores(load_pretrained(tmp_path / "best_bundle.pth")),
        our_scores(load_pretrained(tmp_path / "out")),
    )
    torch.testing.assert_close(ours[0], again[0])
    torch.testing.assert_close(ours[1], again[1])


def test_published_sizes_have_all_parameters() -> None:
    sizes = {"d": 768, "f": 3072}
    with torch.device("meta"):
        dual = files.dual_shapes(
            8, **sizes, c=512, region=2048, kernel=128, groups=16, widths=(128, 128, 256, 512, 768), image_layers=6,
            codes=(640, 128), final=256,
        )  # fmt: skip
        tensors = {name: torch.empty(shape) for name, shape in {**dual, **files.cross_shapes(**sizes)}.items()}
    found = convert_fast_vgs(tensors, {}, "here")
    assert found.parameters == 188_522_369
    settings = found.config.head.fast_vgs
    assert (settings.speech_layers, settings.speech_layer, settings.heads, settings.speech_heads) == (8, 8, 12, 12)
    dead = sum(tensors[name].numel() for name in found.dropped)
    assert dead == 2_361_600 + 672_896 + 768  # overwritten projection, parts of the pretraining, its mask
    assert settings == type(settings)()  # the defaults are the published sizes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda dual: dual.update(extra=torch.ones(2)), "unknown tensor extra"),
        (lambda dual: dual.update({"trm2.attention.other.weight": torch.ones(2)}), "unknown tensor trm2"),
        (lambda dual: dual.pop("trm2_proj.bias"), "head.speech.projection.bias is missing"),
        (lambda dual: dual.pop("conv2.layer2.1.bn1.running_var"), "norm1.running_var is missing"),
        (lambda dual: dual.update({"trm2_proj.weight": torch.ones(8, 9)}), "trm2_proj|projection.weight is"),
        (lambda dual: dual.pop(f"{files.TOWER}.feature_extractor.conv_layers.3.0.weight"), "conv_layers.3.0.weight is"),
        (lambda dual: dual.update({"trm2_proj.weight": 3}), "trm2_proj.weight is a int, not a tensor"),
    ],
)
def test_wrong_tensors_are_errors(change, message: str, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    dual = files.random_state(files.dual_shapes(2), 1)
    change(dual)
    files.write_bundle(tmp_path, dual_encoder=dual)
    with pytest.raises(UserError, match=message):
        load_pretrained(tmp_path / "best_bundle.pth")


class Hostile:
    def __reduce__(self) -> tuple:  # type: ignore[type-arg]
        return (Path("executed").touch, ())


def test_code_in_a_file_is_not_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    files.write_bundle(tmp_path)
    (tmp_path / "args.pkl").write_bytes(pickle.dumps({"a": Hostile()}))
    with pytest.raises(UserError, match=r"args.pkl"):
        read_fast_vgs(tmp_path / "best_bundle.pth")
    files.write_bundle(tmp_path / "other", optimizer=Hostile())
    with pytest.raises(UserError, match=r"best_bundle.pth"):
        read_fast_vgs(tmp_path / "other" / "best_bundle.pth")
    assert not (tmp_path / "executed").exists()


def test_arguments_may_be_missing(tmp_path: Path) -> None:
    files.write_bundle(tmp_path)
    (tmp_path / "args.pkl").unlink()
    found = read_fast_vgs(tmp_path / "best_bundle.pth").config
    assert (found.speech_encoder.eval_seconds, found.head.fast_vgs.speech_layer) == (10.0, 2)


@pytest.mark.parametrize("name", ["fast_vgs_coco", "fast_vgs_plus_coco"])
def test_names_load_the_files_in_the_cache(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    with pytest.raises(UserError, match=rf"{name}/best_bundle.pth: is missing. Download best_bundle.pth and args.pkl"):
        SpeechCLIP.from_pretrained(name)
    files.write_bundle(tmp_path / name, 4)
    assert SpeechCLIP.from_pretrained(name).network.config.head.name == "fast_vgs"
    assert isinstance(hubconf.ENTRIES[name](), UpstreamExpert)


def test_upstream_returns_the_states_of_all_layers(tmp_path: Path) -> None:
    state = files.write_bundle(tmp_path, 4)
    expert = hubconf.ENTRIES["fast_vgs_plus_coco"](ckpt=str(tmp_path / "best_bundle.pth"))
    found = expert(list(waves()))["hidden_states"]
    assert len(found) == 5
    longest = max(map(len, waves()))
    for at, wave in enumerate(waves()):
        fixed = torch.zeros(longest)
        fixed[: len(wave)] = (wave - wave.mean()) / wave.std(unbiased=False)
        features = files.convolve(fixed, state)
        share = longest // len(features)
        valid = torch.arange(len(features)) * share < len(wave)
        wanted = files.wav2vec_states(features, valid, state, 4)
        for ours, theirs in zip(found, wanted):
            torch.testing.assert_close(ours[at], theirs[1:], atol=1e-4, rtol=1e-4)
