"""A server that answers as the Hugging Face hub does: listings, redirects of large files to another host, errors by code."""

import contextlib
import dataclasses
import functools
import hashlib
import http.server
import json
import re
import threading
import urllib.parse

LARGE = ".safetensors"  # files that the hub keeps elsewhere


@dataclasses.dataclass
class Repository:
    """Files by name, and how they are guarded and served."""

    files: dict[str, bytes]
    gated: bool = False
    broken: dict[str, int] = dataclasses.field(default_factory=dict)  # how many more answers with that file end half way
    claimed: dict[str, int] = dataclasses.field(default_factory=dict)  # sizes in the listing that differ from the files'

    @property
    def commit(self):
        return digest(repr({name: digest(content) for name, content in self.files.items()}).encode())[:40]


@functools.cache
def digest(content):
    return hashlib.sha256(content).hexdigest()


class Hub:
    """Its repositories, and what it was asked for: method, path, headers, bytes sent."""

    def __init__(self, port):
        self.url, self.elsewhere = f"http://127.0.0.1:{port}", f"http://localhost:{port}"
        self.repositories, self.asked, self.down, self.tokens = {}, [], None, {"hf_valid"}

    def files_asked(self, method="GET"):
        """The names of files whose bytes were asked for."""
        found = (re.fullmatch(r"/(?:cdn/)?[^/]+/[^/]+/resolve/[^/]+/(.+)", path) for how, path, _, _ in self.asked if how == method)
        return [each[1] for each in found if each]

    def sent(self, name):
        """The bytes of a file that were sent, in all answers together."""
        return sum(sent for how, path, _, sent in self.asked if how == "GET" and path.endswith(f"/{name}"))


class Handler(http.server.BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        hub, path = self.server.hub, urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        self.record = [self.command, path, self.headers, 0]
        hub.asked.append(self.record)
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if hub.down == "silence":
            self.close_connection = True
            return None
        if hub.down == "error":
            return self.refuse(503, "", "the hub is down")
        if token and token not in hub.tokens:
            return self.refuse(401, "", "Invalid credentials in Authorization header")
        asked = re.fullmatch(
            r"/(?P<where>api/models/|cdn/)?(?P<name>[^/]+/[^/]+)/(?P<what>\w+)/(?P<at>[^/]+)(?:/(?P<file>.+))?", path
        )
        repository = hub.repositories.get(asked["name"]) if asked else None
        if repository is None:
            return self.refuse(404 if token else 401, "RepoNotFound", "Repository not found")
        if asked["at"] not in ("main", "v1", repository.commit):
            return self.refuse(404, "RevisionNotFound", f"Invalid rev id: {asked['at']}")
        if asked["where"] == "api/models/":
            return self.list(asked["name"], repository, asked["what"])
        if repository.gated:
            return self.refuse(403 if token else 401, "GatedRepo", "Access to this model is restricted")
        if asked["file"] not in repository.files:
            return self.refuse(404, "EntryNotFound", "Entry not found")
        self.send_file(asked["name"], repository, asked["file"], redirect=asked["where"] is None)

    do_HEAD = do_GET

    def list(self, name, repository, what):
        if what == "revision":
            return self.answer(200, json.dumps({"_id": "1", "id": name, "modelId": name, "sha": repository.commit}).encode())
        tree = []
        for file, content in repository.files.items():
            size = repository.claimed.get(file, len(content))
            entry = {"type": "file", "oid": digest(content)[:40], "size": size, "path": file}
            if file.endswith(LARGE):
                entry["lfs"] = {"oid": digest(content), "size": size, "pointerSize": 134}
            tree.append(entry)
        folders = sorted({file.rpartition("/")[0] for file in repository.files} - {""})
        tree += [{"type": "directory", "oid": "0" * 40, "size": 0, "path": folder} for folder in folders]
        self.answer(200, json.dumps(tree).encode())

    def send_file(self, name, repository, file, redirect):
        content = repository.files[file]
        headers = {"X-Repo-Commit": repository.commit, "ETag": f'"{digest(content)}"'}
        if redirect and file.endswith(LARGE):
            headers |= {"X-Linked-Size": str(len(content)), "X-Linked-ETag": headers["ETag"]}
            where = f"{self.server.hub.elsewhere}/cdn/{name}/resolve/{repository.commit}/{urllib.parse.quote(file)}"
            return self.answer(302, b"", {**headers, "Location": where})
        start, status = 0, 200
        if part := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            start, status = int(part[1]), 206
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        cut = self.command == "GET" and repository.broken.get(file, 0) > 0
        if cut:
            repository.broken[file] -= 1
        rest = content[start:]
        self.answer(status, rest, {**headers, "Accept-Ranges": "bytes"}, stop=len(rest) // 2 if cut else None)

    def refuse(self, status, code, message):
        self.answer(status, json.dumps({"error": message}).encode(), {"X-Error-Code": code, "X-Error-Message": message})

    def answer(self, status, body, headers=(), stop=None):
        self.send_response(status)
        for key, value in dict(headers).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.record[3] = len(body[:stop])
            self.wfile.write(body[:stop])
        if stop is not None:
            self.close_connection = True

    def log_message(self, *_):
        """Nothing."""


@contextlib.contextmanager
def serving():
    """A hub on this machine until the end of the block."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.hub = Hub(server.server_port)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server.hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
