"""Training sets that lie elsewhere: read by parts from a server, the index fetched once."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import numpy as np
import pytest
from aiohttp import ServerDisconnectedError

from afnext.errors import AfnextError
from afnext.training.archive import archive
from afnext.training.data.shards import Recording, Shard, write_shard
from afnext.training.data.sources import Source
from afnext.training.data.store import File, join

from .test_archive import given, said  # noqa: F401

pytestmark = pytest.mark.slow


class Ranges(SimpleHTTPRequestHandler):
    """Files by ranges of bytes, as object stores and real servers give them."""

    def do_GET(self) -> None:
        self.answer(body=True)

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def answer(self, *, body: bool) -> None:
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            self.send_error(404)
            return
        content, asked = path.read_bytes(), self.headers.get("Range")
        size = len(content)
        self.send_response(206 if asked else 200)
        if asked:
            first, last = asked.removeprefix("bytes=").split("-")
            content = content[int(first) : int(last) + 1]
            self.send_header(
                "Content-Range", f"bytes {first}-{int(first) + len(content) - 1}/{size}"
            )
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("AFNEXT_CACHE", str(tmp_path / "cache"))

    def handler(*arguments: object) -> Ranges:
        return Ranges(*arguments, directory=str(tmp_path))  # type: ignore[arg-type]

    http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{http.server_port}"
    http.shutdown()
    http.server_close()
    thread.join()


def test_a_set_on_a_server_is_the_set_on_disk(given: Path, tmp_path: Path, server: str) -> None:  # noqa: F811
    archive([given], tmp_path / "set", shard_seconds=3)
    expected = said(Source(tmp_path / "set"))
    assert said(Source(f"{server}/set")) == expected


def test_in_an_object_store(given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.setenv("AFNEXT_CACHE", str(tmp_path / "cache"))
    archive([given], tmp_path / "set")
    store = fsspec.filesystem("memory")
    store.put(str(tmp_path / "set"), "/bucket/set", recursive=True)
    assert said(Source("memory://bucket/set")) == said(Source(tmp_path / "set"))


def test_a_broken_shard_on_a_server(tmp_path: Path, server: str) -> None:
    write_shard(tmp_path / "a-0.tar", [Recording("0", np.zeros(100, np.float32), 16_000)])
    assert Shard(f"{server}/a-0.tar").keys == ["0"]
    content = (tmp_path / "a-0.tar").read_bytes()
    (tmp_path / "a-0.tar").write_bytes(content[:-100])
    with pytest.raises(AfnextError, match="is broken"):
        Shard(f"{server}/a-0.tar")


def test_what_is_not_there(tmp_path: Path, server: str) -> None:
    for where in (f"{server}/none", "nowhere://x/none", tmp_path / "none"):
        with pytest.raises(AfnextError, match=r"cannot open .*none"):
            File(where)
    with pytest.raises(AfnextError, match="cannot fetch"):
        Source(f"{server}/none")


def test_parts(tmp_path: Path, server: str) -> None:
    (tmp_path / "file").write_bytes(bytes(range(100)))
    for where in (join(tmp_path, "file"), join(f"{server}/", "file")):
        file = File(where)
        assert file.size == 100
        assert file.read(10, 5) == bytes(range(10, 15))
        assert file.read() == bytes(range(100))
        file.close()


def test_a_process_forked_later_reads_too(tmp_path: Path, server: str) -> None:
    """As those do that make batches, of shards that were opened before."""
    (tmp_path / "file").write_bytes(bytes(range(100)))
    file = File(f"{server}/file")
    assert file.read(0, 2) == b"\0\1"
    if not (child := os.fork()):
        try:
            os._exit(int(file.read(10, 5) != bytes(range(10, 15))))
        finally:
            os._exit(2)
    assert os.waitpid(child, 0)[1] == 0
    assert file.read(98) == b"bc"


def test_what_a_client_calls_it_is_told(
    tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Errors of aiohttp are not the system's."""
    (tmp_path / "file").touch()
    file = File(f"{server}/file")

    def gone(*_: object, **__: object) -> None:
        raise ServerDisconnectedError

    monkeypatch.setattr(file._system, "cat_file", gone)
    with pytest.raises(AfnextError, match=r"cannot read .*/file: Server disconnected"):
        file.read(0, 1)
