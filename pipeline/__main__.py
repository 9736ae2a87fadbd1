"""The command line: python -m pipeline preprocess | verify | sample."""

import argparse
import difflib
import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, get_args

from rich.console import Console
from rich.progress import Progress

from pipeline.config import Crop, Encoding, Fit, JobOptions, PictureOptions, Quantizer

EXIT_WRONG = 1  # verify found something; the job failed
EXIT_USAGE = 2  # impossible options, unusable input
EXIT_INTERRUPTED = 130
ALL_CORES = "--direct_num_workers=0"  # Beam's own default is one

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code."""
    parser = _parser()
    arguments, rest = parser.parse_known_args(argv)
    command: Callable[[argparse.Namespace, list[str]], int] = arguments.command
    if rest and command is not _preprocess:
        parser.error(_unknown(rest))
    # Beam tells the root logger of every optional package that is not installed.
    logging.basicConfig(level=logging.ERROR, format="%(levelname)s: %(message)s")
    return command(arguments, rest)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pipeline", description="Car pictures to quantized TFRecord shards."
    )
    commands = parser.add_subparsers(required=True, metavar="preprocess | verify | sample")
    _add_preprocess(commands)
    _add_verify(commands)
    _add_sample(commands)
    return parser


def _add(
    parser: argparse.ArgumentParser, flag: str, default: Any, help: str, **kwargs: Any
) -> None:
    """Adds a flag that shows its default."""
    if default is not None:
        kwargs.setdefault("type", type(default))
        kwargs["default"] = default
        help = f"{help} (default: {default})"
    parser.add_argument(f"--{flag}", help=help, **kwargs)


def _add_preprocess(commands: Any) -> None:
    parser = commands.add_parser(
        "preprocess",
        help="quantize a folder of car pictures into TFRecord shards",
        description="Quantizes a folder of car pictures into TFRecord shards. Every option of "
        "Apache Beam may follow, such as --runner=DataflowRunner; without one, the job uses all "
        "cores of this machine.",
        allow_abbrev=False,
    )
    parser.set_defaults(command=_preprocess)
    picture, job = PictureOptions(), JobOptions("", "")
    parser.add_argument("--data_dir", required=True, help="pictures and annotations; may be gs://")
    parser.add_argument("--output_dir", required=True, help="folder of the shards; may be gs://")
    _add(parser, "layout", job.layout, "auto, or one of the names in the README")
    _add(parser, "crop", picture.crop, "box: cut each picture to its box", choices=get_args(Crop))
    _add(
        parser, "crop_margin", picture.crop_margin, "context kept around a box, 0 to 1 of its side"
    )
    _add(parser, "image_size", picture.image_size, "stored side in pixels; 0 keeps the original")
    _add(parser, "fit", picture.fit, "how a rectangle becomes a square", choices=get_args(Fit))
    _add(parser, "colors", picture.colors, "palette size, 2 to 256; 0 stores plain RGB")
    _add(parser, "quantizer", picture.quantizer, "which k-means", choices=get_args(Quantizer))
    parser.add_argument(
        "--encoding",
        choices=get_args(Encoding),
        help=f"how pictures are stored (default: {picture.encoding}; rgb with --colors=0)",
    )
    _add(parser, "examples_per_shard", job.examples_per_shard, "mean number of records a shard")
    _add(
        parser,
        "max_reject_fraction",
        job.max_reject_fraction,
        "share of pictures that may be missing or bad",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace what other options or input made there"
    )


def _add_verify(commands: Any) -> None:
    parser = commands.add_parser(
        "verify",
        help="read every record of a finished folder back",
        description="Reads every record back: checksums, schema, counts, colours, labels, and "
        "that each record is where its id demands. Exit code 1 if anything is wrong.",
        allow_abbrev=False,
    )
    parser.set_defaults(command=_verify)
    parser.add_argument("output_dir", help="folder that preprocess wrote")


def _add_sample(commands: Any) -> None:
    from pipeline.sample import LAYOUTS, SampleOptions

    options = SampleOptions()
    parser = commands.add_parser(
        "sample",
        help="draw a small data set to try everything on",
        description="Draws cars of ten made-up models and writes them in one of the real layouts.",
        allow_abbrev=False,
    )
    parser.set_defaults(command=_sample)
    parser.add_argument("output_dir", help="a new or empty folder")
    _add(parser, "layout", options.layout, "which real layout", choices=LAYOUTS)
    _add(parser, "train", options.train, "training pictures of each class")
    _add(parser, "test", options.test, "test pictures of each class")
    _add(parser, "validation", options.validation, "validation pictures of each class (folders)")
    _add(parser, "seed", options.seed, "other seeds draw other pictures")
    parser.add_argument(
        "--flaws", action="store_true", help="add bad, odd and missing files, as real copies have"
    )


def _preprocess(arguments: argparse.Namespace, beam_flags: list[str]) -> int:
    # Here and not above: `--help` and `verify` need not wait for Beam.
    from apache_beam.options.pipeline_options import PipelineOptions

    from pipeline import finish, job, layouts, plan, progress, rejects, report, shards, storage

    try:
        picture = _picture_options(arguments)
        options = _make(JobOptions, arguments)
        if not any(flag.startswith("--runner") for flag in beam_flags):
            beam_flags = [ALL_CORES, *beam_flags]
            _refuse_unknown(beam_flags, PipelineOptions)
        listing = layouts.find(options.data_dir, options.layout)
        out.print(layouts.table(listing))
        for note in listing.notes:
            out.print(f"note: {note}", markup=False)
        made = plan.make(listing, picture, options.examples_per_shard)
        rejects.check_budget(
            made.missing,
            made.found + made.missing,
            options.max_reject_fraction,
            "Nothing was started; see the table above",
        )
        plan.claim(options, made, listing)
    except (ValueError, rejects.TooManyRejectsError) as error:
        err.print(f"error: {error}", markup=False)
        return EXIT_USAGE
    del listing
    start = time.monotonic()
    threading.excepthook = _tell_late
    signal.signal(signal.SIGINT, lambda *_: _leave(options.output_dir))
    try:
        with progress.progress(options.output_dir, made, err):
            job.run(
                options.output_dir, made, options.max_reject_fraction, PipelineOptions(beam_flags)
            )
    except RuntimeError:
        # Beam hands on a worker's error as text inside a RuntimeError; if it was the budget,
        # say that in a line, else show all of it.
        sidecars = [shards.read_sidecar(options.output_dir, shard) for shard in made.all_shards()]
        left_out = plan.read_missing(options.output_dir)
        left_out += [reject for sidecar in sidecars if sidecar for reject in sidecar.rejects]
        try:
            finish.check_rejects(made, left_out, options.max_reject_fraction, options.output_dir)
        except rejects.TooManyRejectsError as error:
            err.print(f"error: {error}", markup=False)
            return EXIT_WRONG
        raise
    seconds = time.monotonic() - start
    made_report = json.loads(storage.read_text(storage.join(options.output_dir, plan.REPORT_JSON)))
    out.print(report.summary(made_report))
    out.print(
        f"{made.found:,} pictures in {seconds:.1f} s ({made.found / seconds:,.0f} a second)\n"
        f"data set: {options.output_dir}\n"
        f"report:   {storage.join(options.output_dir, plan.REPORT_HTML)}",
        markup=False,
    )
    return 0


def _tell_late(error: threading.ExceptHookArgs) -> None:
    """Prints the error of a thread, unless the program is about to end at Ctrl-C.

    Beam's threads fail by the dozen when the workers leave, before the main thread may run.
    """
    time.sleep(1.0)
    threading.__excepthook__(error)


def _leave(output_dir: str) -> None:
    """Ends the program at Ctrl-C; workers of this machine end by themselves.

    Not by KeyboardInterrupt: Beam would wait for workers that are gone.
    """
    from pipeline import storage

    time.sleep(0.2)  # in a terminal the workers get the same Ctrl-C; let them go first
    storage.remove_temporaries(output_dir)
    err.show_cursor()
    err.print("interrupted; the same command continues from the shards that are finished")
    os._exit(EXIT_INTERRUPTED)


def _make(options: Any, arguments: argparse.Namespace, **changed: Any) -> Any:
    """Makes an options dataclass of the flags with the names of its fields."""
    names = options.__dataclass_fields__
    values = {name: value for name, value in vars(arguments).items() if name in names}
    return options(**{**values, **changed})


def _picture_options(arguments: argparse.Namespace) -> PictureOptions:
    default = "rgb" if arguments.colors == 0 else PictureOptions.encoding
    made: PictureOptions = _make(PictureOptions, arguments, encoding=arguments.encoding or default)
    return made


def _refuse_unknown(flags: list[str], pipeline_options: Any) -> None:
    """Raises ValueError for a flag that neither this program nor Beam knows.

    Only for the local engine: other runners take options of their own that Beam passes on.
    """
    parser = argparse.ArgumentParser(allow_abbrev=False, add_help=False)
    for options in pipeline_options.__subclasses__():
        options._add_argparse_args(parser)  # documented by Beam as the hook for new options
    _, unknown = parser.parse_known_args(flags)
    if unknown:
        raise ValueError(_unknown(unknown))


def _unknown(flags: list[str]) -> str:
    name = flags[0].lstrip("-").split("=")[0]
    known = [*PictureOptions.__dataclass_fields__, *JobOptions.__dataclass_fields__]
    near = difflib.get_close_matches(name, known, n=1)
    return f"unknown option {flags[0]}; " + (f"did you mean --{near[0]}?" if near else "see --help")


def _verify(arguments: argparse.Namespace, _: list[str]) -> int:
    from pipeline.plan import PlanError
    from pipeline.verify import UnverifiableError, verify

    records = problems = 0
    try:
        with Progress(console=err, transient=True) as bar:
            task = bar.add_task("records", total=None)

            def count() -> None:
                nonlocal records
                records += 1
                bar.update(task, completed=records)

            for problem in verify(arguments.output_dir, count):
                problems += 1
                out.print(problem, markup=False)
    except (UnverifiableError, PlanError) as error:
        err.print(f"error: {error}", markup=False)
        return EXIT_WRONG
    if problems:
        err.print(f"{problems:,} problems in {records:,} records of {arguments.output_dir}")
        return EXIT_WRONG
    out.print(f"{records:,} records of {arguments.output_dir} are as they should be")
    return 0


def _sample(arguments: argparse.Namespace, _: list[str]) -> int:
    from pipeline.sample import SampleOptions, draw

    try:
        options = _make(SampleOptions, arguments)
        with Progress(console=err, transient=True) as bar:
            task = bar.add_task("drawing", total=None)
            summary = draw(arguments.output_dir, options, lambda: bar.advance(task))
    except ValueError as error:
        err.print(f"error: {error}", markup=False)
        return EXIT_USAGE
    drawn = "drawn" if summary.drawn else "is there already, as asked for"
    files = ", ".join(f"{count:,} {split}" for split, count in summary.files.items())
    out.print(f"sample in {summary.output_dir} ({summary.layout}: {files}) {drawn}", markup=False)
    for id, flaw in summary.flaws.items():
        out.print(f"  flaw: {id} is a {flaw}", markup=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
