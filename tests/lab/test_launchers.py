"""The points of a sweep through Hydra's launchers: several processes give the same as one."""

import json
import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import ROOT, command, environment, forks, side_by_side, started
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from test_configurations import CONF, composed

from pds.generation import Processes
from pds.lab import experiment
from pds.lab.devices import free_gpu
from pds.lab.points import Points
from pds.lab.runs import RunFolder
from pds.lab.schema import register

TINY = ["filter=statistics", "debug=tiny", "model=ncsnpp_small", "sampler.iterations=2", "images=4"]


def swept(*overrides):
    return command("run.py", "-m", *TINY, *overrides)


def pids_of(runs):
    return {json.loads((run / "status.json").read_text())["pid"] for run in runs}


@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_a_sweep_in_other_processes_ends_as_one_in_this(launcher, tmp_path):
    pytest.importorskip(f"hydra_plugins.hydra_{launcher.removesuffix('_local')}_launcher")
    alphas = [0.5, 2, 4] if launcher == "joblib" else [0.5, 4]  # a point of submitit is the start of a Python
    sweep = [f"hydra/launcher={launcher}", f"filter.alpha={','.join(map(str, alphas))}", f"outputs={tmp_path}"]
    sweep += ["hydra.launcher.n_jobs=2"] if launcher == "joblib" else []
    # Workers of joblib write to the terminal of the process that started them.
    first = started("experiments/run.py", "-m", *TINY, *sweep) if launcher == "joblib" else swept(*sweep)
    logs = "".join(path.read_text() for path in tmp_path.glob(".submitit/*/*_log.err")) or first.stderr
    assert first.returncode == 1, first.stderr
    refusal = "filter.alpha must be a number from 1 to 1000000 or auto, got 0.5"
    points = Points(tmp_path / "debug").read()
    assert [(point.state, point.message) for point in points] == [("failed", refusal), *[("done", "")] * (len(alphas) - 1)]
    assert f"1: error: {refusal}" in logs
    last = len(alphas)
    assert re.search(rf"^{last}: point {last} of {last}: .*filter.alpha=4$", logs, re.MULTILINE)
    for noise in ("Traceback", "Warning", "img/s"):
        assert noise not in logs + first.stderr
    runs = [tmp_path / "debug" / point.run for point in points[1:]]
    assert first.pid not in pids_of(runs)
    distances = [json.loads((run / "result.json").read_text())["metrics"]["fid_mnist_classifier_4"] for run in runs]
    assert all(f"| {distance:.1f} |" in re.sub(" +", " ", first.stdout) for distance in distances)
    assert f"report   {tmp_path}/debug/report.html" in first.stdout
    assert launcher == "joblib" or f"logs     {tmp_path}/.submitit/*/*_log.err" in first.stdout

    if launcher == "joblib":  # and again, in one process: only the failed point is left
        stamps = [path.stat().st_mtime_ns for path in tmp_path.glob("debug/*/samples/*")]
        again = swept("filter.alpha=0.5,2,4", f"outputs={tmp_path}")
        assert (again.returncode, again.stderr.count("is done already"), again.stderr.count("error: ")) == (1, 2, 1)
        assert [path.stat().st_mtime_ns for path in tmp_path.glob("debug/*/samples/*")] == stamps


def torchrun(folder, script, *arguments):
    here = environment(folder, TQDM_DISABLE="1")  # the log then says how many images this process has
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script), *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=here, check=False, timeout=300)


# A tracker whose making fails once, in the second process alone, with an error that is no refusal.
BREAKS_ONCE = """
import os
from pds.lab.tracking import NoTracker
made = []
def tracker(**options):
    made.append(1)
    if os.environ["RANK"] == "1" and len(made) == 1:
        raise LookupError('of ours')
    return NoTracker()
"""


def test_the_processes_of_torchrun_share_every_point_and_one_answers_for_all(tmp_path):
    (tmp_path / "breaks_once.py").write_text(BREAKS_ONCE)
    sweep = ["-m", *TINY, "images=8", "filter.alpha=0.5,2,3", "tracker._target_=breaks_once.tracker", f"outputs={tmp_path}"]
    done = torchrun(tmp_path, "experiments/run.py", *sweep)
    assert done.returncode == 1
    points = Points(tmp_path / "debug").read()
    assert [point.state for point in points] == ["failed", "failed", "done"]
    assert "of ours" in points[1].message
    assert "point 2 of 3 failed\nTraceback" in done.stderr  # by the process with the error
    assert "4 of 4 images" in done.stderr  # the other four of 8 images are the other process's
    # The first process that fails ends the others, so only the writing process may fail.
    assert "(exitcode: 1) local_rank: 0" in done.stderr
    assert "(exitcode: 1) local_rank: 1" not in done.stderr
    assert f"report   {tmp_path}/debug/report.html" in done.stdout


def test_one_process_of_torchrun_decides_for_all_and_what_it_cannot_write_stops_all(tmp_path, monkeypatch):
    # The second process sees another disk, without the result. The file of metrics fails once in the first process.
    cfg = composed("debug=tiny", f"outputs={tmp_path}", "images=8", "sampler.iterations=2", "metric=none")

    def work():
        rank, said = Processes.join().rank, []
        if rank:
            monkeypatch.setattr(RunFolder, "result", lambda folder: {"images": 8})
        for broken in (True, False):
            with monkeypatch.context() as once:
                if broken:
                    once.setattr(experiment, "MetricsFile", lambda path: Path("/no/such/folder").touch())
                try:
                    experiment.run(cfg, [])
                    said.append("done")
                except Exception as error:
                    said.append(str(error))
        (tmp_path / f"rank-{rank}").write_text(json.dumps(said))

    side_by_side(work)
    for rank in (0, 1):
        first, second = json.loads((tmp_path / f"rank-{rank}").read_text())
        assert ("/no/such/folder" in first, second) == (True, "done")
    (result,) = tmp_path.glob("debug/*/result.json")
    assert len(list(result.parent.glob("samples/*.npz"))) == 2


def test_whatever_goes_wrong_in_one_process_reaches_all(monkeypatch):
    said = []

    def gather(heard, mine):
        said.append(mine)
        heard[:] = [None, mine]

    monkeypatch.setattr("pds.generation.dist.all_gather_object", gather)
    with pytest.raises(MemoryError), Processes(1, 2).together():
        raise MemoryError
    assert said == ["MemoryError"]


@pytest.mark.skipif(sys.platform == "win32", reason="flock")
def test_each_process_has_a_gpu_of_its_own_until_it_ends(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("PDS_CACHE", str(tmp_path))

    def hold(pipe):
        got = [free_gpu(("GPU-a", "GPU-b")) for _ in range(2)]
        pipe.send((got, caplog.text.count("no GPU of 2 is free")))
        pipe.recv()

    processes = []

    def started():
        here, there = forks.Pipe()
        processes.append(forks.Process(target=hold, args=(there,), daemon=True))
        processes[-1].start()
        got, refused = here.recv()
        return processes[-1], got, refused

    try:
        first, *said = started()
        assert said == [[0, 0], 0]
        assert started()[1:] == ([1, 1], 0)
        third, got, refused = started()
        assert (got, refused) == ([third.pid % 2] * 2, 1)
        first.kill()
        first.join()
        assert started()[1:] == ([0, 0], 0)
    finally:
        for process in processes:
            process.kill()


# Runs a job array as SLURM does, on this machine and at once.
SLURM = """#!{python}
import os, re, subprocess, sys
program, arguments = os.path.basename(sys.argv[0]), sys.argv[1:]
if program == "sbatch":
    script = open(arguments[0]).read()
    open("{folder}/script", "w").write(script)
    print("Submitted batch job 7", flush=True)
    for task in range(int(re.search(r"--array=0-(\\d+)", script)[1]) + 1):
        job = dict(SLURM_ARRAY_JOB_ID="7", SLURM_ARRAY_TASK_ID=str(task), SLURM_JOB_ID=str(8 + task), SLURM_JOB_NUM_NODES="1")
        job |= dict(SLURM_NTASKS="1", SLURM_NODEID="0", SLURM_PROCID="0", SLURM_LOCALID="0", SLURM_JOB_NODELIST="localhost")
        output = open(f"{folder}/{{task}}.log", "w")
        subprocess.Popen(["bash", arguments[0]], env=os.environ | job, stdout=output, stderr=output)
elif program == "srun":
    command = arguments[next(i for i, argument in enumerate(arguments) if "python" in argument):]
    os.execvp(command[0], command)
"""


def test_each_point_is_a_job_of_slurm(tmp_path, monkeypatch):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    for program in ("sbatch", "srun", "sacct", "scontrol"):
        file = tmp_path / "bin" / program
        file.parent.mkdir(exist_ok=True)
        file.write_text(SLURM.format(python=sys.executable, folder=tmp_path))
        file.chmod(file.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    slurm = ["hydra/launcher=submitit_slurm", "hydra.launcher.partition=gpu", "hydra.launcher.account=lab"]
    done = swept(*slurm, "filter.alpha=2,4", f"outputs={tmp_path}")
    assert done.returncode == 0, done.stderr
    points = Points(tmp_path / "debug").read()
    assert [point.state for point in points] == ["done", "done"]
    assert len(pids_of(tmp_path / "debug" / point.run for point in points) - {done.pid}) == 2
    script = (tmp_path / "script").read_text()
    for flag in ("partition=gpu", "account=lab", "gpus-per-node=1", "array=0-1%2", "time=240", "signal=USR2@120"):
        assert f"#SBATCH --{flag}\n" in script


def test_a_launcher_that_gives_up_says_what_to_do(tmp_path, monkeypatch):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    failed = swept("hydra/launcher=submitit_slurm", "filter.alpha=2,4", f"outputs={tmp_path}")
    assert failed.returncode == 1
    assert re.search(r"error: the sweep was stopped: .*slurm.*; the same command goes on from here", failed.stderr)
    assert "Traceback" not in failed.stderr


def test_a_launcher_that_is_not_installed_says_how_to_get_it(tmp_path):
    (tmp_path / "hydra/launcher").mkdir(parents=True)
    (tmp_path / "hydra/launcher/absent.yaml").write_text("_target_: hydra_plugins.absent.Absent\n")
    refused = swept(f"hydra.searchpath=[file://{tmp_path}]", "hydra/launcher=absent", f"outputs={tmp_path}")
    assert refused.returncode == 1
    assert refused.stderr.startswith("error: hydra/launcher=absent is not installed: pip install")


@pytest.mark.filterwarnings(r"ignore:\s.hydra/launcher")
@pytest.mark.parametrize("launcher", ["joblib", "submitit_local", "submitit_slurm"])
def test_our_file_of_a_launcher_stands_before_the_plugins_own(launcher):
    pytest.importorskip(f"hydra_plugins.hydra_{launcher.split('_')[0]}_launcher")
    option = "verbose" if launcher == "joblib" else "mem_gb"  # one of the plugin that our file leaves out
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        given = [f"hydra/launcher={launcher}", f"hydra.launcher.{option}=7"]
        node = compose("run", given, return_hydra_config=True).hydra.launcher
    ours = OmegaConf.load(CONF / "hydra" / "launcher" / f"{launcher}.yaml")
    assert option not in ours
    assert node[option] == 7
    raw = OmegaConf.to_container(node, resolve=False)
    assert {key: str(raw[key]) for key in ours} == {key: str(value) for key, value in OmegaConf.to_container(ours).items()}
