"""Downloads from a server on the loopback: whole ones, refused ones, and ones that break off."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from distrec.errors import UserError
from distrec.prepare.download import download
from distrec.prepare.movielens import movielens
from distrec.prepare.movielens_source import EDITIONS, Edition

CONTENT = bytes(range(256)) * 1000


class Handler(BaseHTTPRequestHandler):
    requests: list[str]

    def do_GET(self):
        self.requests.append(self.path)
        if self.path == "/missing.zip":
            self.send_error(404)
            return
        self.send_response(200)
        if self.path != "/unsized.zip":
            self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        self.wfile.write(CONTENT[:100_000] if self.path == "/truncated.zip" else CONTENT)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    handler = type("Counting", (Handler,), {"requests": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        httpd.url = f"http://127.0.0.1:{httpd.server_port}"
        httpd.requests = handler.requests
        yield httpd
        httpd.shutdown()
        thread.join()


def test_a_file_arrives_whole_with_progress(server, tmp_path):
    calls = []
    download(f"{server.url}/whole.zip", tmp_path / "new" / "whole.zip", lambda *call: calls.append(call))
    assert (tmp_path / "new" / "whole.zip").read_bytes() == CONTENT
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["whole.zip"]
    assert calls[-1] == (len(CONTENT), len(CONTENT))
    assert len(calls) > 1


def test_a_server_need_not_say_how_much_it_sends(server, tmp_path):
    calls = []
    download(f"{server.url}/unsized.zip", tmp_path / "file", lambda *call: calls.append(call))
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert calls[-1] == (len(CONTENT), 0)


@pytest.mark.parametrize(
    ("path", "message"), [("missing.zip", "404"), ("truncated.zip", "ended after 100,000 of 256,000 bytes")]
)
def test_a_failed_download_names_its_address_and_leaves_nothing(server, tmp_path, path, message):
    with pytest.raises(UserError, match=rf"cannot download {server.url}/{path} .*{message}.*--source"):
        download(f"{server.url}/{path}", tmp_path / "file")
    assert not list(tmp_path.iterdir())


def test_nobody_listens(tmp_path, server):
    server.shutdown()
    server.server_close()
    with pytest.raises(UserError, match=r"cannot download .*refused"):
        download(f"{server.url}/whole.zip", tmp_path / "file")


def test_movielens_fetches_once_keeps_the_zip_and_checks_it(server, tmp_path, monkeypatch):
    edition = Edition("m", f"{server.url}/whole.zip", "ratings.dat", "0" * 64, "users.dat", "movies.dat")
    monkeypatch.setitem(EDITIONS, "m", edition)
    calls = []
    for _ in range(2):
        with pytest.raises(UserError, match=r"whole\.zip cannot be read: .*; delete .*whole\.zip and run again"):
            movielens("m", tmp_path, download_progress=lambda *call: calls.append(call))
    assert server.requests == ["/whole.zip"]
    assert calls[-1] == (len(CONTENT), len(CONTENT))
    assert [p.name for p in tmp_path.iterdir()] == ["whole.zip"]


def test_a_folder_in_use_is_refused_before_anything_is_fetched(server, tmp_path, monkeypatch):
    edition = Edition("m", f"{server.url}/whole.zip", "ratings.dat", "0" * 64, "users.dat", "movies.dat")
    monkeypatch.setitem(EDITIONS, "m", edition)
    (tmp_path / "ctr").mkdir()
    (tmp_path / "ctr" / "mine").write_text("")
    with pytest.raises(UserError, match="--overwrite"):
        movielens("m", tmp_path)
    assert server.requests == []
