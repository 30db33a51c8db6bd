"""A Hub of one's own on 127.0.0.1, which speaks as much of its HTTP API as the real `huggingface_hub` client needs.

Models only: create, commit (regular files and LFS), list, resolve, revisions, private repositories. Point the client at it
by `HF_ENDPOINT`, with `HF_HUB_DISABLE_XET=1`.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


USER, TOKEN = "user", "hf_loopback"
LFS_SUFFIXES = (".safetensors", ".png", ".bin")


@dataclass
class Repository:
    """Its commits, oldest first: `{sha: {path: content}}`."""

    private: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)

    def commit(self, files: dict[str, bytes], title: str) -> str:
        sha = hashlib.sha1(f"{len(self.commits)} {title}".encode()).hexdigest()
        self.commits[sha] = files
        return sha

    @property
    def head(self) -> str:
        return next(reversed(self.commits))


class HubError(Exception):
    """An answer other than 200, with the code in `X-Error-Code` that the client tells errors apart by."""

    def __init__(self, status: int, code: str):
        self.status, self.code = status, code


class LoopbackHub:
    """
    Serves while it lasts: `with LoopbackHub() as hub`.

    Attributes:
        url (`str`): Its address, for `HF_ENDPOINT`.
        repositories (`dict[str, Repository]`): By their full names.
        refuse_uploads_after (`int`, *optional*): Large files that are taken before the rest is refused.
        hold (`threading.Event`, *optional*): Large files are taken once it is set.
        puts (`list[str]`): The hashes of the large files that were sent and taken, as they came.
        received (`list[bytes]`): All that was sent but the header `Authorization`, request by request.
    """

    def __init__(self):
        self.repositories: dict[str, Repository] = {}
        self.large_files: dict[str, bytes] = {}
        self.refuse_uploads_after: int | None = None
        self.hold: threading.Event | None = None
        self.puts: list[str] = []
        self.received: list[bytes] = []
        self.taking = threading.Lock()
        handler = type("Handler", (Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> "LoopbackHub":
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *error) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


class Handler(BaseHTTPRequestHandler):
    """One request: `ROUTES` says which method answers it, with JSON unless that writes by itself."""

    hub: LoopbackHub
    protocol_version = "HTTP/1.1"

    def handle_request(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        headers = [f"{name}: {value}" for name, value in self.headers.items() if name.lower() != "authorization"]
        self.hub.received.append("\n".join([self.requestline, *headers, ""]).encode() + self.body)
        path = unquote(urlsplit(self.path).path)
        try:
            for method, pattern, answer in ROUTES:
                match = re.fullmatch(pattern, path)
                if match and method in (self.command, "GET" if self.command == "HEAD" else None):
                    result = answer(self, **match.groupdict())
                    return None if result is None else self.respond(200, json.dumps(result).encode())
            raise HubError(404, "NoSuchRoute")
        except HubError as error:
            self.respond(error.status, b"{}", {"X-Error-Code": error.code})

    do_GET = do_HEAD = do_POST = do_PUT = handle_request

    def respond(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *args) -> None:
        """Be silent."""

    def is_user(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def require_user(self) -> None:
        if not self.is_user():
            raise HubError(401, "Unauthorized")

    def repository(self, name: str) -> Repository:
        repository = self.hub.repositories.get(name)
        if repository is None or (repository.private and not self.is_user()):
            raise HubError(404, "RepoNotFound")
        return repository

    def files(self, name: str, revision: str | None) -> tuple[str, dict[str, bytes]]:
        """The commit that a revision means, and its files."""
        repository = self.repository(name)
        sha = repository.head if revision in (None, "main") else revision
        if sha not in repository.commits:
            raise HubError(404, "RevisionNotFound")
        return sha, repository.commits[sha]

    def whoami(self) -> dict:
        self.require_user()
        return {"type": "user", "name": USER, "auth": {"type": "access_token"}}

    def create(self) -> dict:
        self.require_user()
        options = json.loads(self.body)
        name = f"{options.get('organization') or USER}/{options['name']}"
        if name not in self.hub.repositories:
            self.hub.repositories[name] = Repository(
                private=options.get("visibility") == "private" or bool(options.get("private"))
            )
            self.hub.repositories[name].commit({}, "initial commit")
        return {"url": f"{self.hub.url}/{name}", "name": name}

    def validate_yaml(self) -> dict:
        return {"errors": [], "warnings": []}

    def preupload(self, name: str, revision: str) -> dict:
        self.require_user()
        _, present = self.files(name, revision)
        paths = [file["path"] for file in json.loads(self.body)["files"]]
        modes = {path: "lfs" if path.endswith(LFS_SUFFIXES) else "regular" for path in paths}
        return {
            "files": [
                {"path": path, "uploadMode": modes[path], "shouldIgnore": False}
                | ({"oid": oid(path, present[path])} if path in present else {})
                for path in paths
            ]
        }

    def large_file_batch(self, name: str) -> dict:
        self.require_user()
        objects = json.loads(self.body)["objects"]
        for item in objects:
            if item["oid"] not in self.hub.large_files:
                item["actions"] = {"upload": {"href": f"{self.hub.url}/lfs/{item['oid']}"}}
        return {"transfer": "basic", "objects": objects}

    def put_large_file(self, sha256: str) -> None:
        if self.hub.hold is not None:
            self.hub.hold.wait(timeout=60)
        with self.hub.taking:
            limit = self.hub.refuse_uploads_after
            if limit is not None and len(self.hub.large_files) >= limit:
                raise HubError(403, "QuotaExceeded")
            if hashlib.sha256(self.body).hexdigest() != sha256:
                raise HubError(400, "WrongChecksum")
            self.hub.large_files[sha256] = self.body
            self.hub.puts.append(sha256)
        self.respond(200, b"")

    def commit(self, name: str, revision: str) -> dict:
        self.require_user()
        _, files = self.files(name, revision)
        operations = [json.loads(line) for line in self.body.splitlines()]
        files, title = dict(files), operations[0]["value"]["summary"]
        for operation in operations[1:]:
            value = operation["value"]
            if operation["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif operation["key"] == "lfsFile":
                files[value["path"]] = self.hub.large_files[value["oid"]]
            else:
                raise HubError(400, "NoSuchOperation")
        sha = self.repository(name).commit(files, title)
        return {"commitUrl": f"{self.hub.url}/{name}/commit/{sha}", "commitOid": sha}

    def info(self, name: str, revision: str | None = None) -> dict:
        sha, files = self.files(name, revision)
        siblings = [{"rfilename": path} for path in files]
        return {"id": name, "sha": sha, "private": self.repository(name).private, "siblings": siblings, "tags": []}

    def tree(self, name: str, revision: str) -> list[dict]:
        _, files = self.files(name, revision)
        return [{"type": "file", "path": path, "oid": git_oid(body), "size": len(body)} for path, body in files.items()]

    def resolve(self, name: str, revision: str, path: str) -> None:
        sha, files = self.files(name, revision)
        if path not in files:
            raise HubError(404, "EntryNotFound")
        self.respond(200, files[path], {"X-Repo-Commit": sha, "ETag": f'"{oid(path, files[path])}"'})


def git_oid(body: bytes) -> str:
    """The hash that git knows a blob by."""
    return hashlib.sha1(f"blob {len(body)}\0".encode() + body).hexdigest()


def oid(path: str, body: bytes) -> str:
    """The hash that the Hub knows a file by."""
    return hashlib.sha256(body).hexdigest() if path.endswith(LFS_SUFFIXES) else git_oid(body)


NAME, REVISION = r"(?P<name>[\w.-]+/[\w.-]+)", r"(?P<revision>[^/]+)"
ROUTES: list[tuple[str, str, Callable]] = [
    ("GET", "/api/whoami-v2", Handler.whoami),
    ("POST", "/api/repos/create", Handler.create),
    ("POST", "/api/validate-yaml", Handler.validate_yaml),
    ("POST", f"/api/models/{NAME}/preupload/{REVISION}", Handler.preupload),
    ("POST", f"/{NAME}\\.git/info/lfs/objects/batch", Handler.large_file_batch),
    ("PUT", "/lfs/(?P<sha256>[0-9a-f]+)", Handler.put_large_file),
    ("POST", f"/api/models/{NAME}/commit/{REVISION}", Handler.commit),
    ("GET", f"/api/models/{NAME}/tree/{REVISION}", Handler.tree),
    ("GET", f"/api/models/{NAME}(/revision/{REVISION})?", Handler.info),
    ("GET", f"/{NAME}/resolve/{REVISION}/(?P<path>.+)", Handler.resolve),
]
