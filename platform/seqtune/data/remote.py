"""Files that lie elsewhere, kept in a cache on this machine."""

from __future__ import annotations

import hashlib
import os
import shutil
import urllib.error
import urllib.request
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from seqtune.errors import UserError

CACHE = "SEQTUNE_CACHE"  # a folder, in place of the usual one
WEB, STORES = ("http", "https"), ("s3", "gs", "gcs", "abfs", "abfss", "hdfs")
PATIENCE = 60.0  # seconds without a byte
PIECE = 2**20


def cache() -> Path:
    """Returns the folder in which files from elsewhere are kept."""
    return Path(os.environ.get(CACHE) or Path.home() / ".cache" / "seqtune").expanduser()


def is_remote(source: str) -> bool:
    """Says whether a source is the address of a file elsewhere."""
    return "://" in source


def fetch(address: str, checksum: str = "") -> Path:
    """Returns a file's copy in the cache, downloaded on first use.

    ``checksum`` is ``sha256:...`` or ``md5:...``; a copy is kept only where it is right and whole.

    Raises:
        UserError: it cannot be downloaded, or is not what was expected.
    """
    parts = urlsplit(address)
    if parts.scheme not in (*WEB, *STORES):
        raise UserError(
            f"--data {address}: {parts.scheme!r} is no place for files; write https://, s3:// or "
            "gs://, or a path"
        )
    name = Path(unquote(parts.path)).name
    if not name:
        raise UserError(f"--data {address}: names no file")
    folder = cache() / hashlib.sha256(address.encode()).hexdigest()[:16]
    kept = folder / name
    if kept.exists():
        return kept
    part = folder / f".{name}.{os.getpid()}.part"
    kind, _, wanted = checksum.partition(":")
    digest = hashlib.new(kind or "sha256")
    try:
        with _opened(address, parts.scheme) as source:
            folder.mkdir(parents=True, exist_ok=True)
            with part.open("wb") as file:
                for piece in iter(lambda: source.read(PIECE), b""):
                    digest.update(piece)
                    file.write(piece)
            whole = getattr(source, "length", None) in (None, 0)  # bytes that were still to come
        if not whole:
            raise UserError(
                f"--data {address}: the connection ended before the file did; try again"
            )
        if wanted and digest.hexdigest() != wanted:
            raise UserError(
                f"--data {address}: holds another file than is known ({kind} "
                f"{digest.hexdigest()[:12]}..., not {wanted[:12]}...)"
            )
        part.replace(kept)
    except (OSError, urllib.error.URLError, ValueError) as error:
        why = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
        raise UserError(f"--data {address}: cannot be downloaded ({why})") from None
    finally:
        part.unlink(missing_ok=True)
    return kept


def _opened(address: str, scheme: str) -> AbstractContextManager[Any]:
    if scheme in WEB:
        asked = urllib.request.Request(address, headers={"User-Agent": "seqtune"})
        answer: Any = urllib.request.urlopen(asked, timeout=PATIENCE)
        return answer  # type: ignore[no-any-return]
    from pyarrow import fs

    head, mark, told = address.partition("?")
    _, _, place = head.partition("://")
    bucket, _, rest = place.partition("/")
    filesystem, root = fs.FileSystem.from_uri(f"{scheme}://{bucket}{mark}{told}")
    stream: Any = filesystem.open_input_stream(f"{root}/{rest}", compression=None)
    return stream  # type: ignore[no-any-return]


def unpacked(archive: Path, member: str) -> Path:
    """Returns a member of a zip file, unpacked beside it on first use."""
    import zipfile

    to = archive.parent / Path(member).name
    if not to.exists():
        part = to.with_name(f".{to.name}.{os.getpid()}.part")
        try:
            with (
                zipfile.ZipFile(archive) as file,
                file.open(member) as source,
                part.open("wb") as target,
            ):
                shutil.copyfileobj(source, target, PIECE)
            part.replace(to)
        except (zipfile.BadZipFile, KeyError, OSError) as error:
            raise UserError(f"{archive}: has no {member} that can be read ({error})") from None
        finally:
            part.unlink(missing_ok=True)
    return to
