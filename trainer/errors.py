"""What can go wrong in ways that a person can mend: told in a line or two, without a traceback.

Importing this imports no engine. `trainer.metadata.DatasetError` belongs with these.
"""

EXIT_CRASHED = 1  # as Python reports an exception that nothing caught
EXIT_MISTAKE = 2
EXIT_PREEMPTED = 75  # EX_TEMPFAIL of sysexits.h: try again
EXIT_INTERRUPTED = 130  # as shells report a process that Ctrl-C ended


class UsageError(ValueError):
    """A mistake in flags or paths."""


class CheckpointError(Exception):
    """A checkpoint that is missing, damaged, or of another run; both sides are named."""


class NonFiniteLossError(ArithmeticError):
    """The loss became infinite or not a number."""


class PreemptedError(Exception):
    """The run was asked to stop; it is saved and continues with the same command."""
