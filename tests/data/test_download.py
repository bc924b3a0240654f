"""Downloads from a real server on this machine, which breaks off, redirects, lies, or is not there."""

import hashlib
import http.server
import json
import socket
import threading

import numpy as np
import pytest

from data.download import download
from data.openwebtext2 import ARCHIVE
from errors import Failure
from tests.data.test_openwebtext2 import run

CONTENT = np.random.default_rng(0).bytes(3_000_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(http.server.BaseHTTPRequestHandler):
    """/file: with ranges. /short: breaks off after a million bytes. /whole: without ranges.

    /hub: redirects to /short and names the checksum, as the hub does; /lies: names another one. /busy: 503
    twice, then the file.
    """

    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_GET(self):
        self.server.asked.append((self.path, self.headers.get("Range")))
        if self.path in ("/hub", "/lies"):
            self.send_response(302)
            self.send_header("Location", "/short" if self.path == "/hub" else "/file")
            self.send_header("X-Linked-Etag", f'"{SHA256 if self.path == "/hub" else "0" * 64}"')
            self.send_header("X-Linked-Size", str(len(CONTENT)))
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif self.path == "/busy" and len(self.server.asked) < 3:
            self.send_error(503)
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
        stop = start + 1_000_000 if self.path == "/short" else len(CONTENT)
        self.wfile.write(CONTENT[start:stop])
        if stop < len(CONTENT):
            self.close_connection = True


@pytest.fixture
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        server.asked = []
        server.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def fetch(server, what, tmp_path, **settings):
    said = []
    url, path = f"{server.url}/{what}", tmp_path / "file.tar"
    download(url, path, by_hand="by hand: carry it", wait=0.01, say=said.append, **settings)
    assert path.read_bytes() == CONTENT
    assert not path.with_name("file.tar.partial").exists()
    return said


def test_a_whole_file(server, tmp_path):
    said = fetch(server, "file", tmp_path)
    assert any(SHA256 in line for line in said)
    about = json.loads((tmp_path / "file.tar.json").read_text())
    assert (about["bytes"], about["sha256"], about["checked"]) == (len(CONTENT), SHA256, False)
    assert "is there already" in fetch(server, "file", tmp_path)[0]
    assert len(server.asked) == 1


def test_what_breaks_off_is_resumed_where_it_broke_off(server, tmp_path):
    """As the hub answers: a redirect that names the checksum, then a store that ends early, twice."""
    said = fetch(server, "hub", tmp_path)
    ranges = [wanted for path, wanted in server.asked if path == "/short"]
    assert ranges == [None, "bytes=1000000-", "bytes=2000000-"]
    assert sum("broken off" in line for line in said) == 2
    assert json.loads((tmp_path / "file.tar.json").read_text())["checked"]


def test_what_another_process_began_is_resumed(server, tmp_path):
    (tmp_path / "file.tar.partial").write_bytes(CONTENT[:1234])
    fetch(server, "file", tmp_path)
    assert server.asked == [("/file", "bytes=1234-")]


@pytest.mark.parametrize("have", [CONTENT, CONTENT + b"of another file"])
def test_nothing_is_left_to_fetch(server, tmp_path, have):
    (tmp_path / "file.tar.partial").write_bytes(have)
    fetch(server, "file", tmp_path)


def test_a_server_without_ranges_begins_anew(server, tmp_path):
    (tmp_path / "file.tar.partial").write_bytes(b"something else")
    fetch(server, "whole", tmp_path)


def test_a_busy_server_is_asked_again(server, tmp_path):
    fetch(server, "busy", tmp_path)
    assert len(server.asked) == 3


def test_a_wrong_checksum_is_refused_and_nothing_is_left_in_its_place(server, tmp_path):
    for what, settings in (("lies", {}), ("file", {"sha256": "1" * 64})):
        with pytest.raises(Failure, match=rf"the checksum of what came is {SHA256[:16]}"):
            fetch(server, what, tmp_path, **settings)
        assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_not_there(server, tmp_path):
    with pytest.raises(Failure, match="the server says 404 Not Found; by hand: carry it"):
        fetch(server, "elsewhere", tmp_path)


@pytest.mark.process
def test_without_network_a_sentence_at_once(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/{ARCHIVE}"  # nobody listens there
        done = run("download", "--data_dir", tmp_path, "--url", url, code=1)
    assert "cannot download" in done.stderr and "wget -c" in done.stderr and ARCHIVE in done.stderr


@pytest.mark.process
def test_the_command(server, tmp_path):
    done = run("download", "--data_dir", tmp_path, "--url", f"{server.url}/hub", "--sha256", SHA256)
    assert "is complete" in done.stdout
    assert (tmp_path / "openwebtext2" / ARCHIVE).read_bytes() == CONTENT


def test_a_folder_that_cannot_be_written(server, tmp_path):
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(Failure, match="cannot write"):
        fetch(server, "file", tmp_path / "taken")
