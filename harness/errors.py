"""Errors a user can act on: each says what was wrong, where, and what to do next.

Exit codes of the command line: 0 all well, 1 a cell failed, a gate broke or nothing ran, 2 wrong usage.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

OK, FAILED = 0, 1


class BenchError(Exception):
    """Something went wrong that its reader can mend; shown without a traceback, exit code 1."""

    exit_code = 1


class UsageError(BenchError):
    """What was asked for does not exist or does not fit together; exit code 2."""

    exit_code = 2


class DataError(BenchError):
    """A video, list or label is missing, broken or does not match; names every offender."""


class CheckpointError(BenchError):
    """A checkpoint is foreign, unsafe, incomplete or does not match the model."""


class StopRequested(Exception):
    """The work was asked to stop and did so after its state was saved."""


@contextmanager
def about(path: str | os.PathLike[str], remedy: str = "") -> Iterator[None]:
    """Errors of the file system, and text that is not UTF-8, become a DataError that names the file `path`."""
    try:
        yield
    except OSError as error:
        where = error.filename if isinstance(error.filename, str) else path
        raise DataError(f"{where}: {error.strerror or error}{remedy and f'; {remedy}'}") from error
    except UnicodeEncodeError as error:
        name = error.object[error.start : error.end]
        raise DataError(f"{path}: {name!r} cannot be written as text; rename what it is the name of") from error
    except UnicodeError as error:
        raise DataError(f"{path} is not UTF-8 text{remedy and f'; {remedy}'}") from error


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """Return ` (did you mean 'x'?)` for the nearest choice, else an empty string."""
    near = difflib.get_close_matches(name, list(choices), n=1, cutoff=0.5)
    return f" (did you mean {near[0]!r}?)" if near else ""


def unknown(kind: str, name: object, choices: Iterable[str]) -> UsageError:
    """The error for a name that is not among `choices`; lists them all."""
    choices = sorted(choices)
    near = did_you_mean(str(name), choices)
    return UsageError(f"unknown {kind} {name!r}{near}; known: {', '.join(choices) or 'none'}")
