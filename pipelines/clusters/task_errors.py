"""Errors in Ray Data's tasks and actors, raised in the driver as what they are.

Ray Data wraps an exception of a task in others, in which its class is lost, and prints a traceback.
An exception in an actor's constructor arrives only as text. So tasks and actors return an error
that is no bug as a value of the column ``error``, and the driver raises it. Constructors do nothing
that such an error can come from.
"""

import functools
import pickle
from collections.abc import Callable
from typing import Any, ParamSpec

import pyarrow as pa

from alexnet.errors import UserError, one_line

P = ParamSpec("P")

_ERROR = pa.field("error", pa.binary())


def pack(error: UserError | OSError) -> bytes:
    """An error as a value in a row."""
    return pickle.dumps(error)


def pack_writing_errors(write: Callable[[], object], path: str, kept: str) -> bytes:
    """Write something; a ``UserError`` or ``OSError`` is packed. Empty if there is none.

    Args:
        write: writes it.
        path: of what is written.
        kept: what the same command keeps, in words.
    """
    try:
        write()
    except UserError as error:
        return pack(error)
    except OSError as error:
        message = (
            f"{path}: can't be written ({one_line(error)}); when it can, give the same command "
            f"again: finished {kept} are kept"
        )
        return pack(OSError(message))
    return b""


def raise_packed(packed: bytes | None) -> None:
    """Raise the error that a task has packed, if there is one."""
    if packed:
        raise pickle.loads(packed)


def errors_as_rows(schema: pa.Schema) -> Callable[[Callable[P, pa.Table]], Callable[P, pa.Table]]:
    """A decorator for functions that return tables of a schema.

    Their tables get the column ``error``, in which all values are null. If the function raises a
    ``UserError`` or an ``OSError``, its table is one row with this error and nulls.
    """

    def decorate(function: Callable[P, pa.Table]) -> Callable[P, pa.Table]:
        @functools.wraps(function)
        def with_errors(*arguments: P.args, **options: P.kwargs) -> pa.Table:
            try:
                table = function(*arguments, **options).cast(schema)
            except (UserError, OSError) as error:
                nulls: list[Any] = [pa.nulls(1, kind) for kind in schema.types]
                return pa.table([*nulls, [pack(error)]], schema=schema.append(_ERROR))
            return table.append_column(_ERROR, pa.nulls(len(table), _ERROR.type))

        return with_errors

    return decorate


def raise_errors(table: pa.Table) -> pa.Table:
    """A table of such a function without the column ``error``.

    Raises:
        UserError, OSError: the first error in the table.
    """
    for packed in table["error"].drop_null().to_pylist():
        raise_packed(packed)
    return table.drop_columns("error")
