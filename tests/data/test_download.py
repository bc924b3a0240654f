"""Downloads from a real server on this machine, which breaks off, redirects, lies, or is not there."""

import hashlib
import http.server
import json
import socket
import threading

import numpy as np
import pytest
from huggingface_hub import constants

from data.download import download
from data.openwebtext2 import ARCHIVE
from errors import Failure
from tests.data.test_openwebtext2 import run

CONTENT = np.random.default_rng(0).bytes(3_000_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(http.server.BaseHTTPRequestHandler):
    """/file: with ranges. /short: breaks off after a million bytes. /whole: without ranges.

    /hub: redirects to /short and names the checksum, as the hub does; /good: to
    /file; /lies: another checksum. /busy: 429 once, then the file.
    """

    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        self.server.asked.append((self.command, self.path, self.headers.get("Range")))
        if self.path in ("/hub", "/good", "/lies"):
            self.send_response(302)
            store = f"http://localhost:{self.server.server_port}"  # another host, as the hub's
            self.send_header("Location", f"{store}/short" if self.path == "/hub" else f"{store}/file")
            self.send_header("X-Linked-Etag", f'"{"0" * 64 if self.path == "/lies" else SHA256}"')
            self.send_header("X-Linked-Size", str(len(CONTENT)))
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif self.path == "/busy" and self.command == "GET" and not self.server.codes:
            self.server.codes.append(429)
            self.send_error(429)
        elif self.path in ("/file", "/short", "/whole", "/busy"):
            self.send_file()
        else:
            self.send_error(404)

    def send_file(self):
        start, wanted = 0, self.headers.get("Range")
        if wanted and self.path != "/whole":
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if start >= len(CONTENT):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(CONTENT)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(CONTENT) - start))
        self.end_headers()
        if self.command == "HEAD":
            return
        stop = start + 1_000_000 if self.path == "/short" else len(CONTENT)
        self.wfile.write(CONTENT[start:stop])
        if stop < len(CONTENT):
            self.close_connection = True


@pytest.fixture
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        server.asked, server.codes = [], []
        server.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def fetch(server, tmp_path, caplog, monkeypatch):
    """Download a file of the server; returns the log messages."""

    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 100_000)  # bytes that a broken request may lose

    def run(what, **settings):
        caplog.clear()
        caplog.set_level("INFO")
        path = tmp_path / "file.tar"
        download(f"{server.url}/{what}", path, by_hand="by hand: carry it", **settings)
        assert path.read_bytes() == CONTENT
        assert not path.with_name("file.tar.partial").exists()
        return caplog.messages

    return run


def gets(server):
    """The files that were asked for, with their ranges."""
    return [(path, wanted) for method, path, wanted in server.asked if method == "GET"]


def test_a_complete_download(server, tmp_path, fetch):
    said = fetch("file")
    assert any(SHA256 in line for line in said)
    about = json.loads((tmp_path / "file.tar.json").read_text())
    assert (about["bytes"], about["sha256"], about["checked"]) == (len(CONTENT), SHA256, False)
    asked = len(server.asked)
    assert "is there already" in fetch("file")[0]
    assert len(server.asked) == asked


def test_a_download_that_breaks_off_is_resumed(server, tmp_path, fetch):
    """As the hub answers: a redirect that names the checksum, then a store that ends early, twice."""
    fetch("hub")
    ranges = [wanted for path, wanted in gets(server) if path == "/short"]
    assert ranges == [None, "bytes=1000000-", "bytes=2000000-"]
    assert json.loads((tmp_path / "file.tar.json").read_text())["checked"]


def test_a_download_that_another_process_began_is_resumed(server, tmp_path, fetch):
    (tmp_path / "file.tar.partial").write_bytes(CONTENT[:1234])
    fetch("file")
    assert gets(server) == [("/file", "bytes=1234-")]


@pytest.mark.parametrize("have", [CONTENT, CONTENT + b"of another file"])
def test_nothing_is_left_to_fetch_or_everything(tmp_path, fetch, have):
    (tmp_path / "file.tar.partial").write_bytes(have)
    fetch("file")


def test_a_server_without_ranges_begins_anew(tmp_path, fetch):
    (tmp_path / "file.tar.partial").write_bytes(b"something else")
    fetch("whole")


def test_a_busy_server_is_asked_again(server, fetch):
    fetch("busy")
    assert [code for code in server.codes if code == 429]


@pytest.mark.parametrize(("what", "settings"), [("lies", {}), ("file", {"sha256": "1" * 64})])
def test_a_wrong_checksum_is_refused_and_nothing_is_left(tmp_path, fetch, what, settings):
    with pytest.raises(Failure, match=rf"the checksum of the download is {SHA256[:16]}"):
        fetch(what, **settings)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_not_there(fetch):
    with pytest.raises(Failure, match=r"cannot download .*404.*; by hand: carry it"):
        fetch("elsewhere")


@pytest.mark.process
def test_without_network_a_sentence_at_once(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/{ARCHIVE}"  # nobody listens there
        done = run("download", "--data_dir", tmp_path, "--url", url, code=1)
    assert "cannot download" in done.stderr and "wget -c" in done.stderr and ARCHIVE in done.stderr


@pytest.mark.process
def test_the_command(server, tmp_path):
    done = run("download", "--data_dir", tmp_path, "--url", f"{server.url}/good", "--sha256", SHA256)
    assert "is complete" in done.stdout
    assert (tmp_path / "openwebtext2" / ARCHIVE).read_bytes() == CONTENT


def test_a_folder_that_cannot_be_written(server, tmp_path):
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(Failure, match="cannot write"):
        download(f"{server.url}/file", tmp_path / "taken" / "file.tar", by_hand="by hand")
