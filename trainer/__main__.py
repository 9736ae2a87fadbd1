"""The command line: `python -m trainer train | evaluate | predict | check-tpu`.

Exit codes: 0 done; 2 a mistake that a person can mend, told in a line or two; 75 stopped as asked
(SIGTERM, Ctrl-C), saved, and continued by the same command; 130 interrupted with nothing to save.
"""

import argparse
import importlib
import os
import pathlib
import pkgutil
import sys
from typing import Any

from etils import epath
from rich.console import Console

from trainer import accelerators, cluster, config, configs, versions
from trainer.config import TrainConfig
from trainer.errors import (
    EXIT_INTERRUPTED,
    EXIT_MISTAKE,
    EXIT_PREEMPTED,
    CheckpointError,
    NonFiniteLossError,
    PreemptedError,
    UsageError,
)
from trainer.metadata import ENCODINGS, DatasetError


def parser() -> argparse.ArgumentParser:
    """Returns the parser of all commands."""
    main = argparse.ArgumentParser(
        prog="python -m trainer", description="Shards to a trained CNN.", allow_abbrev=False
    )
    commands = main.add_subparsers(
        dest="command", required=True, metavar="train|evaluate|predict|check-tpu"
    )

    train = commands.add_parser(
        "train",
        help="train a model, or continue to",
        description="Trains a model on a folder of shards; started again with the same command, "
        "it continues. Without a flag, the value of --config holds. Exit code 75: stopped by "
        "SIGTERM or Ctrl-C, saved, can be continued.",
        allow_abbrev=False,
    )
    _add_data_dir(train)
    _add_model_dir(train, "where checkpoints, history and curves go")
    _add_recipe(train)
    cluster.add_flags(train)

    evaluate = commands.add_parser(
        "evaluate",
        help="measure a model on a split",
        description="Measures a model: top-1, top-5, mean accuracy of the classes, confusion "
        "matrix. Writes <model_dir>/evaluation/<split>/.",
        allow_abbrev=False,
    )
    _add_data_dir(evaluate)
    _add_model_dir(evaluate, "folder that train wrote")
    evaluate.add_argument("--split", default="test", help="split to measure on (default: test)")
    evaluate.add_argument(
        "--batch_size",
        type=_positive,
        default=64,
        metavar="INT",
        help="pictures a step (default: 64)",
    )
    cluster.add_flags(evaluate)

    predict = commands.add_parser(
        "predict",
        help="name the class of pictures",
        description="Names the most likely classes of JPEG, PNG or WebP files, prepared exactly "
        "as the training data was.",
        allow_abbrev=False,
    )
    _add_model_dir(predict, "folder that train wrote")
    predict.add_argument("images", nargs="+", metavar="PATH", help="picture files, or folders")
    predict.add_argument(
        "--top", type=_positive, default=5, metavar="INT", help="classes to name (default: 5)"
    )
    predict.add_argument(
        "--box",
        metavar="X1,Y1,X2,Y2",
        help="for a model trained on box crops: the car's box in the one picture given, in pixels "
        "from 1, ends included. Without it the whole picture is taken",
    )
    predict.add_argument(
        "--json", action="store_true", help="print a JSON object a line instead of tables"
    )
    _add_check_tpu(commands)
    return main


def _add_check_tpu(commands: Any) -> None:
    command = commands.add_parser(
        "check-tpu",
        help="compile for a TPU, without one",
        description="Compiles the training and the evaluation step for a slice of TPU, on any "
        "machine, and prints what they cost. The pictures are those of --data_dir, or as the other "
        "flags say.",
        allow_abbrev=False,
    )
    command.add_argument("--topology", required=True, help="the slice, such as v5e:2x4")
    command.add_argument(
        "--hosts", type=_positive, metavar="INT", help="of the slice (default: one for four chips)"
    )
    command.add_argument(
        "--shares",
        type=config.parse_bool,
        default=True,
        metavar="true|false",
        help="measure palette expansion and augmentation: two compilations more (default: true)",
    )
    command.add_argument(
        "--largest_batch",
        action="store_true",
        help="search for the largest batch: two or three compilations more",
    )
    command.add_argument(
        "--json", type=pathlib.Path, metavar="FILE", help="write the numbers there too"
    )
    command.add_argument("--data_dir", help="folder that `python -m pipeline preprocess` wrote")
    # Absent unless given: with --data_dir they would contradict it.
    for name, kind, text in (
        ("image_size", int, "stored side in pixels (default: 256)"),
        ("classes", int, "number of classes (default: 196)"),
        ("colors", int, "of a palette (default: 32)"),
    ):
        command.add_argument(
            f"--{name}", type=kind, default=argparse.SUPPRESS, metavar="INT", help=text
        )
    command.add_argument(
        "--encoding",
        choices=ENCODINGS,
        default=argparse.SUPPRESS,
        help="of the pictures (default: indexed)",
    )
    _add_recipe(command)


def _add_recipe(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--config",
        default="default",
        choices=sorted(module.name for module in pkgutil.iter_modules(configs.__path__)),
        help="named recipe of trainer/configs whose values hold where no flag is given",
    )
    config.add_flags(command)


def _add_data_dir(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--data_dir", required=True, help="folder that `python -m pipeline preprocess` wrote"
    )


def _add_model_dir(command: argparse.ArgumentParser, text: str) -> None:
    command.add_argument("--model_dir", required=True, type=epath.Path, help=text)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return number


def named_config(name: str) -> TrainConfig:
    """Returns the recipe of `trainer/configs/<name>.py`."""
    return importlib.import_module(f"trainer.configs.{name}").CONFIG


def run(flags: argparse.Namespace) -> int:
    """Runs a parsed command and returns its exit code.

    Engines are imported here, so that `--help` and a mistyped flag answer at once.
    """
    console = Console(highlight=False)
    if flags.command == "check-tpu":
        _check_tpu(flags, console)
        return 0

    if accelerators.tpu_wanted():
        versions.check_tpu()
    else:
        os.environ.update(accelerators.NO_TPU_HERE)

    from trainer import compile_cache

    compile_cache.enable()
    if flags.command == "train":
        recipe = config.from_flags(named_config(flags.config), flags)
        console.quiet = not cluster.join(cluster.from_flags(flags, os.environ))
        from trainer.train import train

        train(recipe, flags.data_dir, flags.model_dir, console)
    elif flags.command == "evaluate":
        console.quiet = not cluster.join(cluster.from_flags(flags, os.environ))
        from trainer.evaluate import evaluate

        evaluate(flags.data_dir, flags.model_dir, flags.split, flags.batch_size, console)
    else:
        from trainer.predict import predict

        bad = predict(
            flags.model_dir,
            flags.images,
            flags.box,
            top=flags.top,
            as_json=flags.json,
            console=console,
        )
        return EXIT_MISTAKE if bad else 0
    return 0


def _check_tpu(flags: argparse.Namespace, console: Console) -> None:
    from trainer import tpu_check

    recipe = config.from_flags(named_config(flags.config), flags)
    given = {
        name: value
        for name, value in vars(flags).items()
        if name in ("image_size", "classes", "colors", "encoding")
    }
    if flags.data_dir and given:
        raise UsageError(f"--data_dir says what --{next(iter(given))} is; give one of the two")
    tpu_check.check(
        recipe,
        tpu_check.Pictures.of(flags.data_dir) if flags.data_dir else tpu_check.Pictures(**given),
        flags.topology,
        console,
        hosts=flags.hosts,
        shares=flags.shares,
        largest_batch=flags.largest_batch,
        json_path=flags.json,
    )


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    flags = parser().parse_args(arguments)
    try:
        return run(flags)
    except (UsageError, DatasetError, CheckpointError, NonFiniteLossError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_MISTAKE
    except PreemptedError as stopped:
        print(stopped, file=sys.stderr)
        return EXIT_PREEMPTED
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED


if __name__ == "__main__":
    cluster.leave(main())
