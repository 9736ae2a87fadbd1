"""The command line as its users meet it: exit codes and messages. Kills: `test_resume`."""

import dataclasses
import os
import pathlib
import re

import pytest

from pipeline import __main__ as cli
from pipeline import finish, layouts, plan
from pipeline.config import JobOptions, PictureOptions
from pipeline.plan import PlanError
from tests.pipeline import folders
from tests.pipeline.test_job import content

ROOT = pathlib.Path(__file__).resolve().parents[2]
IN_PROCESS = ("--runner=FnApiRunner", "--direct_running_mode=in_memory")
SECONDS = 120


@pytest.fixture
def data_dir(tmp_path):
    return folders.draw(tmp_path / "data")


@pytest.fixture
def run(capsys):
    """Runs a command in this process; returns its exit code, output and errors."""

    def run(*argv: object) -> tuple[int, str, str]:
        try:
            code = cli.main([str(argument) for argument in argv])
        except SystemExit as error:  # argparse
            code = error.code
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def preprocess(data_dir: object, output_dir: object, *flags: str) -> list[str]:
    return [
        "preprocess",
        f"--data_dir={data_dir}",
        f"--output_dir={output_dir}",
        "--image_size=16",
        *(flags if any(flag.startswith("--runner") for flag in flags) else [*IN_PROCESS, *flags]),
    ]


# --- help and usage


def test_help_tells_every_flag_with_its_default(run):
    code, told, _ = run("preprocess", "--help")
    assert code == 0
    for options in (PictureOptions, JobOptions):
        for field in dataclasses.fields(options):
            assert f"--{field.name}" in told
            if field.default not in (dataclasses.MISSING, False):
                assert str(field.default) in told
    assert "Every option of Apache Beam" in re.sub(r"\s+", " ", told)
    assert "--train" in run("sample", "--help")[1]
    assert "Exit code 1" in re.sub(r"\s+", " ", run("verify", "--help")[1])
    assert all(name in run("--help")[1] for name in ("preprocess", "verify", "sample"))


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--colours=16"], "unknown option --colours=16; did you mean --colors?"),
        (["--colors=1"], "--colors is 1; it must be 2 to 256"),
        (["--colors=many"], "argument --colors: invalid int value: 'many'"),
        (["--crop=tight"], "argument --crop: invalid choice: 'tight'"),
        (["--crop=box"], "--crop=box needs boxes"),
        (["--layout=cars"], "--layout is 'cars'; choose one of auto, devkit"),
        (["--max_reject_fraction=nan"], "--max_reject_fraction is nan"),
        (["--output_dir="], "--output_dir is empty"),
        (["stray"], "unknown option stray"),
        (["--direct_num_workers=two"], "argument --direct_num_workers: invalid int value: 'two'"),
        (["--direct_num_worker=2"], "did you mean --direct_num_workers?"),
        (["--no_such_beam_option=2"], "unknown option --no_such_beam_option=2; see --help"),
        (["--runner=NoRunner"], "Unexpected pipeline runner: NoRunner"),
        (["--runner=FlinkRunner", "--color=16"], "unknown option --color=16; did you mean --color"),
    ],
)
def test_a_wrong_flag_is_told_in_a_line_and_nothing_is_written(
    run, data_dir, tmp_path, flags, told
):
    code, _, err = run(*preprocess(data_dir, tmp_path / "out", *flags))
    assert code == 2
    [line] = [line for line in err.splitlines() if "error: " in line]
    assert told in line
    assert not (tmp_path / "out").exists()


def test_an_engine_of_its_own_may_have_options_that_beam_does_not_know():
    flags = ["--runner=FlinkRunner", "--state_backend=rocksdb", "--some_flag", "colors"]
    options = cli._beam_options(flags, ["colors", "crop"])
    assert options.get_all_options()["runner"] == "FlinkRunner"


def test_without_a_runner_all_cores_are_used_unless_told_otherwise():
    def workers(*flags: str) -> int:
        return cli._beam_options(list(flags), []).get_all_options()["direct_num_workers"]

    assert workers() == 0  # Beam: as many as there are cores
    assert workers("--direct_num_workers", "3") == 3
    assert workers("--runner=FnApiRunner") == 1  # Beam's own default


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        ([], "are required"),
        (["preproces"], "invalid choice: 'preproces'"),
        (["preprocess"], "--data_dir, --output_dir"),
        (["verify"], "required: OUT"),
        (["verify", "x", "--colors=3"], "unknown option --colors=3; see --help"),
        (["sample", "x", "--trian=3"], "did you mean --train?"),
        (["sample", "x", "--train=-3"], "--train is -3"),
    ],
)
def test_a_wrong_command_is_a_usage_error(run, argv, told):
    code, _, err = run(*argv)
    assert code == 2
    assert told in err


@pytest.mark.parametrize("command", ["preprocess", "verify", "sample"])
def test_a_file_instead_of_a_folder_is_named(run, data_dir, tmp_path, command):
    (tmp_path / "file").write_text("")
    file = tmp_path / "file"
    code, _, err = run(
        *(preprocess(data_dir, file) if command == "preprocess" else [command, file])
    )
    assert code == (1 if command == "verify" else 2)
    assert err.strip().startswith("error: ")
    assert str(file) in err
    assert len(err.strip().splitlines()) == 1


def test_a_folder_without_data_is_named(run, tmp_path):
    code, _, err = run(*preprocess(tmp_path / "nowhere", tmp_path / "out"))
    assert (code, err) == (2, f"error: the data folder {tmp_path}/nowhere does not exist\n")


def test_a_folder_that_cannot_be_made_is_named(run, data_dir):
    code, _, err = run(*preprocess(data_dir, "/proc/out"))
    assert code == 2
    assert err.startswith("error: --output_dir=/proc/out: ")


def test_the_home_folder_is_meant_where_the_shell_does_not_say_so(
    run, data_dir, tmp_path, monkeypatch
):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert run(*preprocess("~/data", "~/nested/out"))[0] == 0
    assert (tmp_path / "nested" / "out" / "dataset_info.json").exists()


# --- a whole run


def test_sample_preprocess_verify_and_the_harm_that_verify_finds(run, tmp_path):
    sample, output = tmp_path / "sample", tmp_path / "a [bold] name"
    assert run("sample", sample, "--train=1", "--test=1", "--layout=devkit")[0] == 0
    code, told, _ = run(*preprocess(sample, output, "--max_reject_fraction=1"))
    assert code == 0
    assert "PSNR" in told
    assert "pictures in" in told
    assert f"data set: {output}\n" in told
    code, told, _ = run("verify", output)
    assert code == 0
    assert f"records of {output} are as they should be" in told
    shard = sorted(output.glob("*-train.tfrecord-*"))[0]
    data = bytearray(shard.read_bytes())
    data[40] ^= 1
    shard.write_bytes(data)
    code, told, err = run("verify", output)
    assert code == 1
    assert f"{shard.name}: wrong checksum of the record at offset 0" in told
    assert f"of {output}" in err


def test_the_same_again_does_nothing_and_other_options_are_refused(run, data_dir, tmp_path):
    output = tmp_path / "out"
    assert run(*preprocess(data_dir, output))[0] == 0
    before = content(str(output))
    code, told, _ = run(*preprocess(data_dir, output))
    assert code == 0
    assert "0 pictures in" in told
    assert "17 were done before" in told
    code, _, err = run(*preprocess(data_dir, output, "--colors=8"))
    assert code == 2
    assert "--colors was 32, is now 8" in err
    assert "--overwrite" in err
    assert content(str(output)) == before
    assert run(*preprocess(data_dir, output, "--colors=8", "--overwrite"))[0] == 0


@pytest.mark.parametrize("inside", [".", "out"])
def test_the_output_may_lie_among_the_data(run, data_dir, inside):
    output = os.path.join(data_dir, inside)
    for _ in range(2):  # what the first run wrote is no input of the second
        assert run(*preprocess(data_dir, output))[0] == 0
    assert run("verify", output)[0] == 0


def test_too_many_bad_pictures_are_told_in_a_line(run, data_dir, tmp_path):
    with open(os.path.join(data_dir, "train", folders.CLASSES[0], "00000.jpg"), "wb") as file:
        file.write(b"")
    code, _, err = run(*preprocess(data_dir, tmp_path / "out"))
    assert code == 1
    assert re.search(
        r"^error: 1 of 17 pictures \(5\.9%\).*1 empty; see .*rejects\.jsonl$", err, re.M
    )
    assert "Traceback" not in err
    assert run(*preprocess(data_dir, tmp_path / "out", "--max_reject_fraction=0.06"))[0] == 0


def test_a_picture_that_vanishes_is_told_in_a_line(run, data_dir, tmp_path, monkeypatch):
    claim = plan.claim

    def claim_and_lose_a_picture(*args: object) -> None:
        claim(*args)
        os.remove(os.path.join(data_dir, "train", folders.CLASSES[0], "00000.jpg"))

    monkeypatch.setattr(plan, "claim", claim_and_lose_a_picture)
    code, _, err = run(*preprocess(data_dir, tmp_path / "out"))
    assert code == 1
    assert re.search(r"^error: .*No such file.*00000\.jpg'; the same command continues", err, re.M)
    assert not (tmp_path / "out" / "dataset_info.json").exists()


WORKERS_TEXT = """Traceback (most recent call last):
  File "apache_beam/runners/common.py", line 1512, in process
OSError: [Errno 28] No space left on device

During handling of the above exception, another exception occurred:

RuntimeError: OSError: [Errno 28] No space left on device: '/out' [while running 'WriteShard']
"""


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (
            RuntimeError(WORKERS_TEXT),
            "[Errno 28] No space left on device: '/out'; the same command",
        ),
        (RuntimeError("Channel closed prematurely."), "a worker process was killed, or ran out"),
        (PlanError("taken over [while running 'x']"), "taken over"),
        (finish.IncompleteError("shard 3 is not finished"), "shard 3 is not finished"),
        (RuntimeError("Traceback:\npipeline.plan.PlanError: taken over"), "taken over"),
        (RuntimeError("Traceback:\nKeyError: 'bug'"), None),  # a bug needs its traceback
    ],
)
def test_a_failed_job_is_told_in_a_line_if_a_line_can_tell_it(data_dir, tmp_path, error, told):
    made = folders.claimed(data_dir, str(tmp_path / "out"))
    why = cli._why_it_failed(error, JobOptions(data_dir, str(tmp_path / "out")), made)
    assert why == told if told is None else why.startswith(told)


def test_a_job_that_was_only_handed_over_is_not_summarized(run, data_dir, tmp_path, monkeypatch):
    from pipeline import job

    monkeypatch.setattr(job, "run", lambda *_: None)  # as with a Dataflow template
    code, told, _ = run(*preprocess(data_dir, tmp_path / "out"))
    assert code == 0
    assert "is finished when dataset_info.json is there" in told


def test_ctrl_c_while_the_data_are_listed_is_no_traceback(run, data_dir, tmp_path, monkeypatch):
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(layouts, "find", interrupted)
    assert run(*preprocess(data_dir, tmp_path / "out"))[::2] == (130, "interrupted\n")
