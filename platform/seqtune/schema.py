"""What is read from a file of ours is checked before it is believed."""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter, ValidationError

from seqtune.errors import DamagedError

FORMAT = 3  # of the files of a study


def checked(place: str, kind: Any, content: Any, number: int = FORMAT) -> Any:
    """Returns what a file of format ``number`` holds, as ``kind``; bytes are JSON.

    Raises:
        DamagedError: it is torn, of another kind or of another format. The sentence names the file
            and the field.
    """
    adapter = TypeAdapter(kind)
    read = adapter.validate_json if isinstance(content, bytes) else adapter.validate_python
    try:
        found = read(content, strict=True)
    except (ValidationError, RecursionError) as error:
        what = "the whole: it is nested too deeply"
        if isinstance(error, ValidationError):
            first = error.errors(include_url=False, include_input=False)[0]
            what = f"{'.'.join(map(str, first['loc'])) or 'the whole'}: {first['msg'].lower()}"
        raise DamagedError(f"{place} is damaged: {what[:120]}") from None
    written = found["format"] if isinstance(found, dict) else found.format
    if written != number:
        raise DamagedError(
            f"{place} has format {written}, and this seqtune reads {number}; use the one that "
            "wrote it"
        )
    return found
