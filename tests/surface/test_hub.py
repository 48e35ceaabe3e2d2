"""Rules on the Hub: a stub of its server on loopback, and a copy of a repository in a folder."""

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlparse

import pytest
import torch

import mpgraph as mg
from mpgraph.experiments import maker_of
from mpgraph.protocols import Backprop
from mpgraph.serialization.card import card
from mpgraph.serialization.protocol import HUB_CARD, HUB_COPY, HUB_TENSORS, push_protocol

RECORD = {"command": "mpgraph meta-train | tee log", "budget": {"outer_steps": 3}, "reached": {"loss": 0.25}}


class Stub(BaseHTTPRequestHandler):
    """The calls of the Hub's interface that a push and a download make; commits are kept by their names."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, content, status=200, **headers):
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), "Content-Type": "application/json", **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def missing(self, code):
        self.answer({"error": "not there"}, 404, X_Error_Code=code, X_Error_Message="not there")

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        parts = urlparse(self.path).path.strip("/").split("/")
        repos = self.server.repos
        if parts == ["api", "repos", "create"]:
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
            repos.setdefault(name, {})
            self.answer({"url": f"{self.server.address}/{name}", "id": name})
        elif parts == ["api", "validate-yaml"]:  # the head of a card
            self.answer({"errors": [], "warnings": []})
        elif parts[4] == "preupload":
            files = [{**one, "uploadMode": "regular", "shouldIgnore": False} for one in json.loads(body)["files"]]
            self.answer({"files": files})
        else:  # a commit: a line for each file
            lines = [json.loads(line) for line in body.splitlines()]
            files = {one["value"]["path"]: base64.b64decode(one["value"]["content"]) for one in lines[1:]}
            name, commit = "/".join(parts[2:4]), hashlib.sha1(body).hexdigest()
            repos[name][commit] = repos[name]["main"] = {"commit": commit, "files": files}
            url = f"{self.server.address}/{name}/commit/{commit}"
            self.answer({"commitUrl": url, "commitOid": commit, "commitMessage": "", "success": True})

    def do_GET(self):
        owner, name, _, revision, path = urlparse(self.path).path.strip("/").split("/", 4)
        repo = self.server.repos.get(f"{owner}/{name}")
        if repo is None:
            return self.missing("RepoNotFound")
        if revision not in repo:
            return self.missing("RevisionNotFound")
        content = repo[revision]["files"].get(path)
        if content is None:
            return self.missing("EntryNotFound")
        self.server.downloads += self.command == "GET"
        tag = hashlib.sha256(content).hexdigest()
        return self.answer(content, ETag=f'"{tag}"', X_Repo_Commit=repo[revision]["commit"])

    do_HEAD = do_GET


@pytest.fixture
def hub(monkeypatch, tmp_path):
    constants = pytest.importorskip("huggingface_hub.constants", reason="the extra mpgraph[hub] is not installed")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Stub)
    server.daemon_threads = True
    server.repos, server.downloads = {}, 0
    server.address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", server.address)
    monkeypatch.setenv("HF_TOKEN", "hf_of_the_test")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    yield server
    server.shutdown()
    server.server_close()


def test_what_is_pushed_is_read_again(hub):
    rule = Backprop(lr=mg.learnable(0.3))
    address = rule.push("someone/my-rule", RECORD, license="mit")
    files = hub.repos["someone/my-rule"]["main"]["files"]
    assert set(files) == {HUB_TENSORS, HUB_COPY, HUB_CARD}
    assert address == f"hub://someone/my-rule@{hub.repos['someone/my-rule']['main']['commit']}"
    with torch.no_grad():
        rule.optimizer.lr.fill_(0.5)
    rule.push("someone/my-rule", RECORD)
    latest, first = mg.load_protocol("hub://someone/my-rule"), mg.load_protocol(address)
    assert latest.optimizer.lr.item() == 0.5
    assert first.optimizer.lr.item() == pytest.approx(0.3)  # a commit stays what it was
    assert latest.record == RECORD
    assert isinstance(maker_of("hub://someone/my-rule", {}, trained=True)(), Backprop)
    assert hub.downloads == 2  # each commit once


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("hub://someone/nothing", "hub://someone/nothing cannot be read: RepositoryNotFoundError"),
        ("hub://someone/rule@gone", "cannot be read: RevisionNotFoundError"),
        ("hub://someone/empty", "cannot be read: .*EntryNotFoundError"),
        ("hub://someone/damaged", "damaged|not a safetensors|cannot be read"),
        ("hub://someone", "no repository of the Hub; write hub://OWNER/NAME"),
        ("hub://../../etc/passwd", "no repository of the Hub"),
    ],
)
def test_what_cannot_be_read_is_told(hub, address, words):
    commit = {"commit": "c" * 40, "files": {}}
    hub.repos |= {"someone/rule": {}, "someone/empty": {"main": commit}}
    hub.repos["someone/damaged"] = {"main": {"commit": "d" * 40, "files": {HUB_TENSORS: b"\x80\x04cos\nsystem\n"}}}
    with pytest.raises(mg.FileError, match=words):
        mg.load_protocol(address)


def test_a_copy_of_a_repository_is_a_folder_of_a_rule(monkeypatch, tmp_path):
    """The files of a push, as ``git clone`` brings them; nothing of the library is needed to read them."""
    written = {}

    def upload(text, files, *, message, private):
        written.update(files)
        return f"{text}@0"

    monkeypatch.setattr("mpgraph.serialization.hub.upload", upload)
    push_protocol(Backprop(lr=mg.learnable(0.3)), "someone/rule", RECORD)
    for name, content in written.items():
        (tmp_path / name).write_bytes(content)
    assert mg.load_protocol(tmp_path).optimizer.lr.item() == pytest.approx(0.3)
    (tmp_path / HUB_COPY).write_text("{")  # is never read
    assert mg.load_protocol(str(tmp_path)).record == RECORD


def test_a_card_says_what_the_record_says():
    text = card(Backprop(), "hub://someone/rule", RECORD, "apache-2.0")
    head, _, body = text.removeprefix("---\n").partition("---\n")
    assert "library_name: mpgraph" in head
    assert "license: apache-2.0" in head
    assert 'mg.load_protocol("hub://someone/rule")' in body
    assert "| command | `mpgraph meta-train \\| tee log` |" in body
    assert json.loads(body.partition("```json\n")[2].partition("\n```")[0]) == RECORD
    assert mg.cite(Backprop()) in body
    assert "license" not in card(Backprop(), "hub://someone/rule", {}).partition("\n---")[0]
    assert "no record of its training" in card(Backprop(), "hub://someone/rule", {})
    with pytest.raises(mg.FileError, match="such as 'apache-2.0'"):
        card(Backprop(), "hub://someone/rule", {}, "mine\ntags: [x]")


def test_without_the_library_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(mg.FileError, match=r"pip install 'mpgraph\[hub\]'"):
        mg.load_protocol("hub://someone/rule")
    with pytest.raises(mg.FileError, match=r"pip install 'mpgraph\[hub\]'"):
        Backprop().push("someone/rule")
