"""Tables in CSV, from strangers: bounded before anything is read, never a pipe, and strict.

A quote that is opened and not closed would take the rest of a table into one field; a table with one is refused.
"""

import csv
import io
from pathlib import Path

from lensborn.photo import UnreadableError, open_regular

MAX_BYTES = 2**30  # of a table: several million rows, which take a few times as much memory


class RowsError(ValueError):
    """A file that is no table; the message says the reason and the remedy."""


def read_rows(path: Path, max_bytes: int = MAX_BYTES) -> tuple[list[str], list[dict[str, str]]]:
    """The columns of a table in CSV (UTF-8, with or without a mark of its byte order) and its rows.

    As csv.DictReader has it, a row with too few fields has None for the others, one with too many the key None.
    Raises RowsError where the file cannot be read, is no plain file, is too large, or is no such table.
    """
    try:
        with open_regular(path, max_bytes) as file:
            reader = csv.DictReader(io.TextIOWrapper(file, "utf-8-sig", newline=""), strict=True)
            try:
                return list(reader.fieldnames or ()), list(reader)
            except csv.Error as error:
                raise RowsError(
                    f"after line {reader.line_num}: {error}: mend its quotes, or shorten it"
                ) from error
    except UnicodeDecodeError as error:
        raise RowsError(f"not in UTF-8 ({error.reason}): save it as CSV in UTF-8") from error
    except (UnreadableError, OSError) as error:
        raise RowsError(str(error)) from error
