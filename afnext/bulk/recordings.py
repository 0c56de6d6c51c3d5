"""Which files of a folder are recordings."""

from __future__ import annotations

import os
from pathlib import Path

from afnext.errors import AfnextError

# Formats that libsndfile or PyAV reads. By name, since opening ten thousand files to find out is slow.
SUFFIXES = frozenset((
    ".wav", ".flac", ".mp3", ".ogg", ".oga", ".opus", ".aif", ".aiff", ".aifc", ".au", ".snd", ".caf",
    ".w64", ".rf64", ".m4a", ".m4b", ".aac", ".ac3", ".amr", ".wma", ".mka",
    ".mp4", ".m4v", ".mkv", ".mov", ".webm", ".avi", ".3gp",
))  # fmt: skip


def find_recordings(folder: str | Path) -> list[str]:
    """Recordings below a folder, as sorted paths relative to it with ``/`` between their parts.

    A recording is a regular file, or a link to one, with the suffix of an audio or video format; a pipe would
    be waited for without end. Hidden files and folders are left out; links to folders are not followed.

    Raises:
        AfnextError: the folder is missing, cannot be read, or holds no recording.
    """
    root = Path(folder)
    if not root.is_dir():
        raise AfnextError(f"{root}: {'is no folder' if root.exists() else 'no such folder'}")
    found: list[str] = []
    for parent, folders, files in os.walk(root, onerror=_refuse):
        folders[:] = [f for f in folders if not f.startswith(".")]
        found += [
            Path(parent, file).relative_to(root).as_posix()
            for file in files
            if not file.startswith(".")
            and Path(file).suffix.lower() in SUFFIXES
            # What is gone by now, or leads nowhere, is listed: its own line says so.
            and (not (path := Path(parent, file)).exists() or path.is_file())
        ]
    if not found:
        raise AfnextError(f"{root}: holds no recording (.wav, .flac, .mp3, ...)")
    return sorted(found)


def _refuse(error: OSError) -> None:
    raise AfnextError(f"{error.filename}: cannot be read ({error.strerror})")
