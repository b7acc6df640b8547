"""Atomic writes: a file is whole or absent, whatever happens in between."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import RunError, UserError

__all__ = ["InUseError", "locked", "write_bytes", "write_json", "write_text"]


class InUseError(UserError):
    """Another process holds the folder."""


def write_bytes(path: Path, data: bytes) -> None:
    """Writes to a temporary file in the same folder, syncs it and renames it.

    Raises:
        UserError: no permission to write there.
        RunError: the disk is full or fails.
    """
    try:
        handle, temporary = tempfile.mkstemp(
            prefix=f".{path.name}.", suffix=".tmp", dir=path.parent
        )
    except OSError as error:
        raise _explain(error, path) from error
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        if isinstance(error, OSError):
            raise _explain(error, path) from error
        raise


def write_text(path: Path, text: str) -> None:
    """`write_bytes` of UTF-8 text."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """`write_bytes` of indented JSON; non-finite numbers are refused."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


@contextmanager
def locked(folder: Path, name: str = ".lock", wait: bool = False) -> Iterator[None]:
    """Keeps a second process from writing to a folder; the lock dies with its process.

    Args:
        folder: the folder.
        name: of the lock's file, where there are several in a folder.
        wait: until nobody else holds it.

    Raises:
        InUseError: another process holds it.
        UserError: the folder cannot be written to.
    """
    try:
        import fcntl
    except ImportError:  # Windows has no flock; there the user must not start two
        yield
        return
    try:
        handle = os.open(folder / name, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}") from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError as error:
            raise InUseError(f"{folder} is in use by another flowdiff process") from error
        yield
    finally:
        os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    """Makes the rename itself durable, where the platform can sync a folder."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)


def _explain(error: OSError, path: Path) -> UserError | RunError:
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return UserError(f"no permission to write {path}; choose another folder with --out")
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return RunError(f"the disk is full, {path} was not written; free some space and --resume")
    return RunError(f"cannot write {path}: {error.strerror or error}")
