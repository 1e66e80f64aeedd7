"""One known line of Ray kept out of standard error.

For each pool of actors, Ray Data 2.60 makes Ray's C++ core log an error to the driver's standard
error: actors that can restart have constructor arguments in the object store
(https://github.com/ray-project/ray/issues/53727). The arguments live as long as the job, so the
restart works, as the tests that kill actors show. ``RAY_BACKEND_LOG_LEVEL`` would hide this line
only together with all other errors, of all of Ray's processes.
"""

import contextlib
import os
import sys
import threading
from collections.abc import Iterator

ACTOR_POOL_NOTE = b"has constructor arguments in the object store and max_restarts > 0"

_STDERR = 2
_JOIN_TIMEOUT_S = 1.0


@contextlib.contextmanager
def without_actor_pool_note(note: bytes = ACTOR_POOL_NOTE) -> Iterator[None]:
    """Inside, lines that contain the note are dropped from the process's standard error.

    Other lines are passed on, in order, when they are complete. The file descriptor itself is
    redirected, since the line is not written by Python.
    """
    sys.stderr.flush()
    original = os.dup(_STDERR)
    reading, writing = os.pipe()
    os.dup2(writing, _STDERR)
    os.close(writing)

    def pass_on() -> None:
        with open(reading, "rb") as lines, open(original, "wb", buffering=0) as target:
            for line in lines:
                if note not in line:
                    target.write(line)

    thread = threading.Thread(target=pass_on, name="stderr-filter", daemon=True)
    restored = os.dup(original)
    thread.start()
    try:
        yield
    finally:
        sys.stderr.flush()
        # This closes the pipe's last writing end, so that the thread ends.
        os.dup2(restored, _STDERR)
        os.close(restored)
        thread.join(_JOIN_TIMEOUT_S)
