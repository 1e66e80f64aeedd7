"""A pseudo-terminal in which a Python program runs, and what it leaves on the screen."""

import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self

TIMEOUT_S = 60.0

_TOKEN = re.compile(r"\x1b\[K|.", re.DOTALL)


def screen(output: bytes, columns: int) -> list[str]:
    """The lines on a screen of any height, without the empty line in which the cursor may be.

    The terminal knows the start of the line, the next line and the erasure of the rest of a line.
    The escape character of any other control sequence stays in the text.
    """
    lines, row, column = [""], 0, 0
    for token in _TOKEN.findall(output.decode("utf-8", "replace")):
        if token == "\x1b[K":
            lines[row] = lines[row][:column]
        elif token == "\r":
            column = 0
        else:
            if token == "\n" or column == columns:
                row, column = row + 1, (column if token == "\n" else 0)
                lines += [""] * (row + 1 - len(lines))
            if token != "\n":
                line = lines[row].ljust(column)
                lines[row] = line[:column] + token + line[column + 1 :]
                column += 1
    return lines if lines[-1] else lines[:-1]


class Terminal:
    """A Python program in a pseudo-terminal; the block's end kills it."""

    def __init__(
        self,
        program: str,
        *,
        columns: int = 80,
        variables: Mapping[str, str] | None = None,
        arguments: Sequence[str] = (),
        stdout: int | None = None,
    ) -> None:
        """Start the program.

        Args:
            program: its text.
            columns: of the terminal.
            variables: added to the environment.
            arguments: of the program.
            stdout: a file descriptor for standard output, instead of the terminal.
        """
        self.columns = columns
        self.output = b""
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        self.process = subprocess.Popen(
            [sys.executable, "-c", program, *arguments],
            stdin=slave,
            stdout=slave if stdout is None else stdout,
            stderr=slave,
            env=os.environ | {"TERM": "xterm", "PYTHONIOENCODING": "utf-8"} | dict(variables or {}),
            # The terminal is the one whose Ctrl-C the program gets.
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(slave)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        while True:
            try:
                self.output += os.read(self._master, 65536)
            except OSError:  # The program has ended.
                return

    def lines(self) -> list[str]:
        """What is on the screen now."""
        return screen(self.output, self.columns)

    def wait_for(self, text: str) -> list[str]:
        """The screen as soon as its last line contains a text."""
        end = time.monotonic() + TIMEOUT_S
        while text not in (self.lines() or [""])[-1]:
            assert time.monotonic() < end, self.lines()
            time.sleep(0.02)
        return self.lines()

    def press(self, key: bytes) -> None:
        """Type something."""
        os.write(self._master, key)

    def end(self) -> int:
        """Wait for the program's end; returns its exit status."""
        status = self.process.wait(TIMEOUT_S)
        self._reader.join(TIMEOUT_S)
        return status

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self._reader.join(TIMEOUT_S)
        os.close(self._master)
