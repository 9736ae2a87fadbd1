"""`make train-tpu`: what it would do, and all of it but the cloud and the installation.

A stand-in for gcloud copies into an empty folder instead of a worker's home, and runs there what
would be sent over ssh.
"""

import ast
import hashlib
import os
import shlex
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

from tests.trainer.conftest import TRAIN_FLAGS
from trainer import tpu_vm

ROOT = Path(__file__).parents[2]
SLICE = ("TPU_NAME=cars", "ZONE=us-central1-a", "PROJECT=my-project")
FOLDERS = ("DATA=gs://bucket/shards", "MODEL=gs://bucket/model")

GCLOUD = """#!/bin/sh
# scp A B cars: …       copies A and B
# ssh cars … --command  runs the command
case "$4" in
  scp) cp "$5" "$6" "$WORKER_HOME"; [ "$7" = cars: ] ;;
  ssh) cd "$WORKER_HOME" && for last; do :; done && HOME="$WORKER_HOME" exec sh -c "${last#--command=}" ;;
esac
"""  # noqa: E501


def make(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["make", "-s", "train-tpu", f"PYTHON={sys.executable}", *arguments],
        cwd=ROOT,
        env={**os.environ, "MAKEFLAGS": "", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_dry_run_prints_the_commands():
    flags = """FLAGS=--config=scratch --weights='my weights.h5'"""
    done = make("DRY_RUN=1", *SLICE, *FOLDERS, "EPOCHS=30", flags, PATH=os.environ["PATH"])
    assert done.returncode == 0, done.stderr
    copy, run = map(shlex.split, done.stdout.splitlines())
    where = ["--worker=all", "--zone=us-central1-a", "--project=my-project"]
    assert copy[:5] == ["gcloud", "compute", "tpus", "tpu-vm", "scp"]
    assert [Path(path).name for path in copy[5:7]] == ["stanford-cars-tpu.tar.gz", "tpu_vm.py"]
    assert copy[7:] == ["cars:", *where]
    assert run[:-1] == ["gcloud", "compute", "tpus", "tpu-vm", "ssh", "cars", *where]
    name, _, command = run[-1].partition("=")
    assert name == "--command"
    assert shlex.split(command) == [
        *("python3", "-I", "tpu_vm.py", "worker", "--"),
        *("--data_dir=gs://bucket/shards", "--model_dir=gs://bucket/model"),
        *("--epochs=30", "--config=scratch", "--weights=my weights.h5"),
    ]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "`make train` trains on this machine, `make check-tpu` compiles"),
        (["TPU_NAME=cars"], "give ZONE and PROJECT too"),
        (["ZONE=z", "PROJECT=p"], "give TPU_NAME too"),
        ([*SLICE], "--data_dir=work/shards is a path of this machine"),
        ([*SLICE, FOLDERS[0], "MODEL=model"], "--model_dir=model is a path of this machine"),
    ],
)
def test_mistakes_are_told_in_a_line(arguments, said):
    if not arguments and tpu_vm.here_is_a_tpu():
        pytest.skip("this machine has a TPU")
    done = make(*arguments)
    assert done.returncode != 0
    error, make_says = done.stderr.splitlines()
    assert error.startswith("error: ")
    assert said in error
    assert "train-tpu" in make_says


def test_the_script_runs_on_the_python_of_a_tpu_vm():
    ast.parse((ROOT / "trainer/tpu_vm.py").read_text(), feature_version=(3, 8))
    imports = subprocess.run(
        [sys.executable, "-I", "-c", "import sys, runpy; before = set(sys.modules); "
         f"runpy.run_path({str(ROOT / 'trainer/tpu_vm.py')!r}); "
         "print(*{name.split('.')[0] for name in set(sys.modules) - before})"],
        capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    assert set(imports) <= sys.stdlib_module_names


def test_the_installation_is_pinned_and_done_once(tmp_path, capfd):
    venv = tmp_path / "venv"
    tpu_vm.install(ROOT, venv, tpu_vm.Shell(dry_run=True))
    pip, create, install = map(shlex.split, capfd.readouterr().out.splitlines())
    pinned = ["--constraint", str(ROOT / "constraints.txt")]
    assert pip[:4] == [sys.executable, "-m", "pip", "install"]
    assert pip[-3:] == [*pinned, "uv"]
    uv = f"{venv}-uv/bin/uv"
    assert create == [uv, "venv", "--quiet", "--python", "3.11", str(venv)]
    assert install[:3] == [uv, "pip", "install"]
    assert install[-4:] == [*pinned, "--editable", f"{ROOT}[tpu]"]
    assert not venv.exists()
    pretend_installed(venv)
    tpu_vm.install(ROOT, venv, tpu_vm.Shell(dry_run=True))
    assert capfd.readouterr().out == ""


def pretend_installed(venv: Path) -> None:
    """Makes an environment of the one that runs the tests."""
    (venv / "bin").mkdir(parents=True)
    python = venv / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
    python.chmod(0o755)
    pins = b"".join((ROOT / name).read_bytes() for name in ("setup.py", "constraints.txt"))
    (venv / "installed-tpu").write_text(hashlib.sha256(pins).hexdigest())


def test_a_run_outlives_its_connection_and_is_found_again(small_data, tmp_path):
    home, model = tmp_path / "home", tmp_path / "model"
    home.mkdir()
    pretend_installed(home / tpu_vm.FOLDER / "venv")
    (tmp_path / "gcloud").write_text(GCLOUD)
    (tmp_path / "gcloud").chmod(0o755)
    environment = {
        **{"WORKER_HOME": str(home), "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        # Where a TPU VM would have a TPU.
        **{"JAX_PLATFORMS": "cpu", "MAKEFLAGS": ""},
    }
    flags = f"FLAGS={shlex.join(['--log_every=2', *TRAIN_FLAGS[:5], '--evaluate_every=10'])}"
    command = (*SLICE, f"DATA={small_data}", f"MODEL={model}", flags)
    connection = subprocess.Popen(
        ["make", "-s", "train-tpu", f"PYTHON={sys.executable}", *command],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    log = home / tpu_vm.FOLDER / "train.log"
    deadline = time.monotonic() + 120
    while not (log.exists() and "run      trains" in log.read_text()):
        assert connection.poll() is None, connection.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(connection.pid, signal.SIGKILL)  # make, the launcher, and the follower
    connection.communicate()
    again = make(*command, **environment)
    assert again.returncode == 0, again.stderr
    assert "a run goes on here; following" in again.stdout
    assert "step 60/60" in again.stdout
    assert "exit code 0" in again.stdout.splitlines()[-1]
    assert (model / "history.json").exists()


@pytest.mark.parametrize(
    ("source", "code", "said"),
    [
        ("raise SystemExit(75)", 75, "exit code 75; the same command continues"),
        ("raise SystemExit(2)", 2, "exit code 2"),
        ("import os; os.kill(os.getppid(), 9)", 1, "killed, without an exit code"),
    ],
)
def test_how_a_run_ended_is_told(tmp_path, capfd, source, code, said):
    script = tmp_path / "script.py"
    script.write_text(f"print('it says this'); {source}\n")
    with tarfile.open(tmp_path / f"{tpu_vm.FOLDER}.tar.gz", "w:gz") as archive:
        archive.add(script, "trainer/tpu_vm.py")
    assert tpu_vm.worker(tmp_path, ["--epochs=3"]) == code
    printed = capfd.readouterr().out
    assert said in printed
    assert "it says this" in printed or "killed" in said


def test_the_archive_holds_what_the_trainer_needs(tmp_path):
    tpu_vm.pack(ROOT, tmp_path / "source.tar.gz")
    with tarfile.open(tmp_path / "source.tar.gz") as archive:
        names = archive.getnames()
    assert {"setup.py", "constraints.txt", "trainer/train.py", "pipeline/quantize.py"} <= {*names}
    assert not [name for name in names if "__pycache__" in name or name.startswith((".", "/"))]
