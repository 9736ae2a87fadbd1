"""The command line: python -m pipeline preprocess | verify | sample."""

import argparse
import builtins
import contextlib
import difflib
import json
import logging
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, get_args

from rich.console import Console
from rich.progress import Progress

from pipeline.config import Crop, Decode, Encoding, Fit, JobOptions, PictureOptions, Quantizer

if TYPE_CHECKING:
    from apache_beam.options.pipeline_options import PipelineOptions

    from pipeline.plan import Plan

EXIT_WRONG = 1  # verify found something; the job failed
EXIT_USAGE = 2  # impossible options, unusable input
EXIT_INTERRUPTED = 130
PATIENCE_SECONDS = 1.0  # with the errors of Beam's threads, before they are told
ALL_CORES = "--direct_num_workers=0"  # Beam's own default is one
LOCAL_RUNNERS = (None, "FnApiRunner", "DirectRunner")
_RESUME = "the same command continues from the shards that are finished"

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code."""
    parser = _parser()
    arguments, rest = parser.parse_known_args(argv)
    command: Callable[[argparse.Namespace, list[str]], int] = arguments.command
    del arguments.command
    if rest and command is not _preprocess:
        parser.error(_unknown(rest, vars(arguments)))
    # Beam tells the root logger of every optional package that is not installed.
    logging.basicConfig(level=logging.ERROR, format="%(levelname)s: %(message)s")
    # The local engine logs what it raises as well, often twice; see `_why_it_failed`.
    for name in ("apache_beam.runners.worker", "apache_beam.runners.portability.fn_api_runner"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    for handler in logging.getLogger().handlers:
        handler.addFilter(_is_news)
    try:
        return command(arguments, rest)
    except KeyboardInterrupt:
        err.print("interrupted")
        return EXIT_INTERRUPTED


def _is_news(record: logging.LogRecord) -> bool:
    """Returns whether a log record is none that Beam's own code in a worker wrote of a failure."""
    forwarded = record.module in ("worker_handlers", "local_job_service")
    return not (forwarded and "apache_beam/runners" in record.getMessage())


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
    picture, job = PictureOptions, JobOptions
    for flag, help in (
        ("data_dir", "pictures and annotations; may be gs://"),
        ("output_dir", "folder of the shards; may be gs://"),
    ):
        # The shell leaves the ~ of --output_dir=~/cars as it is.
        parser.add_argument(f"--{flag}", required=True, type=os.path.expanduser, help=help)
    _add(parser, "layout", job.layout, "auto, or one of the names in the README")
    _add(parser, "crop", picture.crop, "box: cut each picture to its box", choices=get_args(Crop))
    _add(
        parser, "crop_margin", picture.crop_margin, "context kept around a box, 0 to 1 of its side"
    )
    _add(parser, "image_size", picture.image_size, "stored side in pixels; 0 keeps the original")
    _add(parser, "fit", picture.fit, "how a rectangle becomes a square", choices=get_args(Fit))
    _add(
        parser,
        "decode",
        picture.decode,
        "scaled: decode large JPEGs at a fraction of their size",
        choices=get_args(Decode),
    )
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
    parser.add_argument("output_dir", metavar="OUT", help="folder that preprocess wrote")


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
    parser.add_argument("output_dir", metavar="OUT", help="a new or empty folder")
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
    from pipeline import job, layouts, plan, progress, rejects, storage

    try:
        picture = _picture_options(arguments)
        options = _make(JobOptions, arguments)
        beam_options = _beam_options(beam_flags, vars(arguments))
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
    except OSError as error:
        err.print(f"error: --output_dir={arguments.output_dir}: {error}", markup=False)
        return EXIT_USAGE
    del listing
    start = time.monotonic()
    with _leaving_at_interrupt(options.output_dir):
        try:
            with progress.progress(options.output_dir, made, err) as resumed:
                job.run(options.output_dir, made, options.max_reject_fraction, beam_options)
        except (RuntimeError, plan.PlanError) as error:
            told = _why_it_failed(error, options, made)
            if told is None:
                raise
            err.print(f"error: {told}", markup=False)
            return EXIT_WRONG
    plan.remove_temporaries(options.output_dir)
    if not storage.exists(storage.join(options.output_dir, plan.DATASET_INFO)):
        out.print(
            f"handed over; {options.output_dir} is finished when {plan.DATASET_INFO} is there",
            markup=False,
        )
        return 0
    _summarize(options.output_dir, made.found, resumed, time.monotonic() - start)
    return 0


def _summarize(output_dir: str, found: int, resumed: int, seconds: float) -> None:
    from pipeline import plan, report, storage

    made_report = json.loads(storage.read_text(storage.join(output_dir, plan.REPORT_JSON)))
    out.print(report.summary(made_report))
    rate = (found - resumed) / seconds
    earlier = f"; {resumed:,} were done before" if resumed else ""
    out.print(
        f"{found - resumed:,} pictures in {seconds:.1f} s ({rate:,.0f} a second){earlier}\n"
        f"data set: {output_dir}\n"
        f"report:   {storage.join(output_dir, plan.REPORT_HTML)}",
        markup=False,
    )


def _why_it_failed(error: Exception, options: JobOptions, made: "Plan") -> str | None:
    """Returns a failed job's reason in a line; None if only a traceback tells it.

    Beam hands a worker's error on as it is or as a RuntimeError that holds the traceback as text.
    """
    from pipeline import finish, plan, rejects, shards

    def left_out() -> Iterator[rejects.Reject]:
        yield from plan.read_missing(options.output_dir)
        for shard in made.all_shards():
            sidecar = shards.read_finished(options.output_dir, shard, made.fingerprint)
            if sidecar is None:
                raise finish.IncompleteError
            yield from sidecar.rejects

    try:
        finish.check_rejects(made, left_out(), options.max_reject_fraction, options.output_dir)
    except rejects.TooManyRejectsError as too_many:  # every shard is there: the last step failed
        return str(too_many)
    except finish.IncompleteError:
        pass
    last = f"{type(error).__name__}: {error}".strip().split("\n")[-1]
    if "Channel closed prematurely" in last:
        return f"a worker process was killed, or ran out of memory; {_RESUME}"
    pattern = r"(?:RuntimeError: )*(?:\w+\.)*(\w+): (.*?)( \[while running '.*'\])?"
    raised = re.fullmatch(pattern, last)
    if raised and issubclass(getattr(builtins, raised[1], object), OSError):
        return f"{raised[2]}; {_RESUME}"
    if raised and raised[1] in (plan.PlanError.__name__, finish.IncompleteError.__name__):
        return raised[2]
    return None


@contextlib.contextmanager
def _leaving_at_interrupt(output_dir: str) -> Iterator[None]:
    ended = threading.Event()

    def tell(error: threading.ExceptHookArgs) -> None:
        # When a worker has left, Beam's threads fail by the dozen; the job's own error tells why.
        if error.exc_type.__module__.startswith("grpc") or ended.wait(PATIENCE_SECONDS):
            return
        if "Worker subprocess exited" in str(error.exc_value):
            err.print("a worker process has ended; the job fails when the others have done theirs")
        else:
            threading.__excepthook__(error)

    hook, threading.excepthook = threading.excepthook, tell
    handler = signal.signal(signal.SIGINT, lambda *_: _leave(output_dir))
    try:
        yield
    finally:
        ended.set()
        signal.signal(signal.SIGINT, handler)
        threading.excepthook = hook


def _leave(output_dir: str) -> None:
    """Ends the program at Ctrl-C; workers of this machine end by themselves.

    Not by KeyboardInterrupt: Beam would wait for workers that are gone.
    """
    from pipeline import plan

    time.sleep(0.2)  # in a terminal the workers get the same Ctrl-C; let them go first
    plan.remove_temporaries(output_dir)
    err.show_cursor()
    # Not err.print: that would print above the bar and leave the prompt at the bar's end.
    err.file.write(f"{chr(10) * err.is_terminal}interrupted; {_RESUME}\n")
    err.file.flush()
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


class _BeamParser(argparse.ArgumentParser):
    """Raises what is wrong; argparse would print the usage of 250 options and exit."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def _beam_options(flags: list[str], own: Iterable[str]) -> "PipelineOptions":
    """Returns the options of Beam; without a runner they are for all cores of this machine.

    Args:
        flags: those that are not this program's own.
        own: names of this program's own flags.

    Raises:
        ValueError: for a value that Beam refuses, and for a flag that neither this program nor Beam
            knows. Runners of clusters take more options than Beam knows here; for those only what
            looks like a misspelt flag of this program is refused.
    """
    from apache_beam.options.pipeline_options import PipelineOptions
    from apache_beam.options.pipeline_options_validator import PipelineOptionsValidator
    from apache_beam.runners.runner import create_runner

    parser = _BeamParser(allow_abbrev=False, add_help=False)
    for options in PipelineOptions.__subclasses__():
        options._add_argparse_args(parser)  # documented by Beam as the hook for new options
    known, unknown = parser.parse_known_args(flags)
    if known.runner in LOCAL_RUNNERS:
        if unknown:
            raise ValueError(_unknown(unknown, [*own, *vars(known)]))
    elif misspelt := [f for f in unknown if f.startswith("--") and _near(f, own)]:
        raise ValueError(_unknown(misspelt, own))
    if known.runner is None:
        return PipelineOptions([ALL_CORES, *flags])
    made = PipelineOptions(flags)
    try:
        problems = PipelineOptionsValidator(made, create_runner(known.runner)).validate()
    except ImportError as error:
        raise ValueError(f"--runner={known.runner}: {error}") from error
    if problems:
        raise ValueError(" ".join(problems))
    # Among them where to watch the job; the rest of Beam stays quiet.
    logging.getLogger("apache_beam.runners.dataflow").setLevel(logging.INFO)
    return made


def _near(flag: str, known: Iterable[str]) -> list[str]:
    name = flag.lstrip("-").split("=")[0]
    return difflib.get_close_matches(name, list(known), n=1, cutoff=0.75)


def _unknown(flags: list[str], known: Iterable[str]) -> str:
    near = _near(flags[0], known)
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
    except (UnverifiableError, PlanError, OSError) as error:
        err.print(f"error: {error}", markup=False)
        return EXIT_WRONG
    told = f"{records:,} records of {arguments.output_dir}"
    if problems:
        err.print(f"{problems:,} problems in {told}", markup=False)
        return EXIT_WRONG
    out.print(f"{told} are as they should be", markup=False)
    return 0


def _sample(arguments: argparse.Namespace, _: list[str]) -> int:
    from pipeline.sample import SampleOptions, draw

    try:
        options = _make(SampleOptions, arguments)
        with Progress(console=err, transient=True) as bar:
            task = bar.add_task("drawing", total=options.pictures)
            summary = draw(arguments.output_dir, options, lambda: bar.advance(task))
    except (ValueError, OSError) as error:
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
