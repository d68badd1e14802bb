"""The s3prl upstream: registration, hidden states, s3prl's and ESPnet's uses, and unmodified commands of s3prl."""

from __future__ import annotations

import copy
import json
import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures import STATES, WIDTH, wave, whole_model
from golden import CASES, FILE, HEADS, model_of, sample, waves
from published_files import (
    clip_tensors,
    reduced_ids,
    save_checkpoint_file,
    save_script,
    state_dict,
)

from speechclip.api import SpeechCLIP
from speechclip.checkpoint.folder import save_checkpoint
from speechclip.common.errors import UserError
from speechclip.upstream.expert import UpstreamExpert

TOLERANCE = 2e-4
needs_s3prl = pytest.mark.skipif(find_spec("s3prl") is None, reason="extra 's3prl' is not installed")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Checkpoint folders: both heads on a Base-type encoder, and parallel on a Large-type one."""
    folder = tmp_path_factory.mktemp("recipe")
    return {
        "parallel": save_run(folder, "parallel", "parallel"),
        "cascaded": save_run(folder, "cascaded", "cascaded"),
        "large": save_run(folder, "large", "parallel", large=True),
    }


def save_run(recipe: Path, name: str, head: str, *, large: bool = False) -> str:
    """Save a checkpoint of a tiny model in a recipe's folder, as training does. Return its path."""
    model, config = whole_model(recipe, head, large=large)
    before = Path.cwd()
    os.chdir(recipe)
    try:
        save_checkpoint(Path("exp") / name / "best", model, model.trained_state(), config, {"seed": 0})
    finally:
        os.chdir(before)
    return str(recipe / "exp" / name / "best")


@pytest.mark.parametrize(("head", "large"), CASES)
def test_hidden_states_equal_the_golden_values(tmp_path: Path, head: str, large: bool) -> None:
    expected = torch.tensor(json.loads(FILE.read_text())[f"{head}-{'large' if large else 'base'}"])
    model = model_of(tmp_path, head, large)
    found = torch.tensor(sample(model.hidden_states(waves())[0]))
    assert found.shape == expected.shape and expected.std() > 0.3
    assert (found - expected).abs().max() < TOLERANCE
    # A change of one weight in the head's layer exceeds the tolerance, in the last state only.
    with torch.no_grad():
        model.network.head.attention.attention.in_proj_weight[-1, 0] += 0.05
    moved = (torch.tensor(sample(model.hidden_states(waves())[0])) - expected).abs().amax(dim=1)
    assert (moved[:-1] < TOLERANCE).all() and moved[-1] > TOLERANCE


@pytest.mark.parametrize("name", ["parallel", "cascaded", "large"])
def test_expert_returns_states_of_encoder_and_head(checkpoints: dict[str, str], name: str) -> None:
    expert = UpstreamExpert(checkpoints[name]).eval()
    model = SpeechCLIP.from_pretrained(checkpoints[name])
    batch = [torch.from_numpy(wave(n, n)) for n in (9000, 5000)]
    result = expert(batch)
    states = result["hidden_states"]
    with torch.no_grad():
        encoder, frames = model.network.encode_waves(batch)
        mixed, padding = model.network.weighted_sum(encoder), torch.arange(encoder.shape[2])[None] >= frames[:, None]
        head_states = model.network.head.frame_states(mixed, padding)
    assert len(states) == STATES + 1
    assert all(torch.equal(states[i], encoder[:, i]) for i in range(STATES))
    assert torch.equal(states[-1], head_states)
    assert result["last_hidden_state"] is states[-1] and result["hidden_state_1"] is states[1]
    assert {state.shape for state in states} == {(2, 27, WIDTH)}
    assert expert.get_downsample_rates("hidden_states") == 320
    alone = UpstreamExpert(checkpoints[name], head_layer=False).eval()(batch)["hidden_states"]
    assert len(alone) == STATES and all(torch.equal(a, b) for a, b in zip(alone, states))


def test_head_states_do_not_depend_on_the_batch(checkpoints: dict[str, str]) -> None:
    """Equal encoder states alone and next to a longer utterance give equal head states."""
    model = SpeechCLIP.from_pretrained(checkpoints["parallel"])
    states = torch.randn(2, STATES, 30, WIDTH, generator=torch.Generator().manual_seed(0))
    together = model.network.head.frame_states(*model.network._mix(states, torch.tensor([30, 12])))
    alone = model.network.head.frame_states(*model.network._mix(states[1:, :, :12], torch.tensor([12])))
    assert (together[1, :12] - alone[0]).abs().max() < 1e-5


def test_batch_and_single_differ_only_by_padding(checkpoints: dict[str, str]) -> None:
    short, long = torch.from_numpy(wave(8000, 1)), torch.from_numpy(wave(16000, 2))
    for name, worst in (("large", 0.15), ("parallel", 0.6)):  # relative; the group norm (Base) sees the padding
        expert = UpstreamExpert(checkpoints[name]).eval()
        alone = torch.stack(expert([short])["hidden_states"])[:, 0]
        together = torch.stack(expert([short, long])["hidden_states"])[:, 0, : alone.shape[1]]
        error = (together - alone).flatten(1).norm(dim=1) / alone.flatten(1).norm(dim=1)
        assert (error < worst).all() and torch.isfinite(error).all(), (name, error)
        same = torch.stack(expert([short, short])["hidden_states"])
        assert (same[:, 0] - alone).abs().max() < 1e-4 and (same[:, 1] - alone).abs().max() < 1e-4


@pytest.mark.parametrize("seconds", [0.05, 60.0])
def test_expert_takes_short_and_long_audio(checkpoints: dict[str, str], seconds: float) -> None:
    states = UpstreamExpert(checkpoints["cascaded"]).eval()([torch.from_numpy(wave(int(seconds * 16000), 0))])
    last = states["last_hidden_state"]
    assert abs(last.shape[1] - seconds * 50) <= 1 and torch.isfinite(last).all()


def test_expert_scales_int16_and_refuses_other_scales(checkpoints: dict[str, str]) -> None:
    expert = UpstreamExpert(checkpoints["parallel"]).eval()
    integers = (torch.from_numpy(wave(8000, 3)) * 32767).to(torch.int16)
    assert torch.equal(expert([integers])["last_hidden_state"], expert([integers.float() / 32768])["last_hidden_state"])
    for bad, message in (
        (integers.float(), "full scale is 1"), (integers.int(), "int16"), (torch.full((900,), torch.nan), "NaN"),
        (torch.zeros(2, 900), "1-D"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=message):
            expert([bad])
    with pytest.raises(UserError, match="8000 Hz"):
        UpstreamExpert(checkpoints["parallel"], sample_rate=8000)


@pytest.mark.parametrize("precision", [torch.float16, torch.bfloat16])
def test_expert_runs_in_half_precision(checkpoints: dict[str, str], precision: torch.dtype) -> None:
    batch = [torch.from_numpy(wave(6000, 4)), torch.from_numpy(wave(4000, 5))]
    for name in ("parallel", "cascaded", "large"):
        full = UpstreamExpert(checkpoints[name]).eval()(batch)["hidden_states"]
        half = UpstreamExpert(checkpoints[name]).eval().to(precision)(batch)["hidden_states"]
        for a, b in zip(full, half):
            assert b.dtype == precision
            assert (b.float() - a).norm() / a.norm() < (0.02 if precision == torch.float16 else 0.1)


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
WITH_AUTOCAST = [
    ("cpu", torch.bfloat16),
    *(pytest.param("cuda", p, marks=needs_gpu) for p in (torch.float16, torch.bfloat16)),
]


@pytest.mark.parametrize(("device", "precision"), WITH_AUTOCAST)
def test_expert_runs_under_autocast(checkpoints: dict[str, str], device: str, precision: torch.dtype) -> None:
    """s3prl trains under autocast. All states have one type and are close to those in single precision."""
    batch = [torch.from_numpy(wave(6000, 4)), torch.from_numpy(wave(4000, 5))]
    for name in ("parallel", "cascaded", "large"):
        expert = UpstreamExpert(checkpoints[name]).eval().to(device)
        full = expert(batch)["hidden_states"]
        with torch.autocast(device, dtype=precision):
            found = expert(batch)["hidden_states"]
        worst = 0.02 if precision == torch.float16 else 0.1
        assert all((b.float() - a).norm() / a.norm() < worst for a, b in zip(full, found, strict=True))
        assert any(not torch.equal(b.float(), a) for a, b in zip(full, found))  # it computed in half precision


@needs_gpu
@pytest.mark.parametrize("name", ["parallel", "cascaded", "large"])
def test_states_on_a_gpu_equal_those_on_the_cpu(checkpoints: dict[str, str], name: str) -> None:
    batch = [torch.from_numpy(wave(6000, 4)), torch.from_numpy(wave(4000, 5))]
    expert = UpstreamExpert(checkpoints[name]).eval()
    expected = expert(batch)["hidden_states"]
    for waves_there in (batch, [w.cuda() for w in batch]):  # wherever the waveforms are
        for a, b in zip(expected, expert.cuda()(waves_there)["hidden_states"], strict=True):
            assert b.is_cuda and (b.cpu() - a).abs().max() < 1e-2
    integers = [(w * 32767).to(torch.int16).cuda() for w in batch]
    assert all(state.is_cuda for state in expert(integers)["hidden_states"])
    for a, b in zip(expected, expert.half()([w.cuda() for w in batch])["hidden_states"], strict=True):
        assert b.dtype == torch.float16 and (b.float().cpu() - a).norm() / a.norm() < 0.02


def test_train_mode_is_frozen_and_warns_once(checkpoints: dict[str, str], caplog: pytest.LogCaptureFixture) -> None:
    expert = UpstreamExpert(checkpoints["parallel"])
    batch = [torch.from_numpy(wave(4000, 1))]
    expected = expert.eval()(batch)["hidden_states"]
    layer = torch.nn.Linear(WIDTH, 2)
    for _ in range(2):
        states = expert.train()(batch)["hidden_states"]
        assert all(torch.equal(a, b) for a, b in zip(states, expected, strict=True))  # no dropout
        layer(torch.stack(states).mean(dim=0)).sum().backward()
    assert layer.weight.grad is not None and layer.weight.grad.abs().sum() > 0
    assert not any(parameter.requires_grad for parameter in expert.parameters())
    assert [record.message for record in caplog.records] == [
        "speechclip upstream: it is frozen. Only the modules after it are trained."
    ]
    expert.requires_grad_(True)
    with pytest.raises(UserError, match="it cannot be fine-tuned"):
        expert(batch)
    with torch.no_grad():
        assert torch.equal(expert(batch)["last_hidden_state"], expected[-1])


@pytest.mark.parametrize(
    ("head", "large"), [("parallel", False), ("parallel", True), ("cascaded_plus", True), ("hybrid_plus", False)]
)
def test_copies_and_pickles_give_equal_states(tmp_path: Path, head: str, large: bool) -> None:
    expert = UpstreamExpert(save_run(tmp_path, "run", head, large=large)).eval()
    batch = [torch.from_numpy(wave(5000, 1)), torch.from_numpy(wave(3000, 2))]
    expected = expert(batch)["hidden_states"]
    for other in (copy.deepcopy(expert), pickle.loads(pickle.dumps(expert))):
        with torch.no_grad():
            for parameter in expert.parameters():
                parameter.add_(1.0)  # the copy has its own weights and its own hooks
        found = other(batch)["hidden_states"]
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
        expert.load_state_dict(other.state_dict())  # as ESPnet restores pretrained weights
        again = expert(batch)["hidden_states"]
        assert all(torch.equal(a, b) for a, b in zip(again, expected, strict=True))


@pytest.mark.parametrize("head", ["parallel", "cascaded", "hybrid_plus"])
@needs_s3prl
def test_randomize_gives_other_finite_states(tmp_path: Path, head: str) -> None:
    from speechclip.upstream import register

    register()
    from s3prl.nn import S3PRLUpstream

    folder = save_run(tmp_path, "run", head)
    wavs, lengths = torch.randn(1, 8000) * 0.1, torch.tensor([8000])
    upstreams: list[Any] = [
        S3PRLUpstream("speechclip_local", path_or_url=folder, randomize=value).eval() for value in (False, True)
    ]
    plain, drawn = (upstream(wavs, lengths)[0] for upstream in upstreams)
    for a, b in zip(plain, drawn, strict=True):
        assert torch.isfinite(b).all() and (a - b).abs().mean() > 0.01


def test_threads_share_an_expert(checkpoints: dict[str, str]) -> None:
    expert = UpstreamExpert(checkpoints["parallel"]).eval()
    batches = [[torch.from_numpy(wave(3000 + 700 * at, at))] for at in range(12)]
    expected = [expert(batch)["hidden_states"] for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda batch: expert(batch)["hidden_states"], batches))
    for ours, theirs in zip(found, expected, strict=True):
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(ours, theirs, strict=True))


README = """
import speechclip.upstream
from s3prl.nn import S3PRLUpstream
"""
SPAWN = """
import torch

def encode(upstream, pipe):
    states, _ = upstream(torch.ones(1, 4000) * 0.1, torch.tensor([4000]))
    pipe.send([float(state.sum()) for state in states])

if __name__ == "__main__":
    speechclip.upstream.register()
    upstream = S3PRLUpstream("speechclip_local", path_or_url={path!r}).eval()
    context = torch.multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    with torch.no_grad():
        worker = context.Process(target=encode, args=(upstream, theirs))
        worker.start()
        states, _ = upstream(torch.ones(1, 4000) * 0.1, torch.tensor([4000]))
    found = ours.recv()
    assert found == [float(state.sum()) for state in states], (found, states)
    worker.join()
    print(len(found))
"""


@pytest.mark.slow
@needs_s3prl
def test_readme_order_works_in_spawned_workers(checkpoints: dict[str, str], tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(README + SPAWN.format(path=checkpoints["cascaded"]))
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    ended = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=200, env=environment, check=False
    )
    assert (ended.returncode, ended.stdout) == (0, f"{STATES + 1}\n"), ended.stderr


def test_import_does_not_load_torch() -> None:
    code = "import sys, speechclip.upstream; print('torch' in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert ended.stdout == "False\n"


def test_configuration_layer_moves_the_encoder(checkpoints: dict[str, str], tmp_path: Path) -> None:
    recipe = Path(checkpoints["parallel"]).parents[2]
    layer = tmp_path / "here.yaml"
    layer.write_text(f"model:\n  speech_encoder:\n    path: {recipe / 'models' / 'hubert0'}\n")
    batch = [torch.from_numpy(wave(4000, 1))]
    moved = UpstreamExpert(checkpoints["parallel"], str(layer)).eval()(batch)["last_hidden_state"]
    assert torch.equal(moved, UpstreamExpert(checkpoints["parallel"]).eval()(batch)["last_hidden_state"])
    layer.write_text("model:\n  speech_encoder:\n    path: /no/such/hubert\n")
    with pytest.raises(UserError, match="/no/such/hubert"):
        UpstreamExpert(checkpoints["parallel"], str(layer))


@needs_s3prl
def test_registration_is_explicit_and_idempotent(checkpoints: dict[str, str]) -> None:
    code = (
        "import speechclip, speechclip.upstream as u\n"
        "from speechclip.common.compat import prepare; prepare()\n"
        "with u.quietly():\n"
        "    from s3prl import hub\n"
        "assert not [n for n in dir(hub) if n.startswith('speechclip')]\n"
        "names = u.register(); before = {n: getattr(hub, n) for n in names}\n"
        "assert u.register() == names and all(getattr(hub, n) is before[n] for n in names)\n"
        "from s3prl.nn import S3PRLUpstream\n"
        "assert set(names) <= set(S3PRLUpstream.available_names())\n"
        "registered = S3PRLUpstream.available_names(only_registered_ckpt=True)\n"
        "assert 'speechclip_parallel_large' in registered and 'speechclip_local' not in registered\n"
        "delattr(hub, 'speechclip_local'); hub.speechclip_local = print\n"
        "try: u.register()\n"
        "except speechclip.common.errors.UserError as error: assert 'speechclip_local' in str(error)\n"
        "else: raise AssertionError"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (ended.returncode, ended.stderr) == (0, "")  # no warning about ESPnet, which another upstream needs


@pytest.mark.slow
@needs_s3prl
def test_preload_hides_only_its_own_warnings() -> None:
    code = (
        "import speechclip.upstream.preload, logging, warnings\n"
        "warnings.warn('one'); logging.getLogger('x').warning('two')"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert ended.stderr.splitlines() == ["<string>:2: UserWarning: one", "two"]


@needs_s3prl
@pytest.mark.parametrize("name", ["parallel", "large"])
def test_s3prl_interface(checkpoints: dict[str, str], name: str) -> None:
    """s3prl's own tests of upstreams, and the values of the model."""
    from speechclip.upstream import register

    register()
    from s3prl.nn import Featurizer, S3PRLUpstream

    model: Any = S3PRLUpstream("speechclip_local", path_or_url=checkpoints[name]).eval()
    assert model.num_layers == STATES + 1
    assert set(model.hidden_sizes) == {WIDTH} and set(model.downsample_rates) == {320}
    lengths = torch.tensor([16000, 9600, 5000])
    padded = torch.zeros(3, 16000)
    for row, n in enumerate(lengths.tolist()):
        padded[row, :n] = torch.from_numpy(wave(n, row))
    with torch.no_grad():
        states, counts = model(padded, lengths)
        own, _ = SpeechCLIP.from_pretrained(checkpoints[name]).hidden_states(
            [padded[row, :n] for row, n in enumerate(lengths.tolist())]
        )
        mixed, mixed_counts = Featurizer(model)(states, counts)
    assert counts[0].tolist() == [50, 30, 16] and mixed_counts.tolist() == [50, 30, 16]
    assert mixed.shape == (3, 50, WIDTH)
    for a, b in zip(states, own):
        assert a.shape == (3, 50, WIDTH)
        assert torch.equal(a[:, : b.shape[1]], b[:, :50])


def test_fifteen_published_checkpoints_have_a_name() -> None:
    from speechclip.upstream import hubconf

    heads = ("parallel", "cascaded", "hybrid", "cascaded_plus", "hybrid_plus")
    kinds = {"base": "base/flickr", "large": "large/flickr", "large_coco": "large/coco"}
    assert set(hubconf.PUBLISHED) == {f"speechclip_{head}_{kind}" for head in heads for kind in kinds}
    for name, (url, head, width) in hubconf.PUBLISHED.items():
        kind = name.removeprefix(f"speechclip_{head}_")
        folder = head.replace("_plus", "%2B")
        assert f"/resolve/main/{kinds[kind]}/{folder}/epoch" in url and url.endswith(".ckpt")
        assert width == (768 if kind == "base" else 1024)
        assert url.startswith(
            "https://huggingface.co/" + ("speechclip/models" if head in heads[:2] else "ShampooWang/speechclip_plus")
        )


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("large", [False, True], ids=["base", "large"])
def test_published_file_needs_no_clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, head: str, large: bool) -> None:
    """By its name and by speechclip_local, every published head has the states of the whole model."""
    from speechclip.upstream import hubconf

    path = str(save_checkpoint_file(tmp_path / "x.ckpt", state_dict(head, reduced_ids(), large=large)))
    batch = [torch.from_numpy(wave(6000, 4)), torch.from_numpy(wave(4000, 5))]
    clip = str(save_script(tmp_path / "clip.pt", clip_tensors()))
    expected, _ = SpeechCLIP.from_pretrained(path, clip=clip).hidden_states(batch)
    name = f"speechclip_{head}_{'large' if large else 'base'}"
    tiny = hubconf.PUBLISHED[name]._replace(width=64)
    monkeypatch.setitem(hubconf.PUBLISHED, name, tiny)
    asked: list[str] = []
    monkeypatch.setattr(hubconf, "_fetch", lambda url, refresh: asked.append(url) or path)
    for expert in (hubconf.speechclip_local(path), hubconf._published(name)(), hubconf._published(name)(ckpt=path)):
        found = expert.eval()(batch)["hidden_states"]
        assert len(found) == len(expected) and all(torch.equal(a, b) for a, b in zip(found, expected))
    assert asked == [tiny.url]  # not if a file is given
    other = "speechclip_parallel_base" if head != "parallel" else "speechclip_hybrid_base"
    with pytest.raises(UserError, match=f"x.ckpt: has a {head} head on 64 dimensions, but {other} has a"):
        hubconf._published(other)(ckpt=path)


@needs_s3prl
def test_named_entries_check_a_local_file(checkpoints: dict[str, str]) -> None:
    from speechclip.upstream import hubconf

    with pytest.raises(
        UserError, match="has a parallel head on 32 dimensions, but speechclip_cascaded_base has a cascaded"
    ):
        hubconf.ENTRIES["speechclip_cascaded_base"](ckpt=checkpoints["parallel"])
    for call, message in (
        (lambda: hubconf.speechclip_local(), "no checkpoint given"),
        (lambda: hubconf.speechclip_local(ckpt="/no/such"), "/no/such"),
        (lambda: hubconf.speechclip_url(ckpt="not-a-url"), "is not an address"),
        (lambda: hubconf.speechclip_url(ckpt="file:///no/such.ckpt"), "cannot be downloaded"),
    ):
        with pytest.raises(UserError, match=message):
            call()
    with pytest.raises(TypeError):
        hubconf.speechclip_local(ckpt=checkpoints["parallel"], no_such_option=1)
    for name in hubconf.PUBLISHED:
        assert getattr(hubconf, name) is hubconf.ENTRIES[name] and name in hubconf.__all__


def _s3prl(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "speechclip.upstream", *words]
    return subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=280, check=False
    )


@pytest.mark.slow
@needs_s3prl
def test_s3prl_main_trains_and_tests_on_it(checkpoints: dict[str, str], tmp_path: Path) -> None:
    ended = _s3prl(
        "s3prl-main", "CommonExample", "--target_dir", str(tmp_path / "out"), "--cache_dir", str(tmp_path / "cache"),
        "--device", "cpu", "--num_workers", "0", "--build_upstream.name", "speechclip_local",
        "--build_upstream.path_or_url", checkpoints["parallel"], "--train.total_steps", "2", "--train.log_step", "1",
        "--train.eval_step", "2", "--train.save_step", "2",
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert list((tmp_path / "out").rglob("result.yaml"))
    weights = torch.load(tmp_path / "out" / "train" / "valid_best" / "model" / "state_dict.pt", weights_only=True)
    assert weights["featurizer.weights"].shape == (STATES + 1,)


@needs_s3prl
def test_run_downstream_reports_a_bad_checkpoint_in_one_line(checkpoints: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("runner: {}\n")
    ended = _s3prl(
        "run_downstream", "-m", "evaluate", "-d", "example", "-c", str(tmp_path / "c.yaml"), "-p", str(tmp_path / "e"),
        "--device", "cpu", "-u", "speechclip_local", "-k", "/no/such/checkpoint",
    )  # fmt: skip
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1].startswith("error: /no/such/checkpoint")
    assert "Traceback" not in ended.stderr


def test_unknown_command_is_one_line_and_help_loads_no_torch() -> None:
    ended = _s3prl("no-such-command")
    assert ended.returncode == 2 and ended.stderr.count("\n") == 1 and "run_downstream" in ended.stderr
    script = "import sys; sys.argv = ['x', '--help']\nfrom speechclip.upstream.__main__ import main\ntry: main()\n"
    script += "except SystemExit: pass\nprint('torch' in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert ended.stdout.endswith("False\n")
