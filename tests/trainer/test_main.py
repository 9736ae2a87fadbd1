"""The command line: help, named recipes, and errors without a traceback."""

import importlib
import pkgutil
import subprocess
import sys

import pytest

from trainer import __main__ as command_line
from trainer import configs, train
from trainer.config import TrainConfig
from trainer.errors import PreemptedError


@pytest.mark.parametrize("command", ["train", "evaluate", "predict", "check-tpu"])
def test_help_explains_every_flag(command, capsys):
    with pytest.raises(SystemExit) as left:
        command_line.main([command, "--help"])
    assert left.value.code == 0
    assert ("--topology" if command == "check-tpu" else "--model_dir") in capsys.readouterr().out
    subparsers = command_line.parser()._subparsers._group_actions[0]
    for action in subparsers.choices[command]._actions:
        assert action.help


def test_help_and_mistyped_flags_do_not_wait_for_the_engines():
    code = (
        "import sys; from trainer.__main__ import parser; parser(); "
        "heavy = {'jax', 'keras', 'tensorflow', 'orbax', 'pipeline'} & sys.modules.keys(); "
        "sys.exit(str(heavy) if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_step_needs_no_tensorflow():
    code = (
        "import sys; sys.modules['tensorflow'] = None; "
        "from trainer import step, train, evaluate, checkpoints; "
        "from trainer.config import ModelConfig, TrainConfig; "
        "recipe = TrainConfig(model=ModelConfig(model='small', width=6)); "
        "step.init_state(step.build(recipe, classes=3, image_size=16, total_steps=5, "
        "platform='cpu'))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", [m.name for m in pkgutil.iter_modules(configs.__path__)])
def test_named_recipes_are_valid_and_say_what_they_are_for(name):
    assert isinstance(command_line.named_config(name), TrainConfig)
    assert importlib.import_module(f"trainer.configs.{name}").__doc__


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train", "--data_dir=/nowhere", "--model_dir=/tmp/m"], "/nowhere: no such folder"),
        (["train", "--data_dir=/nowhere", "--model_dir=/tmp/m", "--epochs=0"], "--epochs is 0"),
        (["evaluate", "--data_dir=/nowhere", "--model_dir=/nowhere"], "/nowhere"),
        (["predict", "--model_dir=/nowhere", __file__], "/nowhere holds no checkpoint"),
        (["predict", "--model_dir=/nowhere", "/nothing.jpg"], "/nothing.jpg: no such file"),
    ],
)
def test_mistakes_are_told_in_a_line_or_two(arguments, said, capsys):
    assert command_line.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert said in error
    assert len(error.splitlines()) <= 2


def test_a_damaged_folder_of_shards_is_told_in_a_line(tmp_path, capsys):
    (tmp_path / "x").write_text("")
    assert command_line.main(["train", f"--data_dir={tmp_path}", "--model_dir=/tmp/m"]) == 2
    assert "preprocess" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_on_a_tpu_versions_are_checked_before_anything_else(command, monkeypatch, capsys):
    monkeypatch.setattr(command_line.accelerators, "tpu_wanted", lambda: True)
    monkeypatch.setattr(command_line.versions, "jax_needs", lambda: ["libtpu==0.0.1"])
    arguments = [command, "--data_dir=/nowhere", "--model_dir=/nowhere"]
    assert command_line.main(arguments) == 2
    assert "versions that do not go together: libtpu==0.0.1 is needed" in capsys.readouterr().err


def test_flags_override_the_named_recipe(monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr(train, "train", lambda recipe, *rest: seen.append(recipe))
    arguments = ["train", f"--data_dir={tmp_path}", f"--model_dir={tmp_path}", "--config=demo"]
    assert command_line.main([*arguments, "--epochs=3"]) == 0
    demo = command_line.named_config("demo")
    assert seen[0].run.epochs == 3
    assert seen[0].model == demo.model


def test_a_preempted_run_has_an_exit_code_of_its_own(monkeypatch, tmp_path, capsys):
    def preempted(*_):
        raise PreemptedError("stopped as asked and saved step 3 of 9")

    monkeypatch.setattr(train, "train", preempted)
    assert command_line.main(["train", "--data_dir=x", f"--model_dir={tmp_path}"]) == 75
    assert "saved step 3" in capsys.readouterr().err
