"""utils/run_jobs.py and utils/torchrun.py: local jobs, jobs through a stand-in for Slurm, and training processes."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import fake_recipe
import pytest

RUN_JOBS, TORCHRUN = (fake_recipe.ROOT / "utils" / name for name in ("run_jobs.py", "torchrun.py"))
# Each job writes that it ran. Job 2 fails as often as the number in the file "failures".
JOB = """
import os, sys
from pathlib import Path
number = int(sys.argv[1])
with open("ran", "a") as file:
    file.write(f"{number} {os.environ.get('OMP_NUM_THREADS')}\\n")
left = Path("failures")
if number == 2 and left.exists() and int(left.read_text()):
    left.write_text(str(int(left.read_text()) - 1))
    print("error: shard 2: no good", file=sys.stderr)
    sys.exit(3)
print(f"shard {number}: 7 utterances")
"""
# A stand-in for sbatch: reads the options of the script, runs a task for each number, and returns the worst status.
SBATCH = f"""#!{sys.executable}
import os, re, subprocess, sys
assert sys.argv[1:3] == ["--wait", "--parsable"], sys.argv
text = open(sys.argv[3]).read()
with open("submitted", "a") as file:
    file.write(text)
print("4711;cluster", flush=True)
options = dict(re.findall(r"^#SBATCH --([\\w-]+)=(.*)$", text, re.MULTILINE))
worst = 0
for task in options["array"].split(","):
    with open(options["output"].replace("%a", task), "ab") as log:
        ended = subprocess.run(["bash", sys.argv[3]], env={{**os.environ, "SLURM_ARRAY_TASK_ID": task}}, cwd="/",
                               stdout=log, stderr=log)
    worst = max(worst, ended.returncode)
sys.exit(worst)
"""
SRUN = '#!/usr/bin/env bash\n"$@" & first=$!\n"$@"\nstatus=$?\nwait "$first" && exit "$status"\n'  # two tasks


def _program(folder: Path, name: str, text: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text)
    (folder / name).chmod(0o755)


def _run(folder: Path, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    (folder / "job.py").write_text(JOB)
    path = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
    kept = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    return subprocess.run(
        [sys.executable, str(RUN_JOBS), *options, "--log", "log/x.JOB.log", "--", sys.executable, "job.py", "JOB"],
        cwd=folder, env={**kept, "PATH": path, **environment}, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


def _ran(folder: Path) -> list[int]:
    return sorted(int(line.split()[0]) for line in (folder / "ran").read_text().splitlines())


@pytest.mark.parametrize("launcher", ["local", "slurm"])
def test_only_failed_jobs_run_again(tmp_path: Path, launcher: str) -> None:
    _program(tmp_path / "bin", "sbatch", SBATCH)
    (tmp_path / "failures").write_text("2")
    ended = _run(tmp_path, "--launcher", launcher, "--jobs", "3")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert _ran(tmp_path) == [1, 2, 2, 2, 3]
    reason = "status 3" if launcher == "local" else "its task did not succeed"
    said = f"job 2 of 3 failed ({reason}), trying again; log/x.2.log: error: shard 2: no good\n"
    assert ended.stdout.count(said) == 2
    assert "job 2 of 3: shard 2: 7 utterances\n" in ended.stdout
    assert (tmp_path / "log/x.1.log").read_text() == "shard 1: 7 utterances\n"
    assert sorted(path.name for path in (tmp_path / "log").iterdir()) == ["x.1.log", "x.2.log", "x.3.log"]
    if launcher == "slurm":
        assert re.findall(r"--array=(.*)", (tmp_path / "submitted").read_text()) == ["1,2,3", "2", "2"]


@pytest.mark.parametrize("launcher", ["local", "slurm"])
def test_a_job_that_fails_every_time_is_given_up(tmp_path: Path, launcher: str) -> None:
    _program(tmp_path / "bin", "sbatch", SBATCH)
    (tmp_path / "failures").write_text("9")
    ended = _run(tmp_path, "--launcher", launcher, "--jobs", "2", "--retries", "1")
    assert ended.returncode == 1
    assert _ran(tmp_path) == [1, 2, 2]
    assert ended.stdout.splitlines()[-1].endswith("given up; log/x.2.log: error: shard 2: no good")


def test_a_dry_run_prints_the_submitted_script(tmp_path: Path) -> None:
    _program(tmp_path / "bin", "sbatch", SBATCH)
    options = ["--launcher", "slurm", "--jobs", "2", "--options=--partition=gpu --time=4:00:00"]
    ended = _run(tmp_path, *options, "--dry_run")
    assert ended.stdout.splitlines() == [
        "#!/usr/bin/env bash",
        "#SBATCH --job-name=x",
        "#SBATCH --array=1,2",
        f"#SBATCH --output={tmp_path}/log/x.%a.log",
        "#SBATCH --open-mode=append",
        "#SBATCH --partition=gpu",
        "#SBATCH --time=4:00:00",
        "set -euo pipefail",
        f"cd {tmp_path}",
        f'{sys.executable} job.py "$SLURM_ARRAY_TASK_ID"',
        ': >DONE/"$SLURM_ARRAY_TASK_ID"',
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bin", "job.py"]
    _run(tmp_path, *options)
    submitted = (tmp_path / "submitted").read_text().splitlines()
    assert submitted[:-1] == ended.stdout.splitlines()[:-1]


def test_a_missing_sbatch_is_one_line(tmp_path: Path) -> None:
    ended = _run(tmp_path, "--launcher", "slurm", "--jobs", "2", PATH=str(tmp_path))
    assert ended.returncode == 1
    assert ended.stderr.startswith("error: sbatch: is not a program. Run on a cluster machine")


def test_jobs_share_the_cores_by_default(tmp_path: Path) -> None:
    _run(tmp_path, "--jobs", "1")
    cores = len(os.sched_getaffinity(0))
    assert (tmp_path / "ran").read_text() == f"1 {cores}\n"
    _run(tmp_path, "--jobs", "1", OMP_NUM_THREADS="7")
    assert (tmp_path / "ran").read_text().endswith("1 7\n")


# the first of two jobs saves; the parameter decides about the second
SAVING = "import signal; signal.signal(signal.SIGTERM, lambda *_: exit(75)); "


@pytest.mark.parametrize("second", [SAVING, ""], ids=["saves", "does not"])
def test_sigterm_exits_with_75_only_if_all_jobs_saved(tmp_path: Path, second: str) -> None:
    note = "import os, sys, time; open(sys.argv[1], 'w').write(str(os.getpid())); time.sleep(60)"
    sleeper = f"import sys\nif '1' in sys.argv[1]: {SAVING}\nelse: {second or 'pass'}\n{note}"
    command = [sys.executable, str(RUN_JOBS), "--jobs", "2", "--log", "JOB.log", "--", sys.executable, "-c", sleeper]
    process = subprocess.Popen([*command, "pid.JOB"], cwd=tmp_path, stdout=subprocess.DEVNULL)
    files = [tmp_path / "pid.1", tmp_path / "pid.2"]
    deadline = time.monotonic() + 30
    while not all(file.exists() and file.read_text() for file in files):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.terminate()
    assert process.wait(timeout=20) == (75 if second else 128 + signal.SIGTERM)
    for file in files:
        with pytest.raises(ProcessLookupError):
            os.kill(int(file.read_text()), 0)


def test_the_recipe_submits_stage_2_to_slurm(tmp_path: Path) -> None:
    recipe = fake_recipe.FakeRecipe(tmp_path)
    _program(tmp_path / "bin", "sbatch", SBATCH)
    (recipe.folder / "cmd.sh").write_text(
        'train_cmd=\njobs_launcher=slurm\nslurm_options="--partition=cpu"\ncaptions_per_job=1\n'
    )
    path = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"
    before = sorted(recipe.folder.rglob("*"))
    dry = recipe.run("--nj", "3", "--dry_run", "true", PATH=path)
    assert dry.returncode == 0, dry.stderr
    assert sorted(recipe.folder.rglob("*")) == before  # nothing ran, nothing was written
    script = dry.stdout[dry.stdout.index("#!/usr") : dry.stdout.index("stage 3")]
    assert "#SBATCH --array=1,2,3\n" in script and "#SBATCH --partition=cpu\n" in script
    assert '--jobs 3 --job "$SLURM_ARRAY_TASK_ID"\n' in script
    assert re.search(r"-m speechclip\.bin\.train .*--out exp/tiny_parallel --seed 0", dry.stdout)
    ended = recipe.run("--nj", "3", "--stop_stage", "2", PATH=path)
    assert ended.returncode == 0, ended.stderr
    calls = recipe.calls()
    for name in ("extract_clip_embeddings", "extract_features"):
        jobs = [line.rpartition(" ")[2] for line in calls if line.startswith(name)]
        assert jobs == ["1", "2", "3", "0"], name
    again = recipe.run("--nj", "2", "--stop_stage", "2", PATH=path)  # the number of jobs is not an input
    assert again.stdout.count("up to date") == 3


TRAIN = """
import os, signal, sys, time
from pathlib import Path
Path(f"rank{os.environ['RANK']}of{os.environ['WORLD_SIZE']}").write_text(" ".join(sys.argv[1:]))
def stop(*_):
    Path(os.environ["SPEECHCLIP_STOPPED"]).touch()
    sys.exit(75)
if "wait" in sys.argv:
    signal.signal(signal.SIGTERM, stop)
    Path(f"ready{os.environ['RANK']}").touch()
    time.sleep(60)
if "fail" in sys.argv:
    sys.exit(9)
"""


def _torchrun(folder: Path, *words: str, launcher: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    (folder / "train.py").write_text(TRAIN)
    command = [*launcher, sys.executable, str(TORCHRUN), *words[:6], "-m", "train", *words[6:]]
    return subprocess.Popen(
        command, cwd=folder, env={**os.environ, "PYTHONPATH": str(folder)}, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def test_torchrun_passes_on_a_failure(tmp_path: Path) -> None:
    process = _torchrun(tmp_path, "--ngpu", "2", "--num_nodes", "1", "--endpoint", "", "--out", "a b")
    _, errors = process.communicate(timeout=90)
    assert process.returncode == 0, errors
    assert (tmp_path / "rank1of2").read_text() == "--out a b"
    process = _torchrun(tmp_path, "--ngpu", "2", "--num_nodes", "1", "--endpoint", "", "fail")
    _, errors = process.communicate(timeout=90)
    assert process.returncode == 9
    assert re.search(r"^error: training process [01] ended with status 9$", errors, re.MULTILINE)
    assert "Traceback" not in errors


@pytest.mark.parametrize("whole_group", [True, False])
def test_torchrun_exits_with_75_after_sigterm(tmp_path: Path, whole_group: bool) -> None:
    process = _torchrun(tmp_path, "--ngpu", "2", "--num_nodes", "1", "--endpoint", "", "wait")
    deadline = time.monotonic() + 60
    while not all((tmp_path / f"ready{rank}").exists() for rank in (0, 1)):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    (os.killpg if whole_group else os.kill)(process.pid, signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 75


def test_machines_find_each_other_at_the_endpoint(tmp_path: Path) -> None:
    """Two machines with two processes each, started by a stand-in for srun."""
    _program(tmp_path / "bin", "srun", SRUN)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = f"127.0.0.1:{free.getsockname()[1]}"
    launcher = (str(tmp_path / "bin" / "srun"),)
    process = _torchrun(tmp_path, "--ngpu", "2", "--num_nodes", "2", "--endpoint", endpoint, "x", launcher=launcher)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors[-2000:]
    assert sorted(path.name for path in tmp_path.glob("rank*")) == [f"rank{rank}of4" for rank in range(4)]


def test_machines_of_a_slurm_job_find_the_first_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same without --endpoint: a stand-in for scontrol names the machines."""
    _program(tmp_path / "bin", "srun", SRUN)
    names = '[ "$*" = "show hostnames node[1-2]" ] && echo 127.0.0.1 && echo b'
    _program(tmp_path / "bin", "scontrol", f"#!/bin/sh\n{names}\n")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_NODELIST", "node[1-2]")
    monkeypatch.setenv("SLURM_JOB_ID", str(4000 + os.getpid() % 1000))
    process = _torchrun(tmp_path, "--ngpu", "1", "--num_nodes", "2", "--endpoint", "", "x", launcher=("srun",))
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors[-2000:]
    assert sorted(path.name for path in tmp_path.glob("rank*")) == ["rank0of2", "rank1of2"]


def test_an_endpoint_is_needed_outside_slurm(tmp_path: Path) -> None:
    process = _torchrun(tmp_path, "--ngpu", "1", "--num_nodes", "2", "--endpoint", "")
    assert process.communicate()[1].startswith("error: --endpoint: is empty, and this is not a Slurm job")
    assert process.returncode == 1
