"""Whatever a server does, a file stands under its name whole and right, or not at all."""

from __future__ import annotations

import fcntl
import hashlib
import io
import itertools
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import h5py
import httpx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.data import download as module
from harness.data.dataset import load_dataset
from harness.data.download import ATTEMPTS, Outcome, download
from harness.data.manifest import manifest_path, verify
from harness.errors import UserError
from harness.tasks import Task, find_task

TASK, OTHER = find_task("BallRun"), find_task("BallCircle")


def dataset(task: Task, seed: int = 0, rows: int = 200) -> bytes:
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
        answers = self.server.answers[path]
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        start, status = 0, answer.status or 200
        if answer.status is None and answer.ranges and asked and self.headers.get("If-Range") == answer.etag:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            status = 206 if start < len(answer.content) else 416
        self.send(answer, status, start)

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
        self.close_connection = answer.drop is not None or length != len(body)


class Server(ThreadingHTTPServer):
    """Answers every path with its next answer, the last one again and again."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: dict[str, list[Answer]] = {}
        self.asked: dict[str, list[tuple[str | None, str | None]]] = {}
        self.encodings: set[str | None] = set()
        self.released = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def serve(self, *answers: Answer, task: Task = TASK) -> None:
        self.answers[task.dataset_file] = list(answers)
        self.asked[task.dataset_file] = []

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


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "made" / "datasets"


def fetch(server: Server, folder: Path, **options: Any) -> Outcome:
    (outcome,) = download([TASK], folder, server.url, first_wait=0.001, **options)
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
    """Give up a download after so many bytes."""
    server.serve(Answer(drop=held, **answer), Answer(drop=0, **answer))
    assert not fetch(server, folder).good
    assert names(folder) == [PART, SIDECAR]
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

DROPS = st.lists(st.one_of(st.integers(1, SIZE), st.just(0)), max_size=8).filter(
    lambda drops: (
        max((len(list(run)) for zero, run in itertools.groupby(drops, bool) if not zero), default=0) < ATTEMPTS
    )
)


@settings(max_examples=60, deadline=None)
@given(drops=DROPS, etag=st.sampled_from(['"one"', None, 'W/"weak"']), modified=st.booleans())
def test_wherever_it_breaks_off_the_file_is_the_same(
    server: Server, tmp_path_factory: pytest.TempPathFactory, drops: list[int], etag: str | None, modified: bool
) -> None:
    folder = tmp_path_factory.mktemp("drops")
    changed = {"Last-Modified": "Sun, 06 Nov 1994 08:49:37 GMT"} if modified else {}
    resumable = etag == '"one"'
    if not resumable:
        drops = drops[: ATTEMPTS - 1]  # every attempt begins anew
    server.serve(*(Answer(drop=drop, etag=etag, headers=changed) for drop in drops), Answer(etag=etag, headers=changed))
    assert_whole(fetch(server, folder), folder)
    if resumable:
        assert server.starts() == [held for held in itertools.accumulate([0, *drops]) if held < SIZE]


def test_only_what_is_missing_is_asked_for(server: Server, folder: Path) -> None:
    leave_part(server, folder, 1000)
    server.serve(Answer())
    assert_whole(fetch(server, folder), folder)
    assert server.asked[NAME] == [("bytes=1000-", '"one"')]


def test_what_is_complete_is_not_asked_for_again(server: Server, folder: Path) -> None:
    leave_part(server, folder, 1000)
    (folder / PART).write_bytes(DATA)  # killed before the check
    server.serve(Answer(status=500))
    assert_whole(fetch(server, folder), folder)
    assert server.asked[NAME] == []


def test_ranges_may_come_in_pieces(server: Server, folder: Path) -> None:
    server.serve(Answer(drop=100), Answer(most=3000))
    assert_whole(fetch(server, folder), folder)
    assert server.starts()[:4] == [0, 100, 3100, 6100]


def test_a_server_without_ranges_is_asked_for_all_again(server: Server, folder: Path) -> None:
    server.serve(Answer(ranges=False, drop=5000), Answer(ranges=False))
    assert_whole(fetch(server, folder), folder)
    assert server.starts() == [0, 5000]


def test_a_server_without_ranges_that_always_drops_is_given_up(server: Server, folder: Path) -> None:
    server.serve(Answer(ranges=False, drop=5000))
    outcome = fetch(server, folder)
    assert not outcome.good
    assert len(server.asked[NAME]) == ATTEMPTS + 1  # the first brought something


@pytest.mark.parametrize("honest", [True, False], ids=["if-range", "ignores if-range"])
def test_another_version_begins_anew(server: Server, folder: Path, honest: bool) -> None:
    new = dataset(TASK, seed=1)
    leave_part(server, folder, 4000)
    changed = Answer(new, etag='"two"')
    mixed = replace(changed, status=206, headers={"Content-Range": f"bytes 4000-{SIZE - 1}/{SIZE}"})
    server.serve(changed) if honest else server.serve(mixed, changed)
    outcome = fetch(server, folder)
    assert_whole(outcome, folder, new)
    assert server.starts() == ([4000] if honest else [4000, 0])


@pytest.mark.parametrize(
    "answer",
    [
        Answer(total=SIZE + 1),
        Answer(status=206, headers={"Content-Range": f"bytes 0-{SIZE - 1}/{SIZE}"}),
        Answer(status=206),
        Answer(status=416),
        Answer(status=416, total=4000),
    ],
)
def test_a_range_that_does_not_go_on_begins_anew(server: Server, folder: Path, answer: Answer) -> None:
    leave_part(server, folder, 4000)
    server.serve(answer, Answer())
    assert_whole(fetch(server, folder), folder)
    assert server.starts() == [4000, 0]


def test_status_416_can_mean_that_it_is_complete(server: Server, folder: Path) -> None:
    """The length was not announced, and the process was killed after the last byte."""
    folder.mkdir(parents=True)
    (folder / PART).write_bytes(DATA)
    sidecar = {"url": f"{server.url}/{NAME}", "size": None, "validator": '"one"', "sha256": None}
    (folder / SIDECAR).write_text(json.dumps(sidecar))
    server.serve(Answer())
    assert_whole(fetch(server, folder), folder)
    assert server.starts() == [SIZE]


@pytest.mark.parametrize("sidecar", [None, "{", "[]", '{"url": 1}', "{URL}"])
def test_a_part_of_unknown_origin_begins_anew(server: Server, folder: Path, sidecar: str | None) -> None:
    leave_part(server, folder, 4000)
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


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_passing_trouble(server: Server, folder: Path, status: int) -> None:
    server.serve(*[Answer(b"trouble", status=status)] * (ATTEMPTS - 1), Answer())
    assert_whole(fetch(server, folder), folder)


def test_lasting_trouble(server: Server, folder: Path) -> None:
    server.serve(Answer(status=503))
    outcome = fetch(server, folder)
    url = f"{server.url}/{NAME}"
    assert outcome.text == f"{url}: status 503 Service Unavailable; gave up after 5 attempts without progress"
    assert (len(server.asked[NAME]), names(folder)) == (ATTEMPTS, [])


def test_attempts_that_bring_something_do_not_count(server: Server, folder: Path) -> None:
    drops = [Answer(drop=SIZE // 20)] * 15
    trouble = [Answer(status=500)] * (ATTEMPTS - 1)
    server.serve(*itertools.chain.from_iterable((*trouble, drop) for drop in drops), Answer())
    assert_whole(fetch(server, folder), folder)


def test_the_server_may_ask_to_wait(server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.serve(Answer(status=429, headers={"Retry-After": "1"}), Answer())
    begin = time.monotonic()
    assert_whole(fetch(server, folder), folder)
    assert time.monotonic() - begin >= 1

    (folder / NAME).unlink()
    monkeypatch.setattr(module, "LONGEST_WAIT", 0.01)
    server.serve(Answer(status=429, headers={"Retry-After": "86400"}), Answer())
    begin = time.monotonic()
    assert_whole(fetch(server, folder), folder)
    assert time.monotonic() - begin < 1


@pytest.mark.parametrize(
    ("text", "low", "high"),
    [
        ("", 0, 0),
        ("120", 120, 120),
        ("soon", 0, 0),
        ("-5", 0, 0),
        ("Sun, 06 Nov 2094 08:49:37 -0000", 0, 0),
        (format_datetime(module.datetime.now(module.UTC).replace(year=2099), usegmt=True), 1e9, 1e10),
    ],
)
def test_retry_after(text: str, low: float, high: float) -> None:
    assert low <= module._retry_after(httpx.Response(503, headers={"Retry-After": text})) <= high


def test_nobody_answers(folder: Path) -> None:
    (outcome,) = download([TASK], folder, "http://127.0.0.1:9", first_wait=0.001)
    assert not outcome.good
    assert "Connection refused; gave up after 5 attempts" in outcome.text
    assert names(folder) == []


def test_a_server_that_hangs(server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TIMEOUT", httpx.Timeout(0.1))
    server.serve(Answer(drop=3000, pause=5), Answer())
    assert_whole(fetch(server, folder), folder)
    assert server.starts() == [0, 3000]


# Wrong from the server


def assert_refused(outcome: Outcome, folder: Path, *reasons: str, left: tuple[str, ...] = ()) -> None:
    assert not outcome.good
    assert [reason for reason in reasons if reason not in outcome.text] == []
    assert names(folder) == list(left)


@pytest.mark.parametrize("status", [401, 403, 404, 410, 204, 304])
def test_what_is_not_there_fails_at_once(server: Server, folder: Path, status: int) -> None:
    server.serve(Answer(b"", status=status))
    outcome = fetch(server, folder)
    assert_refused(outcome, folder, f"{server.url}/{NAME}: status {status} ", "--mirror")
    assert len(server.asked[NAME]) == 1


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"<html>Please log in</html>", "it is no HDF5 file"),
        (b"", "it is empty"),
        (dataset(OTHER), f"observations has shape (200, {OTHER.observation_size}), BallRun wants"),
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
    assert_refused(fetch(server, folder), folder, "gave up after 5 attempts")


@pytest.mark.parametrize("length", [0, 100, SIZE - 1])
def test_an_announced_length_that_is_too_short(server: Server, folder: Path, length: int) -> None:
    server.serve(Answer(length=length))
    assert_refused(fetch(server, folder), folder, "it is no usable dataset")


def test_more_than_the_announced_total(server: Server, folder: Path) -> None:
    leave_part(server, folder, 4000)
    server.serve(Answer(status=206, headers={"Content-Range": f"bytes 4000-{SIZE - 1}/{SIZE}"}))  # but sends all
    outcome = fetch(server, folder)
    assert_refused(outcome, folder, f"sends more than the {SIZE} bytes that it announced")


def test_no_announced_length(server: Server, folder: Path) -> None:
    server.serve(Answer(length=-1))
    assert_whole(fetch(server, folder), folder)
    (folder / NAME).unlink()
    server.serve(Answer(length=-1, drop=SIZE // 2))
    assert_refused(fetch(server, folder, force=True), folder, "it is truncated or damaged", left=(f"{NAME}.json",))


# Redirects as Hugging Face gives them


def redirect(server: Server, **headers: str) -> Answer:
    server.answers["store"] = [Answer()]
    server.asked["store"] = []
    linked = {name.replace("_", "-"): value for name, value in headers.items()}
    return Answer(b"", status=302, etag=None, headers={"Location": f"{server.url}/store", **linked})


@pytest.mark.parametrize("digest", [f'"{DIGEST}"', DIGEST.upper(), '"0123456789012345678901234567890123456789"', '""'])
def test_a_redirect_with_the_right_or_no_sha256(server: Server, folder: Path, digest: str) -> None:
    server.serve(redirect(server, X_Linked_Size=str(SIZE), X_Linked_ETag=digest))
    server.answers["store"] = [Answer(drop=700), Answer()]
    assert_whole(fetch(server, folder), folder)
    assert server.asked["store"] == [(None, None), ("bytes=700-", '"one"')]
    assert server.starts() == [0, 700]


def test_a_redirect_with_another_sha256(server: Server, folder: Path) -> None:
    server.serve(redirect(server, X_Linked_Size=str(SIZE), X_Linked_ETag=f'"{"0" * 64}"'))
    assert_refused(fetch(server, folder), folder, f"its SHA-256 is {DIGEST}, the server says {'0' * 64}")


def test_a_redirect_with_another_size(server: Server, folder: Path) -> None:
    server.serve(redirect(server, X_Linked_Size=str(SIZE - 1)))
    assert_refused(fetch(server, folder), folder, f"sends {SIZE} bytes, though its X-Linked-Size is {SIZE - 1}")


def test_a_redirect_tells_the_length_that_the_store_does_not(server: Server, folder: Path) -> None:
    server.serve(redirect(server, X_Linked_Size=str(SIZE)))
    server.answers["store"] = [Answer(length=-1, drop=700), Answer()]
    assert_whole(fetch(server, folder), folder)
    assert server.starts() == [0, 700]


@pytest.mark.parametrize("target", ["ftp://127.0.0.1/file", f"/{NAME}"])
def test_a_redirect_to_nowhere(server: Server, folder: Path, target: str) -> None:
    server.serve(Answer(b"", status=302, headers={"Location": target}))
    assert_refused(fetch(server, folder), folder, f"{server.url}/{NAME} redirects to nowhere: ")


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


@pytest.mark.parametrize(
    "headers",
    [
        {"X-Linked-Size": "9" * 4400},
        {"X-Linked-Size": str(10**17)},
        {"Retry-After": "9" * 4400, "X-Linked-Size": "1"},
    ],
)
def test_odd_numbers_in_headers_end_one_file_alone(server: Server, folder: Path, headers: dict[str, str]) -> None:
    server.serve(Answer(length=-1, headers=headers))
    server.serve(Answer(content=dataset(OTHER)), task=OTHER)
    outcomes = download([TASK, OTHER], folder, server.url, first_wait=0.001)
    assert [outcome.good for outcome in outcomes] == [False, True]
    assert len(outcomes[0].text) < 2000


def test_a_body_without_an_end(server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LARGEST", 1000)
    server.serve(Answer(length=-1))
    assert_refused(fetch(server, folder), folder, "sends more than 1000 bytes")


def test_more_than_the_disk_has_room_for(server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RESERVE", 2**62)
    server.serve(Answer())
    outcome = fetch(server, folder)
    assert not outcome.good
    assert f"has {SIZE} bytes, and {folder} has room for 0" in outcome.text


def test_one_fails_and_the_others_go_on(server: Server, folder: Path) -> None:
    server.serve(Answer(status=404))
    server.serve(Answer(dataset(OTHER)), task=OTHER)
    outcomes = download([TASK, OTHER], folder, server.url, first_wait=0.001)
    assert [(outcome.task, outcome.good) for outcome in outcomes] == [(TASK, False), (OTHER, True)]
    assert names(folder) == [OTHER.dataset_file, f"{OTHER.dataset_file}.json"]


@pytest.mark.parametrize("jobs", [1, 2])
def test_how_many_at_once(server: Server, folder: Path, jobs: int) -> None:
    server.serve(Answer(drop=100, pause=0.5), Answer())
    server.serve(Answer(dataset(OTHER)), task=OTHER)
    order: list[Task] = []
    download(
        [TASK, OTHER], folder, server.url, jobs=jobs, first_wait=0.001, ended=lambda outcome: order.append(outcome.task)
    )
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


def test_an_interrupt_stops_at_once_and_keeps_what_came(server: Server, folder: Path, interruptible: None) -> None:
    """While one thread waits for content, one for headers and one for its next attempt."""
    third = find_task("CarRun")
    server.serve(Answer(drop=5000, pause=20))
    server.serve(Answer(b"", status=500, headers={"Retry-After": "20"}), task=third)
    silent = ThreadingHTTPServer(("127.0.0.1", 0), Handler)  # listens and never answers
    server.serve(Answer(b"", status=302, headers={"Location": f"http://127.0.0.1:{silent.server_port}/"}), task=OTHER)
    arrived = threading.Event()

    def interrupt() -> None:
        arrived.wait(10)
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGINT)

    killer = threading.Thread(target=interrupt)
    killer.start()
    begin = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        download([TASK, OTHER, third], folder, server.url, moved=lambda *_: arrived.set())
    assert time.monotonic() - begin < 3
    killer.join()
    silent.server_close()
    assert names(folder) == [PART, SIDECAR]
    assert (folder / PART).read_bytes() == DATA[:5000]
    server.serve(Answer())
    assert_whole(fetch(server, folder), folder)
    assert server.starts() == [5000]


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
    with pytest.raises(UserError, match=r"the proxy that the environment sets does not work: .*nonsense"):
        download([TASK], tmp_path, "http://127.0.0.1:9")
