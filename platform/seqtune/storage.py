"""A folder by URI: local path, file://, s3:// or gs://."""

from __future__ import annotations

import functools
import itertools
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seqtune.errors import UserError
from seqtune.room import when_there_is_room


@dataclass(frozen=True)
class Folder:
    """A folder that may be remote. Writing is atomic: a reader sees the old file or the new one.

    A URI may end with what its store is told: ``s3://bucket/path?endpoint_override=HOST:PORT``.
    Pickles as its URI alone, so that it travels to workers.
    """

    uri: str

    @classmethod
    def at(cls, uri: str | Path) -> Folder:
        """Opens a folder; a plain path becomes absolute, since workers run elsewhere."""
        text = str(uri)
        if "://" not in text:
            return cls(str(Path(text).expanduser().resolve()))
        path, told = _parts(text)
        return cls(path.rstrip("/") + told)

    def __str__(self) -> str:
        return self.uri

    def __truediv__(self, name: str) -> Folder:
        path, told = _parts(self.uri)
        return Folder(f"{path}/{name}{told}")

    @property
    def name(self) -> str:
        """Its last part."""
        return _parts(self.uri)[0].rpartition("/")[2]

    @property
    def parent(self) -> Folder:
        """The folder that it is in."""
        path, told = _parts(self.uri)
        return Folder(path.rpartition("/")[0] + told)

    def _open(self) -> tuple[Any, str]:
        from pyarrow import fs

        if self.local is not None:
            return fs.LocalFileSystem(), str(self.local)
        path, told = _parts(self.uri)
        scheme, _, place = path.partition("://")
        bucket, _, rest = place.partition("/")
        filesystem, root = _filesystem(f"{scheme}://{bucket}{told}")
        return filesystem, f"{root}/{rest}" if rest else root

    @property
    def local(self) -> Path | None:
        """The folder as a path, or None where it is remote."""
        if "://" not in self.uri:
            return Path(self.uri)
        return Path(self.uri.removeprefix("file://")) if self.uri.startswith("file://") else None

    def write(self, name: str, data: bytes) -> None:
        """Writes a file, making the folder where it is missing; waits while the disk is full."""
        filesystem, path = self._open()
        if self.local is None:  # object stores publish a file only when it is complete
            with filesystem.open_output_stream(f"{path}/{name}") as out:
                out.write(data)
            return

        def write() -> None:
            filesystem.create_dir(path, recursive=True)
            with filesystem.open_output_stream(f"{path}/.{name}.part") as out:
                out.write(data)
            filesystem.move(f"{path}/.{name}.part", f"{path}/{name}")

        when_there_is_room(write)

    def read(self, name: str) -> bytes | None:
        """Returns the content of a file, or None where there is none."""
        filesystem, path = self._open()
        try:
            with filesystem.open_input_stream(f"{path}/{name}") as source:
                content: bytes = source.read()
                return content
        except FileNotFoundError:
            return None

    def names(self) -> list[str]:
        """Returns the names of the files and folders in it, sorted; empty where it is missing."""
        from pyarrow import fs

        filesystem, path = self._open()
        found = filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True))
        return sorted(info.base_name for info in found if not info.base_name.startswith("."))

    def remove(self, name: str) -> None:
        """Removes a file of it, where it is there."""
        filesystem, path = self._open()
        with suppress(FileNotFoundError):
            filesystem.delete_file(f"{path}/{name}")

    def set_aside(self) -> Folder:
        """Moves the folder out of the way, beside itself, and returns where it is then."""
        taken, number = set(self.parent.names()), 1
        while f"{self.name}.aside-{number}" in taken:
            number += 1
        aside = self.parent / f"{self.name}.aside-{number}"
        if self.local is not None and aside.local is not None:
            self.local.rename(aside.local)
            return aside
        for one in self.names():  # an object store moves no folders
            if (content := self.read(one)) is not None:
                aside.write(one, content)
        self.delete()
        return aside

    def prove(self, option: str) -> None:
        """Writes a small file and removes it, with the folders that were made for it.

        Raises:
            UserError: nothing can be written there.
        """
        made = []
        if self.local is not None:
            with refusing(f"{option} {self.uri}"):
                parents = (self.local, *self.local.parents)
                made = list(itertools.takewhile(lambda one: not one.exists(), parents))
        with refusing(f"{option} {self.uri}: nothing can be written there"):
            try:
                self.write("probe", b"1")
                self.remove("probe")
            finally:
                for one in made:
                    with suppress(OSError):
                        one.rmdir()

    def delete(self, last: str = "") -> None:
        """Removes the folder and what is in it, where it is there.

        The file ``last`` goes after all others: who is ended in the midst leaves a folder that
        still says what it is, and can be deleted again.
        """
        from pyarrow import fs

        filesystem, path = self._open()
        with suppress(FileNotFoundError):
            if last:
                found = filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True))
                for info in found:
                    if info.type == fs.FileType.Directory:
                        filesystem.delete_dir(info.path)
                    elif info.base_name != last:
                        filesystem.delete_file(info.path)
            filesystem.delete_dir(path)


def _parts(uri: str) -> tuple[str, str]:
    """Returns the path, and what the store is told; a plain path may have question marks."""
    path, mark, told = uri.partition("?") if "://" in uri else (uri, "", "")
    return path, mark + told


@functools.lru_cache(maxsize=8)
def _filesystem(root: str) -> tuple[Any, str]:
    """Opens a store once for all that is in it, and returns the path of its root."""
    from pyarrow import fs

    filesystem, path = fs.FileSystem.from_uri(root)
    return filesystem, path


SCHEMES = ("file", "s3", "gs", "gcs", "hdfs", "viewfs", "abfs", "abfss")  # that pyarrow opens


def check_place(option: str, given: str) -> None:
    """Raises where a folder cannot be what ``option`` names, by its form and what is on disk."""
    scheme, separator, rest = given.partition("://")
    if not given.strip():
        raise UserError(f"{option}: is empty; name a folder")
    if separator:
        if scheme not in SCHEMES:
            known = "s3://BUCKET/PATH, gs://BUCKET/PATH or a path"
            raise UserError(f"{option} {given}: {scheme!r} is no place for files; write {known}")
        if not rest.strip("/") or (scheme == "file") != rest.startswith("/"):
            missing = "an absolute path" if scheme == "file" else "the name of a bucket"
            raise UserError(f"{option} {given}: {missing} must follow {scheme}://")
        if scheme != "file":
            return
    with refusing(f"{option} {given}"):
        path = Path(rest if separator else given).expanduser().absolute()
        above = next(one for one in (path, *path.parents) if one.exists())
        if not above.is_dir():
            raise UserError(f"{option} {given}: {above} is no folder; name another place")


@contextmanager
def refusing(place: str) -> Iterator[None]:
    """Turns what goes wrong with a file or a folder into a sentence that begins with ``place``.

    Raises:
        UserError: nothing else leaves the block for a fault of the place.
    """
    try:
        yield
    except (OSError, EOFError, RuntimeError, ValueError) as error:  # Arrow's are among them
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise UserError(f"{place}: {reason or type(error).__name__}") from None


def make_whole(path: Path, make: Callable[[Path], object]) -> None:
    """Makes a file that is there whole or not at all, whenever this process is killed.

    ``make`` writes it under the name that it gets. One that is there stays as it is.
    """
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        make(part)
        with suppress(FileExistsError):  # somebody was faster
            path.hardlink_to(part)
    finally:
        part.unlink(missing_ok=True)


def own_scratch(below: str | None = None) -> Path:
    """Returns a folder of this user that nobody else may enter, in the system's temporary one.

    ``below`` names another folder for it.

    Raises:
        UserError: somebody else made a folder of that name.
    """
    path = Path(below or tempfile.gettempdir()) / f"seqtune-{os.getuid()}"
    path.mkdir(mode=0o700, exist_ok=True)
    found = path.lstat()
    if found.st_uid != os.getuid() or found.st_mode & 0o077 or path.is_symlink():
        raise UserError(
            f"{path}: belongs to somebody else, or others may enter it; name another temporary "
            "folder in TMPDIR"
        )
    return path
