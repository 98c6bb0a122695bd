"""Tables in a document that a command fills: they stand between <!-- NAME --> and <!-- /NAME -->."""

from pathlib import Path

from training.files import write_text


def fill(document: Path, name: str, table: str) -> None:
    """Put `table` in the place of what stands between the marks of `name`.

    Raises:
        OSError: the document cannot be read or written.
        ValueError: it does not have both marks once, in this order.
    """
    first, last = f"<!-- {name} -->", f"<!-- /{name} -->"
    try:
        before, rest = document.read_text(encoding="utf-8").split(first)
        _, after = rest.split(last)
    except ValueError as error:
        raise ValueError(f"{document} must hold {first} and then {last}, each once") from error
    write_text(document, f"{before}{first}\n{table}\n{last}{after}")
