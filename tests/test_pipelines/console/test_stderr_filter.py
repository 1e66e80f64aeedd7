"""Standard error without one line: the file descriptor itself, as C++ code writes to it."""

import subprocess
import sys

import pytest

from pipelines.console.stderr_filter import ACTOR_POOL_NOTE, without_actor_pool_note

NOTE = ACTOR_POOL_NOTE.decode()


def stderr_of(body: str) -> str:
    """What a new process writes to standard error."""
    program = (
        "import os, sys\n"
        "from pipelines.console.stderr_filter import without_actor_pool_note\n" + body
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    return done.stderr


def test_the_note_is_dropped_and_all_else_stays_in_order() -> None:
    written = stderr_of(
        "os.write(2, b'before\\n')\n"
        "with without_actor_pool_note():\n"
        f"    os.write(2, b'first\\nActor {NOTE}. If\\nsecond ')\n"
        "    print('third', file=sys.stderr)\n"
        "    os.write(2, b'no end of line')\n"
        "os.write(2, b'\\nafter\\n')\n"
    )
    assert written == "before\nfirst\nsecond third\nno end of line\nafter\n"


def test_after_the_block_the_note_is_shown_again() -> None:
    written = stderr_of(
        "with without_actor_pool_note():\n"
        f"    os.write(2, b'{NOTE}\\n')\n"
        f"os.write(2, b'again {NOTE}\\n')\n"
    )
    assert written == f"again {NOTE}\n"


def test_an_exception_passes() -> None:
    with pytest.raises(KeyboardInterrupt), without_actor_pool_note():
        raise KeyboardInterrupt


def test_a_traceback_inside_is_complete() -> None:
    written = stderr_of("with without_actor_pool_note():\n    raise ValueError('the reason')\n")
    assert written.endswith("ValueError: the reason\n")
