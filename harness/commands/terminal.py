"""How the command line ends, and what a terminal is given to print. No torch.

Exit codes: 0 all well, 1 a cell failed, a gate broke or nothing ran, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import codecs
import contextlib
import io
import os
import sys
import traceback
from collections.abc import Callable, Sequence

from harness.errors import FAILED, BenchError, DataError, about

DEBUG = "--debug"
INTERRUPTED = 130
PLAIN = {"−": "-", "–": "-", "×": "x", "·": "-", "…": "...", "±": "+-", "→": "->", "≤": "<=", "≥": ">="}


def guarded(command: Callable[[Sequence[str]], object], words: Sequence[str]) -> int:
    """Run a command; every error is one line on standard error, with its traceback after `--debug`.

    Args:
        command: Takes the words that were typed; raises SystemExit where it ends by itself.
        words: `--debug` may stand anywhere among them.

    Returns:
        The exit code.
    """
    print_what_can_be()
    try:
        with contextlib.suppress(BrokenPipeError):  # whoever read our output has seen enough
            try:
                return _code(command, [word for word in words if word != DEBUG])
            except BenchError as error:
                return _told(str(error), error.exit_code, debug=DEBUG in words)
            except BrokenPipeError:
                raise
            except (OSError, UnicodeError) as error:
                return _told(_of_files(error), FAILED, debug=DEBUG in words)
            except Exception as error:  # noqa: BLE001  (the last place where an error may be told)
                return _told(_unexpected(error), FAILED, debug=DEBUG in words)
            finally:
                sys.stdout.flush()
    except KeyboardInterrupt:
        return INTERRUPTED
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left is flushed at exit
    return FAILED


def print_what_can_be() -> None:
    """Let standard output and error write what their encoding lacks in ASCII: no minus sign ends a command."""
    codecs.register_error("plain", _in_ascii)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="plain")


def _in_ascii(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = "".join(PLAIN.get(character, character) for character in error.object[error.start : error.end])
    return text.encode("ascii", "backslashreplace").decode(), error.end


def _code(command: Callable[[Sequence[str]], object], words: Sequence[str]) -> int:
    """The exit code with which a command ends."""
    try:
        command(words)
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else FAILED if ended.code else 0
    return 0


def _told(text: str, code: int, *, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    print(f"error: {text}", file=sys.stderr, flush=True)
    return code


def _of_files(error: OSError | UnicodeError) -> str:
    """An error of the file system, or of text, that nobody nearer to it has told."""
    try:
        with about("a file"):
            raise error
    except DataError as told:
        return str(told)


def _unexpected(error: Exception) -> str:
    first = (str(error).strip().splitlines() or [""])[0][:300]
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "allocate memory" in str(error):
        return f"out of memory: {first or 'a smaller size, batch or resolution may fit'}"
    return f"internal error: {type(error).__name__}: {first}; run again with {DEBUG} and report it"
