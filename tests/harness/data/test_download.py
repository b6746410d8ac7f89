"""Whatever a server does, a file stands under its name whole and right, or not at all."""

from __future__ import annotations

import fcntl
import hashlib
import io
import itertools
import json
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.data import download as module
from harness.data import transfer
from harness.data.dataset import LABELS, load_dataset
from harness.data.download import ATTEMPTS, Outcome, download
from harness.data.manifest import manifest_path, verify
from harness.data.transfer import CHUNK
from harness.errors import UserError
from harness.guard import told
from harness.tasks import Task, find_task

TASK, OTHER = find_task("BallRun"), find_task("BallCircle")


def dataset(task: Task, seed: int = 0, rows: int = 2000) -> bytes:
    """A small valid file of a task."""
    rng = np.random.default_rng(seed)
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        for key in ("observations", "next_observations"):
            file[key] = rng.normal(size=(rows, task.observation_size)).astype(np.float32)
        file["actions"] = rng.uniform(-1, 1, (rows, task.action_size)).astype(np.float32)
        file["rewards"], file["costs"] = rng.normal(size=rows), rng.integers(0, 2, rows)
        file["terminals"], file["timeouts"] = np.zeros(rows, bool), np.arange(rows) % 50 == 49
    return content.getvalue()


DATA = dataset(TASK)
SIZE = len(DATA)
MODIFIED = "Sun, 06 Nov 1994 08:49:37 GMT"
DIGEST = hashlib.sha256(DATA).hexdigest()


@dataclass(frozen=True)
class Answer:
    """How a request is answered; what is not said is as it should be.

    Args:
        content: the whole file.
        status: this instead of 200 or 206; the content is then sent whole, whatever range is asked for.
        etag: of the content, ``None`` for none.
        ranges: whether ranges are served.
        drop: close the connection after so many bytes.
        length: the announced Content-Length, -1 for none.
        total: the announced total in Content-Range.
        most: at most so many bytes of a range.
        pause: seconds to hang after what is sent.
        drip: seconds between single bytes, after those that ``drop`` names.
        headers: more of them.
    """

    content: bytes = DATA
    status: int | None = None
    etag: str | None = '"one"'
    ranges: bool = True
    drop: int | None = None
    length: int | None = None
    total: int | None = None
    most: int | None = None
    pause: float = 0.0
    drip: float = 0.0
    headers: dict[str, str] = field(default_factory=dict)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        path = self.path.lstrip("/")
        asked = self.headers.get("Range")
        self.server.asked.setdefault(path, []).append((asked, self.headers.get("If-Range")))
        self.server.encodings.add(self.headers.get("Accept-Encoding"))
        self.server.tokens.append(self.headers.get("Authorization"))
        answers = self.server.answers.get(path, [Answer(b"", status=404)])
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        start, status = 0, answer.status or 200
        if answer.status is None and answer.ranges and asked and self.headers.get("If-Range") == answer.etag:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            status = 206 if start < len(answer.content) else 416
        self.send(answer, status, start)

    def do_HEAD(self) -> None:
        """What the next request for the content would be answered."""
        answers = self.server.answers[self.path.lstrip("/")]
        answer = answers[0]
        if (answer.status or 200) >= 400 and len(answers) > 1:
            answers.pop(0)
        length = len(answer.content) if answer.length is None else answer.length
        headers = {"ETag": answer.etag or "", "Content-Length": str(length) if length >= 0 else ""}
        self.send_response(200 if answer.status == 206 else answer.status or 200)
        for name, value in (headers | answer.headers).items():
            if value and name != "Content-Range":
                self.send_header(name, value)
        self.end_headers()

    def send(self, answer: Answer, status: int, start: int) -> None:
        body = b"" if status == 416 else answer.content[start:]
        if status == 206 and answer.most is not None:
            body = body[: answer.most]
        total = len(answer.content) if answer.total is None else answer.total
        length = len(body) if answer.length is None else answer.length
        headers = {"ETag": answer.etag or "", "Content-Length": str(length) if length >= 0 else ""}
        if status in (206, 416):
            part = f"{start}-{start + len(body) - 1}" if body else "*"
            headers["Content-Range"] = f"bytes {part}/{total}"
        self.send_response(status)
        for name, value in (headers | answer.headers).items():
            if value:
                self.send_header(name, value)
        self.end_headers()
        with suppress(OSError):
            self.wfile.write(body if answer.drop is None else body[: answer.drop])
            self.wfile.flush()
            self.server.released.wait(answer.pause)
            for index in range(answer.drop or 0, len(body) if answer.drip else 0):
                self.wfile.write(body[index : index + 1])
                if self.server.released.wait(answer.drip):
                    break
        self.close_connection = answer.drop is not None or length != len(body)


class Server(ThreadingHTTPServer):
    """Answers every path with its next answer, the last one again and again."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: dict[str, list[Answer]] = {}
        self.asked: dict[str, list[tuple[str | None, str | None]]] = {}
        self.encodings: set[str | None] = set()
        self.tokens: list[str | None] = []
        self.released = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def serve(self, *answers: Answer, task: Task = TASK) -> None:
        self.answers[task.dataset_file] = list(answers)
        self.asked[task.dataset_file] = []
        self.released.clear()

    def starts(self, task: Task = TASK) -> list[int]:
        """The first byte of every request."""
        asked = (header for header, _ in self.asked[task.dataset_file])
        return [int(header.removeprefix("bytes=").removesuffix("-")) if header else 0 for header in asked]


@pytest.fixture(scope="module", autouse=True)
def _no_proxy() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
            patch.delenv(name, raising=False)
            patch.delenv(name.upper(), raising=False)
        yield


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.released.set()
    server.shutdown()
    thread.join()
    server.server_close()


class Here:
    """A pool whose tasks are done in this process, at once."""

    def __init__(self, workers: int) -> None:
        pass

    def __enter__(self) -> Here:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def submit(self, function: Callable[..., Any], *args: Any, tries: int) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(function(*args))
        except Exception as error:
            future.set_exception(told(error))
        return future


@pytest.fixture
def processes() -> None:
    """Downloads in processes of their own, as everybody's."""


@pytest.fixture(autouse=True)
def _here(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Otherwise in this process, where the client does not wait before it tries again."""
    if "processes" in request.fixturenames:
        yield
        return
    from huggingface_hub import close_session, constants, file_download
    from huggingface_hub.utils import _http

    monkeypatch.setattr(module, "Pool", Here)
    for client in (file_download, _http):
        monkeypatch.setattr(client, "time", SimpleNamespace(sleep=lambda seconds: None))
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", constants.DOWNLOAD_CHUNK_SIZE)
    close_session()
    yield
    close_session()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "made" / "datasets"


def fetch(server: Server, folder: Path, **options: Any) -> Outcome:
    (outcome,) = download([TASK], folder, server.url, **options)
    return outcome


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


NAME = TASK.dataset_file
PART, SIDECAR = f".{NAME}.part", f".{NAME}.part.json"
WHOLE = [NAME, f"{NAME}.json"]


def assert_whole(outcome: Outcome, folder: Path, content: bytes = DATA) -> None:
    """The file is there and right, its manifest too, and nothing else."""
    digest = hashlib.sha256(content).hexdigest()
    assert (outcome.good, outcome.text) == (True, f"downloaded, {len(content):,} bytes, SHA-256 {digest}")
    assert names(folder) == WHOLE
    assert (folder / NAME).read_bytes() == content
    assert verify(folder / NAME) is None


def leave_part(server: Server, folder: Path, held: int, **answer: Any) -> None:
    """Give up a download after so many bytes, whole chunks."""
    server.serve(Answer(drop=held, **answer), Answer(drop=0, **answer))
    outcome = fetch(server, folder)
    assert not outcome.good
    assert names(folder) == [PART, SIDECAR], outcome
    assert (folder / PART).stat().st_size == held


# All goes well


def test_a_file_arrives_with_its_manifest(server: Server, folder: Path) -> None:
    server.serve(Answer())
    seen: list[tuple[Task, int, int | None]] = []
    ended: list[Outcome] = []
    outcome = fetch(server, folder, moved=lambda *step: seen.append(step), ended=ended.append)
    assert_whole(outcome, folder)
    assert ended == [outcome]
    assert seen[-1] == (TASK, SIZE, SIZE)
    manifest = json.loads(manifest_path(folder / NAME).read_text())
    del manifest["recorded"]
    url = f"{server.url}/{NAME}"
    assert manifest == {"file": NAME, "task": TASK.id, "size": SIZE, "sha256": DIGEST, "url": url}
    assert server.asked[NAME] == [(None, None)]
    assert server.encodings == {"identity"}
    assert load_dataset(TASK, path=folder / NAME).sha256 == DIGEST


def test_what_is_there_is_verified_and_not_fetched(server: Server, folder: Path) -> None:
    server.serve(Answer())
    fetch(server, folder)
    before = manifest_path(folder / NAME).read_bytes()
    outcome = fetch(server, folder)
    assert (outcome.good, outcome.text) == (True, "already there, verified")
    assert (len(server.asked[NAME]), manifest_path(folder / NAME).read_bytes()) == (1, before)
    assert names(folder) == WHOLE


def test_agent_collected_data_in_the_place_of_the_file(server: Server, tmp_path: Path) -> None:
    server.serve(Answer())
    path = tmp_path / NAME
    path.write_bytes(DATA)
    manifest_path(path).write_text(
        json.dumps({"file": NAME, "task": TASK.id, "sha256": DIGEST, "size": SIZE, "label": LABELS["agents"]})
    )
    outcome = fetch(server, tmp_path)
    assert_refused(
        outcome, tmp_path, "already there, but", "labelled 'agent-collected data", "move it", left=tuple(WHOLE)
    )
    assert path.read_bytes() == DATA
    assert server.asked[NAME] == []


def test_a_file_of_unknown_origin_is_recorded_at_first_use(server: Server, tmp_path: Path) -> None:
    server.serve(Answer())
    (tmp_path / NAME).write_bytes(DATA)
    outcome = fetch(server, tmp_path)
    assert (outcome.good, outcome.text) == (True, f"already there, valid; recorded its SHA-256 {DIGEST}")
    assert json.loads(manifest_path(tmp_path / NAME).read_text())["url"] is None
    assert fetch(server, tmp_path).text == "already there, verified"
    assert server.asked[NAME] == []


def test_the_mirror_may_end_in_a_slash(server: Server, folder: Path) -> None:
    server.serve(Answer())
    (outcome,) = download([TASK], folder, f"{server.url}/")
    assert_whole(outcome, folder)


# Resuming

DROPS = st.lists(st.one_of(st.integers(CHUNK, SIZE), st.just(0)), max_size=8).filter(
    lambda drops: (
        max((len(list(run)) for zero, run in itertools.groupby(drops, bool) if not zero), default=0) < ATTEMPTS
    )
)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(drops=DROPS, etag=st.sampled_from(['"one"', None, 'W/"weak"']), modified=st.booleans(), ranges=st.booleans())
def test_wherever_it_breaks_off_the_file_is_the_same(
    server: Server,
    tmp_path_factory: pytest.TempPathFactory,
    drops: list[int],
    etag: str | None,
    modified: bool,
    ranges: bool,
) -> None:
    folder = tmp_path_factory.mktemp("drops")
    settled = {"etag": etag, "ranges": ranges, "headers": {"Last-Modified": MODIFIED} if modified else {}}
    server.serve(*(Answer(drop=drop, **settled) for drop in drops[: ATTEMPTS - 1]), Answer(**settled))
    assert_whole(fetch(server, folder), folder)


def test_only_what_is_missing_is_asked_for(server: Server, folder: Path) -> None:
    leave_part(server, folder, CHUNK)
    server.serve(Answer())
    assert_whole(fetch(server, folder), folder)
    assert server.asked[NAME] == [(f"bytes={CHUNK}-", '"one"')]


def test_what_is_complete_is_not_asked_for_again(server: Server, folder: Path) -> None:
    leave_part(server, folder, CHUNK)
    (folder / PART).write_bytes(DATA)  # killed before the check
    server.serve(Answer())
    assert_whole(fetch(server, folder), folder)
    assert server.asked[NAME] == []


def test_a_server_without_ranges_is_asked_for_all_again(server: Server, folder: Path) -> None:
    server.serve(Answer(ranges=False, drop=2 * CHUNK), Answer(ranges=False))
    assert_whole(fetch(server, folder), folder)
    assert server.starts() == [0, 2 * CHUNK]


def test_another_version_begins_anew(server: Server, folder: Path) -> None:
    new = dataset(TASK, seed=1)
    leave_part(server, folder, CHUNK)
    server.serve(Answer(new, etag='"two"'))
    assert_whole(fetch(server, folder), folder, new)
    assert server.starts() == [0]


def test_a_version_that_changes_meanwhile_is_not_mixed(server: Server, folder: Path) -> None:
    """Though the server goes on with the new one after the bytes of the old one."""
    new = Answer(dataset(TASK, seed=1), etag='"two"')
    rest = replace(new, status=206, content=new.content[CHUNK:])
    rest = replace(rest, headers={"Content-Range": f"bytes {CHUNK}-{SIZE - 1}/{SIZE}"})
    server.serve(Answer(drop=CHUNK), rest, new)
    assert_refused(fetch(server, folder), folder, "changed while it was downloaded; run the command again")
    assert_whole(fetch(server, folder), folder, new.content)


@pytest.mark.parametrize(
    "answer",
    [
        Answer(status=206, headers={"Content-Range": f"bytes 0-{SIZE - 1}/{SIZE}"}),
        Answer(status=206, etag='"one"'),
        Answer(total=SIZE + 1, most=100),
        Answer(status=416),
    ],
)
def test_a_range_that_does_not_go_on_is_not_taken(server: Server, folder: Path, answer: Answer) -> None:
    leave_part(server, folder, CHUNK)
    server.serve(*[answer] * 2)
    assert not fetch(server, folder).good
    server.serve(Answer())
    outcome = fetch(server, folder)
    assert_whole(outcome if outcome.good else fetch(server, folder), folder)


@pytest.mark.parametrize("sidecar", [None, "{", "[]", '{"url": 1}', "{URL}"])
def test_a_part_of_unknown_origin_begins_anew(server: Server, folder: Path, sidecar: str | None) -> None:
    leave_part(server, folder, CHUNK)
    if sidecar is None:
        (folder / SIDECAR).unlink()
    elif sidecar == "{URL}":
        known = json.loads((folder / SIDECAR).read_text())
        (folder / SIDECAR).write_text(json.dumps(known | {"url": "https://another.example"}))
    else:
        (folder / SIDECAR).write_text(sidecar)
    server.serve(Answer())
    assert_whole(fetch(server, folder), folder)
    assert server.asked[NAME] == [(None, None)]


# Trying again


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_passing_trouble(server: Server, folder: Path, status: int) -> None:
    server.serve(*[Answer(b"trouble", status=status)] * ATTEMPTS, Answer())
    assert_whole(fetch(server, folder), folder)


def test_lasting_trouble(server: Server, folder: Path) -> None:
    server.serve(Answer(status=503))
    assert_refused(fetch(server, folder), folder, f"{server.url}/{NAME}: status 503 Service Unavailable")


def test_attempts_that_bring_something_do_not_count(server: Server, folder: Path) -> None:
    server.serve(*[Answer(drop=CHUNK)] * (SIZE // CHUNK), Answer())
    assert_whole(fetch(server, folder), folder)
    assert server.starts() == [index * CHUNK for index in range(SIZE // CHUNK + 1)]


def test_nobody_answers(folder: Path) -> None:
    (outcome,) = download([TASK], folder, "http://127.0.0.1:9")
    assert_refused(outcome, folder, "http://127.0.0.1:9: ConnectError: ", "refused")


def test_a_server_that_hangs(server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.5)
    server.serve(Answer(drop=CHUNK, pause=5), Answer())
    assert_whole(fetch(server, folder), folder)
    assert sorted({*server.starts()}) == [0, CHUNK]  # more than two where this machine hangs, too


def test_a_server_that_drips_is_given_up_and_what_came_is_kept(
    server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch, processes: None
) -> None:
    monkeypatch.setattr(module, "SPAN", 3.0)
    monkeypatch.setattr(module, "ATTEMPTS", 2)
    server.serve(Answer(drop=2 * CHUNK, drip=0.05))
    (outcome,) = download([TASK], folder, server.url)
    assert outcome.text.startswith("less than 1024 bytes a second arrived for 3 s, 2 times")
    assert (folder / PART).stat().st_size >= 2 * CHUNK
    assert DATA.startswith((folder / PART).read_bytes())


def test_a_server_whose_headers_drip_is_given_up(
    folder: Path, monkeypatch: pytest.MonkeyPatch, processes: None
) -> None:
    monkeypatch.setattr(module, "SPAN", 1.0)
    monkeypatch.setattr(module, "ATTEMPTS", 2)
    released = threading.Event()

    def drip(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            connection.sendall(b"HTTP/1.1 200 OK\r\nX-Slow: ")
            while not released.wait(0.02):
                connection.sendall(b"a")

    def serve() -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=drip, args=listening.accept()[:1], daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=serve, daemon=True).start()
        (outcome,) = download([TASK], folder, f"http://127.0.0.1:{listening.getsockname()[1]}")
        released.set()
        listening.shutdown(socket.SHUT_RDWR)
    assert (outcome.good, outcome.text) == (
        False,
        "less than 1024 bytes a second arrived for 1 s, 2 times in a row",
    )


# Wrong from the server


def assert_refused(outcome: Outcome, folder: Path, *reasons: str, left: tuple[str, ...] = ()) -> None:
    assert not outcome.good
    assert [reason for reason in reasons if reason not in outcome.text] == []
    assert names(folder) == list(left)


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_what_is_not_there_fails_at_once(server: Server, folder: Path, status: int) -> None:
    server.serve(Answer(b"", status=status))
    outcome = fetch(server, folder)
    assert_refused(outcome, folder, f"{server.url}/{NAME}: status {status} ", "--mirror")
    assert server.asked[NAME] == []


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"<html>Please log in</html>", "it is no HDF5 file"),
        (b"", "it is empty"),
        (dataset(OTHER), f"observations has shape (2000, {OTHER.observation_size}), BallRun needs"),
        (dataset(TASK, rows=0), "it holds no transition"),
        (DATA[:-1], "it is truncated or damaged"),
    ],
)
def test_wrong_content(server: Server, folder: Path, content: bytes, reason: str) -> None:
    server.serve(Answer(content))
    url = f"{server.url}/{NAME}"
    assert_refused(fetch(server, folder), folder, f"{url} does not give the data: it is no usable dataset", reason)


def test_an_announced_length_that_never_comes(server: Server, folder: Path) -> None:
    server.serve(Answer(length=SIZE + 10))
    outcome = fetch(server, folder)
    assert not outcome.good
    assert not (folder / NAME).exists()


@pytest.mark.parametrize("length", [0, 100, SIZE - 1])
def test_an_announced_length_that_is_too_short(server: Server, folder: Path, length: int) -> None:
    server.serve(Answer(length=length))
    assert_refused(fetch(server, folder), folder, "it is no usable dataset")


def test_no_announced_length(server: Server, folder: Path) -> None:
    server.serve(Answer(length=-1))
    assert_whole(fetch(server, folder), folder)
    (folder / NAME).unlink()
    server.serve(Answer(length=-1, drop=SIZE // 2))
    assert_refused(fetch(server, folder, force=True), folder, "it is truncated or damaged", left=(f"{NAME}.json",))


# Redirects, and Hugging Face


def redirect(server: Server, target: str = "/store", **headers: str) -> Answer:
    server.answers["store"] = [Answer()]
    server.asked["store"] = []
    return Answer(b"", status=302, etag=None, headers={"Location": server.url + target, **headers})


def test_a_redirect(server: Server, folder: Path) -> None:
    server.serve(redirect(server))
    server.answers["store"] = [Answer(drop=CHUNK), Answer()]
    assert_whole(fetch(server, folder), folder)
    assert server.asked["store"] == [(None, None), (f"bytes={CHUNK}-", '"one"')]


@pytest.mark.parametrize("target", ["ftp://127.0.0.1/file", f"/{NAME}"])
def test_a_redirect_to_nowhere(server: Server, folder: Path, target: str) -> None:
    server.serve(Answer(b"", status=302, headers={"Location": target}))
    assert_refused(fetch(server, folder), folder, server.url)


COMMIT = "1" * 40


@pytest.fixture
def hub(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processes: None) -> Callable[..., Outcome]:
    """The server as Hugging Face's, and a download from there. The store is where a file of LFS lies."""
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    answers = {"X-Repo-Commit": COMMIT, "X-Linked-Size": str(SIZE), "X-Linked-ETag": f'"{DIGEST}"'}

    elsewhere = server.url.replace("127.0.0.1", "localhost")

    def fetch(*store: Answer, **options: Any) -> Outcome:
        headers = answers | options.pop("headers", {})
        server.answers["store"], server.asked["store"], server.tokens = list(store), [], []
        for revision in ("main", COMMIT):
            path = f"datasets/{transfer.REPOSITORY}/resolve/{revision}/{NAME}"
            server.answers[path] = [Answer(b"", status=302, headers={"Location": f"{elsewhere}/store", **headers})]
        (outcome,) = download([TASK], tmp_path / "data", **options)
        return outcome

    return fetch


def test_hugging_face(server: Server, tmp_path: Path, hub: Callable[..., Outcome]) -> None:
    folder = tmp_path / "data"
    store = Answer(etag='"of the store"')
    assert_whole(hub(replace(store, drop=CHUNK), store), folder)
    assert server.asked["store"] == [(None, None), (f"bytes={CHUNK}-", None)]
    assert "Bearer hf_secret" in server.tokens
    manifest = json.loads(manifest_path(folder / NAME).read_text())
    assert manifest["url"] == f"{server.url}/datasets/{transfer.REPOSITORY}/resolve/{COMMIT}/{NAME}"
    (folder / NAME).unlink()
    # what broke off in another process
    kept = {"url": "of an earlier commit", "size": SIZE, "validator": DIGEST, "sha256": DIGEST}
    (folder / SIDECAR).write_text(json.dumps(kept))
    (folder / PART).write_bytes(DATA[:CHUNK])
    assert_whole(hub(store), folder)
    assert server.asked["store"] == [(f"bytes={CHUNK}-", None)]


def test_hugging_face_sends_something_else(tmp_path: Path, hub: Callable[..., Outcome]) -> None:
    other = hub(Answer(dataset(TASK, seed=1)))
    assert_refused(other, tmp_path / "data", "its SHA-256 is ", f"the server says {DIGEST}")
    short = hub(Answer(), headers={"X-Linked-Size": str(SIZE - 1)})
    assert (short.good, "should be of size" in short.text) == (False, True)


def test_without_a_network_the_clients_cache_is_taken(
    server: Server, tmp_path: Path, hub: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    refused = hub(Answer())
    assert_refused(refused, tmp_path / "data", "offline")
    place = tmp_path / "hf" / "hub" / f"datasets--{transfer.REPOSITORY.replace('/', '--')}"
    for name in ("blobs", "refs", f"snapshots/{COMMIT}"):
        (place / name).mkdir(parents=True)
    (place / "blobs" / DIGEST).write_bytes(DATA)
    (place / "refs" / "main").write_text(COMMIT)
    (place / "snapshots" / COMMIT / NAME).symlink_to(f"../../blobs/{DIGEST}")
    assert_whole(hub(Answer()), tmp_path / "data")
    assert server.asked["store"] == []


def test_the_client_must_be_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_spec", lambda package: None)
    with pytest.raises(UserError, match=r"not installed here: pip install 'lspc-bench\[.*download\]'"):
        download([TASK], tmp_path)


# What is there already


@pytest.fixture
def earlier(server: Server, folder: Path) -> Path:
    """A file that was downloaded before."""
    server.serve(Answer())
    assert fetch(server, folder).good
    return folder / NAME


@pytest.mark.parametrize(
    ("content", "reason"), [(DATA + b"x", "bytes, its manifest"), (DATA[:-1] + b"x", "its SHA-256 is")]
)
def test_a_changed_file(server: Server, folder: Path, earlier: Path, content: bytes, reason: str) -> None:
    earlier.write_bytes(content)
    outcome = fetch(server, folder)
    assert_refused(outcome, folder, "already there, but ", reason, str(earlier), "--force", left=tuple(WHOLE))
    assert earlier.read_bytes() == content
    server.serve(Answer())
    assert_whole(fetch(server, folder, force=True), folder)


def test_a_file_without_manifest_that_is_no_dataset(server: Server, tmp_path: Path) -> None:
    (tmp_path / NAME).write_text("something else")
    outcome = fetch(server, tmp_path)
    assert_refused(
        outcome, tmp_path, "already there, but it is no usable dataset of BallRun (it is no HDF5", left=(NAME,)
    )
    assert (tmp_path / NAME).read_text() == "something else"


def test_a_file_that_changed_at_its_source(server: Server, folder: Path, earlier: Path) -> None:
    new = dataset(TASK, seed=1)
    server.serve(Answer(new))
    earlier.unlink()
    reasons = ("it changed there", hashlib.sha256(new).hexdigest(), DIGEST, "--force")
    assert_refused(fetch(server, folder), folder, *reasons, left=(f"{NAME}.json",))
    assert_whole(fetch(server, folder, force=True), folder, new)


def test_a_manifest_that_cannot_be_read(server: Server, folder: Path, earlier: Path) -> None:
    manifest_path(earlier).write_text('{\n "file": "')
    assert_refused(
        fetch(server, folder), folder, "already there, but its manifest", "cannot be read", left=tuple(WHOLE)
    )
    earlier.unlink()
    assert_refused(fetch(server, folder), folder, "its manifest", "pass --force", left=(f"{NAME}.json",))
    assert_whole(fetch(server, folder, force=True), folder)


@pytest.mark.parametrize("answer", [Answer(b"<html>"), Answer(status=404), Answer(dataset(OTHER))])
def test_a_good_file_outlives_a_failed_download(server: Server, folder: Path, earlier: Path, answer: Answer) -> None:
    before = manifest_path(earlier).read_bytes()
    server.serve(answer)
    assert_refused(fetch(server, folder, force=True), folder, left=tuple(WHOLE))
    assert (earlier.read_bytes(), manifest_path(earlier).read_bytes()) == (DATA, before)


# Several files, several processes, and this machine


@pytest.mark.parametrize("headers", [{"Content-Length": "9" * 4400}, {"Content-Length": str(10**17)}])
def test_odd_numbers_in_headers_end_one_file_alone(server: Server, folder: Path, headers: dict[str, str]) -> None:
    server.serve(Answer(length=-1, headers=headers))
    server.serve(Answer(content=dataset(OTHER)), task=OTHER)
    outcomes = download([TASK, OTHER], folder, server.url)
    assert [outcome.good for outcome in outcomes] == [False, True]
    assert len(outcomes[0].text) < 2000


def test_a_body_without_an_end(server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "LARGEST", 3 * CHUNK)
    server.serve(Answer(length=-1))
    assert_refused(fetch(server, folder), folder, f"sends more than {3 * CHUNK} bytes")


def test_more_than_the_disk_has_room_for(server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "RESERVE", 2**62)
    server.serve(Answer())
    outcome = fetch(server, folder)
    assert not outcome.good
    assert f"has {SIZE} bytes, and {folder} has room for 0" in outcome.text


def test_one_fails_and_the_others_go_on(server: Server, folder: Path) -> None:
    server.serve(Answer(status=404))
    server.serve(Answer(dataset(OTHER)), task=OTHER)
    outcomes = download([TASK, OTHER], folder, server.url)
    assert [(outcome.task, outcome.good) for outcome in outcomes] == [(TASK, False), (OTHER, True)]
    assert names(folder) == [OTHER.dataset_file, f"{OTHER.dataset_file}.json"]


@pytest.mark.parametrize("jobs", [1, 2])
def test_how_many_at_once(server: Server, folder: Path, jobs: int, processes: None) -> None:
    """Where two are, the first waits for the second."""
    server.serve(Answer(drop=CHUNK, pause=100 if jobs == 2 else 0), Answer())
    server.serve(Answer(dataset(OTHER)), task=OTHER)
    order: list[Task] = []

    def ended(outcome: Outcome) -> None:
        order.append(outcome.task)
        server.released.set()

    download([TASK, OTHER], folder, server.url, jobs=jobs, ended=ended)
    assert order == ([TASK, OTHER] if jobs == 1 else [OTHER, TASK])


def test_another_process_is_at_it(server: Server, tmp_path: Path) -> None:
    server.serve(Answer())
    with (tmp_path / f".{NAME}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert_refused(fetch(server, tmp_path), tmp_path, "another process is downloading it", left=(f".{NAME}.lock",))
    assert_whole(fetch(server, tmp_path), tmp_path)  # what a killed process leaves does not count


def test_a_lock_that_its_holder_just_removed(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fcntl.flock", lambda *_: (tmp_path / f".{NAME}.lock").unlink())
    assert_refused(fetch(server, tmp_path), tmp_path, "another process has been downloading it")


def test_a_full_disk(server: Server, tmp_path: Path) -> None:
    server.serve(Answer())
    (tmp_path / PART).symlink_to("/dev/full")
    outcome = fetch(server, tmp_path)
    assert outcome.text == f"cannot write {tmp_path / NAME}: No space left on device"
    assert not (tmp_path / NAME).exists()


@pytest.fixture
def interruptible() -> Iterator[None]:
    """A job in the background is started with interrupts ignored, and so would be this test."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_an_interrupt_stops_at_once_and_keeps_what_came(
    server: Server, folder: Path, interruptible: None, processes: None
) -> None:
    """While one process waits for content and one for headers."""
    server.serve(Answer(drop=2 * CHUNK, pause=100))
    silent = ThreadingHTTPServer(("127.0.0.1", 0), Handler)  # listens and never answers
    server.serve(Answer(b"", status=302, headers={"Location": f"http://127.0.0.1:{silent.server_port}/"}), task=OTHER)
    arrived = threading.Event()

    def interrupt() -> None:
        arrived.wait(60)
        os.kill(os.getpid(), signal.SIGINT)

    killer = threading.Thread(target=interrupt)
    killer.start()
    with pytest.raises(KeyboardInterrupt):
        download([TASK, OTHER], folder, server.url, moved=lambda task, held, total: held == 2 * CHUNK and arrived.set())
    killer.join()
    silent.server_close()
    assert [name for name in names(folder) if NAME in name] == [PART, SIDECAR]
    assert (folder / PART).read_bytes() == DATA[: 2 * CHUNK]
    server.serve(Answer())
    (outcome,) = download([TASK], folder, server.url)
    assert outcome.good
    assert server.starts() == [2 * CHUNK]


# Wrong input


@pytest.mark.parametrize("mirror", ["ftp://host/data", "host/data", "https://", "http://host:port", "", "file:///data"])
def test_a_mirror_that_is_no_url(tmp_path: Path, mirror: str) -> None:
    with pytest.raises(UserError, match="the mirror must be the http:// or https:// URL of a folder, not"):
        download([TASK], tmp_path / "folder", mirror)
    assert names(tmp_path) == []


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "under"):
        with pytest.raises(UserError, match=r"cannot make the folder .*file"):
            download([TASK], folder, "http://127.0.0.1:9")


def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda *_: False)  # root may write everywhere
    with pytest.raises(UserError, match=r"cannot write to the folder .*--folder names another"):
        download([TASK], tmp_path, "http://127.0.0.1:9")


def test_a_proxy_that_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "nonsense://host")
    (outcome,) = download([TASK], tmp_path, "http://127.0.0.1:9")
    assert_refused(outcome, tmp_path, "nonsense")
