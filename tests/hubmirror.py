"""A small Hugging Face hub on this machine, for clients that know nothing of it but its address, HF_ENDPOINT.

It speaks what huggingface_hub, transformers and datasets ask when they read: repository information, file trees, and
files with their ETags, redirects to a CDN and byte ranges. No Xet: a server that names no Xet hash is read over HTTP.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

TOKEN = "hf_mirror"  # the account that may read gated repositories
LARGE = (".safetensors", ".parquet", ".bin")  # these are kept in LFS, with a sha256


@dataclass
class Repo:
    """A repository and its switches; `main` moves with every commit."""

    refs: dict[str, str] = field(default_factory=dict)  # branch or tag → commit
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)  # commit → files
    gated: bool = False
    parameters: int | None = None  # what the hub says it counted
    break_once: dict[str, int] = field(default_factory=dict)  # file → bytes after which the connection drops, once
    spoil_once: set[str] = field(default_factory=set)  # files that are served with one byte changed, once
    refused: tuple[int, dict[str, str]] | None = None  # status and headers of every answer about it
    moved_to: str | None = None  # its name since it was renamed

    def commit(self, files: Mapping[str, bytes]) -> str:
        content = [[path, hashlib.sha1(data).hexdigest()] for path, data in sorted(files.items())]
        made = hashlib.sha1(json.dumps([self.refs.get("main"), content]).encode()).hexdigest()
        self.commits[made] = dict(files)
        self.refs["main"] = made
        return made


class HubMirror:
    """`with HubMirror() as hub:` serves at `hub.url` whatever is in `hub.models` and `hub.datasets`."""

    def __init__(self):
        self.models: dict[str, Repo] = {}
        self.datasets: dict[str, Repo] = {}
        self.asked: list[str] = []  # "GET /path" or "GET /path bytes=7-" of every request, in order
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.cdn = f"http://localhost:{self.server.server_port}/cdn"  # another host, as a CDN is: clients stop there

    def model(self, name: str, files: Mapping[str, bytes]) -> Repo:
        self.models[name] = repo = Repo()
        repo.commit(files)
        return repo

    def dataset(self, name: str, files: Mapping[str, bytes]) -> Repo:
        self.datasets[name] = repo = Repo()
        repo.commit(files)
        return repo

    def fetched(self, name: str) -> list[str]:
        """What was asked of this repository's content, in order: "config.json", "model.safetensors bytes=7-"."""
        return [
            request.rpartition("/")[2]
            for request in self.asked
            if request.startswith("GET ") and f"/{name}/" in request and "/api/" not in request
        ]

    def __enter__(self) -> HubMirror:
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()


_API = re.compile(r"/api/(models|datasets)/([^/]+/[^/]+)(?:/(revision|tree|paths-info)/([^/]+)(?:/(.+))?)?")
_FILE = re.compile(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)")
_CDN = re.compile(r"/cdn/(models|datasets)/([^/]+/[^/]+)/([0-9a-f]{40})/(.+)")


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: HubMirror

    def do_GET(self):
        url = urlsplit(self.path)
        self.hub.asked.append(f"{self.command} {url.path} {self.headers.get('Range', '')}".strip())
        form = parse_qs(self.rfile.read(int(self.headers.get("Content-Length", 0))).decode())
        if self.sent_away(url.path):
            return
        if found := _API.fullmatch(url.path):
            self.api(*map(_unquoted, found.groups()), parse_qs(url.query), form.get("paths", []))
        elif found := _CDN.fullmatch(url.path):
            kind, name, commit, path = map(unquote, found.groups())
            self.content(getattr(self.hub, kind)[name], commit, path)
        elif found := _FILE.fullmatch(url.path):
            self.resolve(*map(_unquoted, found.groups()))
        else:
            self.refuse(404, "RepoNotFound")

    do_HEAD = do_POST = do_GET

    def sent_away(self, path: str) -> bool:
        """Whether the repository that is asked for answers nothing, or from elsewhere."""
        for name, repo in [*self.hub.models.items(), *self.hub.datasets.items()]:
            if f"/{name}/" in f"{path}/" and repo.refused:
                self.answer(repo.refused[0], b"{}", repo.refused[1])
                return True
            if f"/{name}/" in f"{path}/" and repo.moved_to:
                place = self.path.replace(name, repo.moved_to)
                self.answer(307, b"", {"Location": f"{self.hub.url}{place}"})
                return True
        return False

    def found(self, kind: str, name: str, revision: str) -> tuple[Repo, str] | None:
        """The repository and the commit; or None once it was refused. Strangers are told 401, as on the real hub."""
        repo = getattr(self.hub, kind).get(name)
        if repo is None:
            self.refuse(404 if self.known else 401, "RepoNotFound")
            return None
        commit = repo.refs.get(revision, revision)
        if commit not in repo.commits:
            self.refuse(404, "RevisionNotFound")
            return None
        return repo, commit

    @property
    def known(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def api(self, kind, name, verb, revision, folder, query, paths):
        if not (place := self.found(kind, name, revision or "main")):
            return
        repo, commit = place
        files = repo.commits[commit]
        if verb == "tree":
            inside = {p for p in files if p.startswith(f"{folder}/")} if folder else set(files)
            depth = len(folder.split("/")) if folder else 0
            if query.get("recursive") not in (["true"], ["True"]):
                inside = {"/".join(p.split("/")[: depth + 1]) for p in inside}
            if folder and not inside:
                return self.refuse(404, "EntryNotFound")
            self.json([_tree_entry(files, path) for path in sorted(inside)])
        elif verb == "paths-info":
            self.json([_tree_entry(files, p) for p in paths if p in files or any(f.startswith(f"{p}/") for f in files)])
        else:
            siblings = [_sibling(p, data) if "blobs" in query else {"rfilename": p} for p, data in files.items()]
            counted = {"safetensors": {"parameters": {"F32": repo.parameters}, "total": repo.parameters}}
            self.json(
                {
                    "id": name,
                    "sha": commit,
                    "private": False,
                    "gated": "manual" if repo.gated else False,
                    "tags": [],
                    "siblings": siblings,
                    **_card(files),
                    **(counted if repo.parameters else {}),
                }
            )

    def resolve(self, dataset, name, revision, path):
        kind = "datasets" if dataset else "models"
        if not (place := self.found(kind, name, revision)):
            return
        repo, commit = place
        if repo.gated and not self.known:
            return self.refuse(403 if "Authorization" in self.headers else 401, "GatedRepo")
        data = repo.commits[commit].get(path)
        if data is None:
            return self.refuse(404, "EntryNotFound", {"X-Repo-Commit": commit})
        if not path.endswith(LARGE):
            return self.content(repo, commit, path, {"X-Repo-Commit": commit, "ETag": f'"{_git_hash(data)}"'})
        self.answer(
            302,
            b"",
            {
                "Location": f"{self.hub.cdn}/{kind}/{name}/{commit}/{path}",
                "X-Repo-Commit": commit,
                "X-Linked-Etag": f'"{hashlib.sha256(data).hexdigest()}"',
                "X-Linked-Size": str(len(data)),
            },
        )

    def content(self, repo: Repo, commit: str, path: str, headers: Mapping[str, str] | None = None):
        data = repo.commits[commit][path]
        if self.command == "GET" and path in repo.spoil_once:
            repo.spoil_once.remove(path)
            data = data[:-1] + bytes([data[-1] ^ 1])
        status, headers = 200, {"Accept-Ranges": "bytes", **(headers or {})}
        if asked := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(asked[1]), int(asked[2] or len(data) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
            status, data = 206, data[first : last + 1]
        cut = repo.break_once.pop(path, None) if self.command == "GET" else None
        self.answer(status, data, headers, cut)

    def refuse(self, status: int, code: str, headers: Mapping[str, str] | None = None):
        self.answer(status, b"{}", {"X-Error-Code": code, "X-Error-Message": code, **(headers or {})})

    def json(self, value):
        self.answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def answer(self, status: int, body: bytes, headers: Mapping[str, str], cut: int | None = None):
        """Send it all, or with `cut` only that many bytes of the promised length before hanging up."""
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:cut])
        self.close_connection |= cut is not None

    def log_message(self, *_):
        """Quiet: `asked` is the log."""


def _card(files: Mapping[str, bytes]) -> dict:
    """What the hub has read at the head of the card, if there is one."""
    _, *parts = files.get("README.md", b"").decode().split("---\n")
    return {"cardData": yaml.safe_load(parts[0])} if parts else {}


def _unquoted(part: str | None) -> str | None:
    return part and unquote(part)


def _git_hash(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _lfs(path: str, data: bytes, digest: str) -> dict:
    """What is said of a large file beside its size; the two interfaces call the sha256 differently."""
    pointer = {"size": len(data), digest: hashlib.sha256(data).hexdigest(), "pointerSize": 134}
    return {"lfs": pointer} if path.endswith(LARGE) else {}


def _sibling(path: str, data: bytes) -> dict:
    return {"rfilename": path, "size": len(data), "blobId": _git_hash(data), **_lfs(path, data, "sha256")}


def _tree_entry(files: Mapping[str, bytes], path: str) -> dict:
    if path not in files:
        return {"type": "directory", "path": path, "oid": "0" * 40, "size": 0}
    data = files[path]
    return {"type": "file", "path": path, "oid": _git_hash(data), "size": len(data), **_lfs(path, data, "oid")}
