"""A server that speaks as much of the Hub's API as an upload needs."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

TOKEN = "hf_of_a_test"
COMMIT = "0" * 40
RESOLVE = re.compile(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)")


@dataclass
class Hub:
    """What the server holds, and what it is to do wrong."""

    address: str = ""
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    visibility: dict[str, str] = field(default_factory=dict)
    stored: dict[str, bytes] = field(default_factory=dict)
    uploads: list[str] = field(default_factory=list)
    cards: list[str] = field(default_factory=list)
    sent: int = 0
    breaks_after: int | None = None
    """Uploads that succeed before every further one is cut."""


class Handler(BaseHTTPRequestHandler):
    """One request."""

    hub: Hub

    def log_message(self, *words: Any) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        if match := RESOLVE.fullmatch(self.path):
            return self.send_file(self.hub.files[match[1]].get(match[2]))
        self.answer({}, 404)

    def do_GET(self) -> None:
        if match := RESOLVE.fullmatch(self.path):
            return self.send_file(self.hub.files[match[1]].get(match[2]))
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/revision/main", self.path):
            siblings = [{"rfilename": name} for name in self.hub.files[match[1]]]
            return self.answer({"id": match[1], "sha": COMMIT, "siblings": siblings})
        if self.path == "/api/whoami-v2":
            return self.answer({"name": "me", "type": "user"})
        if match := re.fullmatch(rf"/api/models/([^/]+/[^/]+)/tree/(?:main|{COMMIT}).*", self.path):
            files = self.hub.files[match[1]]
            return self.answer(
                [{"type": "file", "path": p, "size": len(b), "oid": "0"} for p, b in files.items()]
            )
        self.answer({"error": self.path}, 404)

    def send_file(self, data: bytes | None) -> None:
        """Send a file, or the part of it that is asked for, and keep count."""
        if data is None:
            return self.answer({"error": "no such file"}, 404)
        part = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        sent = data[int(part[1]) : int(part[2]) + 1] if part else data
        self.send_response(206 if part else 200)
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(sent)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(sent)
            self.hub.sent += len(sent)

    def do_PUT(self) -> None:
        hub = self.hub
        if hub.breaks_after is not None and len(hub.uploads) >= hub.breaks_after:
            self.close_connection = True
            self.connection.close()
            return None
        oid = self.path.rpartition("/")[2]
        hub.stored[oid] = self.body()
        hub.uploads.append(oid)
        self.answer({})

    def do_POST(self) -> None:
        body = self.body()
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.answer({"error": "Invalid user token."}, 401)
        if self.path == "/api/repos/create":
            return self.create(json.loads(body))
        if self.path == "/api/validate-yaml":
            self.hub.cards.append(json.loads(body)["content"])
            return self.answer({"errors": [], "warnings": []})
        if re.search(r"/preupload/main", self.path):
            names = [f["path"] for f in json.loads(body)["files"]]
            modes = {n: "lfs" if n.endswith(".safetensors") else "regular" for n in names}
            listed = [{"path": n, "uploadMode": m, "shouldIgnore": False} for n, m in modes.items()]
            return self.answer({"files": listed})
        if self.path.endswith("/objects/batch"):
            return self.answer({"transfer": "basic", "objects": [*map(self.batch, objects(body))]})
        match = re.fullmatch(r"/api/models/(.+)/commit/main.*", self.path)
        assert match, self.path
        self.commit(match[1], [json.loads(line) for line in body.splitlines()])

    def create(self, asked: dict[str, Any]) -> None:
        if asked["organization"] == "others":
            return self.answer({"error": "You don't have the rights"}, 403)
        id_ = f"{asked['organization'] or 'me'}/{asked['name']}"
        if id_ in self.hub.files:
            return self.answer({"url": f"{self.hub.address}/{id_}", "error": "exists"}, 409)
        self.hub.files[id_] = {".gitattributes": b""}
        self.hub.visibility[id_] = asked.get("visibility", "public")
        self.answer({"url": f"{self.hub.address}/{id_}", "id": "0", "name": id_})

    def batch(self, wanted: dict[str, Any]) -> dict[str, Any]:
        oid = wanted["oid"]
        known = {"oid": oid, "size": wanted["size"]}
        if oid in self.hub.stored:
            return known
        return known | {"actions": {"upload": {"href": f"{self.hub.address}/store/{oid}"}}}

    def commit(self, id_: str, lines: list[dict[str, Any]]) -> None:
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                self.hub.files[id_][value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.hub.files[id_][value["path"]] = self.hub.stored[value["oid"]]
        url = f"{self.hub.address}/{id_}/commit/{'0' * 40}"
        self.answer({"success": True, "commitOid": "0" * 40, "commitUrl": url})

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def answer(self, content: Any, status: int = 200) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def objects(body: bytes) -> list[dict[str, Any]]:
    return list(json.loads(body)["objects"])


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The server on this machine, found by huggingface_hub in the place of the real one."""
    held = Hub()
    handler = type("Bound", (Handler,), {"hub": held})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        held.address = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", held.address)
        template = f"{held.address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield held
        server.shutdown()
        thread.join()
