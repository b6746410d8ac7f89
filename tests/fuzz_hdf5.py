"""Dataset files as no one would write them, against every command that reads one, and against training.

    python tests/fuzz_hdf5.py --cases 3000 --seed 0

Each case writes a good file in DSRL's layout otherwise: other shapes, types, storage, links, attributes, values, and
bytes that were flipped, cut or overwritten. What may come of it is exit status 0, or 2 with words that name the file;
never a traceback, a crash of the HDF5 library, a hang, or memory beyond what a file of this size may claim.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import os
import random
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from fuzzing import fault

from harness.algorithm import Selection
from harness.data.dataset import COLUMNS, KEYS
from harness.data.hdf5 import STUMBLES
from harness.data.sampling import make_sampler
from harness.errors import UserError
from harness.plan import CellData
from harness.tasks import find_task

TASK = find_task("BallRun")
LENGTH, ROWS = 20, 100
"""Of a trajectory and the file."""
SECONDS = 60
"""After which a case counts as hanging."""
MEMORY = 200 << 20
"""Bytes that a case may take beside what the process has; the good file takes 33 MB."""
ADDRESSES = 4 << 30
"""Bytes that it cannot have, so that the machine outlives a finding."""

Put = Callable[..., object]
"""Writes one entry of a file (``file``), by its ``name``."""


@dataclass
class Draft:
    """A file to be: its entries, what is done to it last, and what is done to its bytes."""

    entries: dict[str, Put]
    options: dict[str, Any] = field(default_factory=dict)
    last: list[Callable[[h5py.File], object]] = field(default_factory=list)
    damage: list[Callable[[bytearray], bytearray]] = field(default_factory=list)
    how: list[str] = field(default_factory=list)

    def write(self, path: Path) -> None:
        """Write the file."""
        path.unlink(missing_ok=True)
        with h5py.File(path, "w", **self.options) as file:
            for put in (*(partial(put, name=name) for name, put in self.entries.items()), *self.last):
                with suppress(*STUMBLES):  # what HDF5 itself refuses to write
                    put(file)
        if self.damage:
            content = bytearray(path.read_bytes())
            for change_bytes in self.damage:
                content = change_bytes(content)
            path.write_bytes(content)


def good() -> dict[str, np.ndarray[Any, Any]]:
    """The seven arrays of a file that nothing is wrong with."""
    draws = np.random.default_rng(0)
    walk = draws.normal(size=(ROWS + 1, TASK.observation_size)).astype(np.float32)
    ends = np.arange(ROWS) % LENGTH == LENGTH - 1
    return {
        "observations": walk[:-1],
        "next_observations": walk[1:],
        "actions": draws.uniform(-1, 1, (ROWS, TASK.action_size)).astype(np.float32),
        "rewards": draws.normal(size=ROWS).astype(np.float32),
        "costs": (draws.random(ROWS) < 0.2).astype(np.float32),
        "terminals": np.zeros(ROWS, bool),
        "timeouts": ends,
    }


GOOD = good()
STORED: tuple[dict[str, Any], ...] = (
    {},
    {"chunks": True},
    {"compression": "gzip", "shuffle": True},
    {"compression": "gzip", "fletcher32": True, "chunks": True},
    {"compression": "lzf"},
    {"maxshape": None, "chunks": True},
)


def array(values: Any, **options: Any) -> Put:
    return lambda file, name: file.create_dataset(name, data=values, **options)


def draft(chance: random.Random) -> Draft:
    """A good file, stored in one way or another."""
    stored = chance.choice(STORED)
    options = {"libver": chance.choice(("earliest", "latest", "v110")), "track_order": chance.random() < 0.2}
    if chance.random() < 0.1:
        options["userblock_size"] = 512
    return Draft({key: array(values, **stored) for key, values in GOOD.items()}, options)


def _values(chance: random.Random, file: Draft) -> None:
    """Numbers that no dataset holds."""
    key = chance.choice(KEYS)
    values = GOOD[key].astype(chance.choice((np.float64, np.float32)))
    odd = chance.choice((np.nan, np.inf, -np.inf, 1e300, -1e300, 3e38, 1e-320, -1.0, 2.0, 0.5, -0.0, 1e9))
    places = chance.choice((slice(None), slice(0, 1), slice(-1, None), slice(0, ROWS, 7)))
    with np.errstate(over="ignore"):
        values[places] = odd
    file.entries[key] = array(values)


def _shapes(chance: random.Random, file: Draft) -> None:
    """Other shapes: of one array, or of all."""
    if chance.random() < 0.3:
        rows = chance.choice((0, 1, 2, 99))
        file.entries |= {key: array(values[:rows]) for key, values in GOOD.items()}
        return
    key = chance.choice(KEYS)
    values = GOOD[key]
    others: list[Callable[[], Put]] = [
        lambda: array(values.T),
        lambda: array(values[: chance.randrange(ROWS)]),
        lambda: array(np.concatenate([values, values])),
        lambda: array(values[None]),
        lambda: array(values[..., None]),
        lambda: array(values.reshape((1,) * chance.randint(1, 29) + values.shape)),
        lambda: array(np.zeros((ROWS, 0), np.float32)),
        lambda: array(np.zeros((0, 1), np.float32)),
        lambda: array(np.float32(1)),
        lambda: array(np.zeros((ROWS, chance.choice((1, 2, 3, 500))))),
        lambda: array(h5py.Empty("f4")),
    ]
    file.entries[key] = chance.choice(others)()


def _types(chance: random.Random, file: Draft) -> None:
    """Other types than floats and bools."""
    key = chance.choice(KEYS)
    values, shape = GOOD[key], GOOD[key].shape
    numbers = ("f2", "f8", "f16", ">f4", ">f8", "i1", "u1", "i8", ">u8", "?", "c8", "c16")
    pairs = np.zeros(shape, [("a", "f4"), ("b", "i8")])
    vlen = np.empty(shape, object)
    vlen.ravel()[:] = [np.zeros(2, "f4")] * values.size
    others: list[Put] = [
        array(values.astype(chance.choice(numbers))),
        array(values.astype("S8")),
        array(values.astype(str).astype(object), dtype=h5py.string_dtype()),
        array(pairs),
        array(vlen, dtype=h5py.vlen_dtype("f4")),
        array(np.zeros(shape, "u8").astype(h5py.opaque_dtype(np.dtype("M8[s]")))),
        array(values.astype("i4"), dtype=h5py.enum_dtype({"no": 0, "yes": 1}, "i4")),
        lambda file, name: file.create_dataset(name, shape, h5py.ref_dtype),
        lambda file, name: file.create_dataset(name, shape, h5py.regionref_dtype),
        lambda file, name: file.create_dataset(name, shape[:1], np.dtype(("f4", (3,)))),
        lambda file, name: file.__setitem__(name, np.dtype("f4")),
        array("text"),
        array(np.void(b"\x00\x01")),
    ]
    file.entries[key] = chance.choice(others)


NAMES = (
    "Observations",
    "observations ",
    "obs",
    "x" * 5000,
    "é\u202e\x1b[31m",
    ".hidden",
    "infos",
    "cost",
    "a/b/c",
    "label",
)


def _keys(chance: random.Random, file: Draft) -> None:
    """Keys that are missing, renamed, in a group, or too many."""
    key = chance.choice(KEYS)
    way = chance.randrange(5)
    if way == 0:
        for gone in chance.sample(KEYS, chance.randint(1, 7)):
            file.entries.pop(gone, None)
    elif way == 1:
        file.entries[chance.choice(NAMES)] = file.entries.pop(key, array([0.0]))
    elif way == 2:
        file.entries = {f"group/{name}": put for name, put in file.entries.items()}
    elif way == 3:
        file.entries |= {f"more{number}": array(number) for number in range(chance.choice((1, 10, 300)))}
    else:
        file.entries[chance.choice(NAMES)] = array(chance.choice((GOOD[key], "text", h5py.Empty("f4"))))


def _groups(chance: random.Random, file: Draft) -> None:
    """Groups in the place of arrays, and the layouts of others."""
    key, way = chance.choice(KEYS), chance.randrange(4)
    if way == 0:
        file.entries[key] = lambda file, name: file.create_group(name)
    elif way == 1:
        deep = "/".join([key] * chance.choice((2, 30, 500)))
        file.entries.pop(key, None)
        file.entries[deep] = array(GOOD[key])
    elif way == 2:  # D4RL's
        file.entries.pop("next_observations", None)
        place = chance.choice(("costs", "cost", "infos/cost", "infos/costs", "infos"))
        file.entries[place] = file.entries.pop("costs", array(GOOD["costs"]))
    else:  # Minari's
        file.entries = {}
        for episode in range(chance.randint(1, 4)):
            rows = slice(episode * LENGTH, (episode + 1) * LENGTH)
            last = rows.stop + chance.choice((0, 1, 1, 1))
            ends = np.zeros(LENGTH, bool)
            found = {"observations": GOOD["observations"][rows.start : last], "actions": GOOD["actions"][rows]}
            found |= {"rewards": GOOD["rewards"][rows], "terminations": ends, "truncations": ends}
            found["infos/cost"] = GOOD["costs"][rows.start : chance.choice((last, rows.stop))]
            if chance.random() < 0.3:
                found.pop(chance.choice(list(found)))
            name = chance.choice((f"episode_{episode}", f"episode_{episode}", f"episode_{'9' * 18}"))
            file.entries |= {f"{name}/{key}": array(values) for key, values in found.items()}


def _links(chance: random.Random, file: Draft) -> None:
    """Links: to what is there, to what is not, in circles, and out of the file."""
    key, other = chance.sample(KEYS, 2)
    soft = (other, key, f"/{other}", ".", "/", "..", "gone", f"{other}/x", "group/back", f"./././{other}", "", "//")
    outer = ("gone.hdf5", "file.hdf5", "/dev/zero", "/dev/null", "pipe", "..", "é\x1b[31m", "x" * 3000)
    links: list[Put] = [
        lambda file, name: file.__setitem__(name, h5py.SoftLink(chance.choice(soft) or ".")),
        lambda file, name: file.__setitem__(name, h5py.ExternalLink(chance.choice(outer), chance.choice(soft) or "/")),
        lambda file, name: file.__setitem__(name, file["/"]),
        lambda file, name: file.create_group("group").__setitem__("back", h5py.SoftLink(f"/{name}")),
        lambda file, name: file.__setitem__(name, file[other]),
        partial(_chain, length=chance.choice((2, 15, 16, 17, 100)), end=chance.choice((other, key))),
    ]
    wanted = dict.fromkeys((key, chance.choice(KEYS)))  # in this order, where a set's is another in every process
    for one in (name for name in wanted if name != other):
        file.entries.pop(one, None)
        file.entries[one] = chance.choice(links)


def _chain(file: h5py.File, name: str, length: int, end: str) -> None:
    for place in range(length):
        file[f"link {name} {place}"] = h5py.SoftLink(f"/link {name} {place + 1}" if place + 1 < length else f"/{end}")
    file[name] = h5py.SoftLink(f"/link {name} 0")


def _storage(chance: random.Random, file: Draft) -> None:
    """Content that is not there, lies elsewhere, or is said to be huge."""
    key = chance.choice(KEYS)
    values = GOOD[key]
    rows = chance.choice((ROWS, 10**6, 10**9, 2**31, 2**32 + 1, 2**40, 2**62))
    shape = (rows, *values.shape[1:])
    late = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    late.set_alloc_time(h5py.h5d.ALLOC_TIME_LATE)

    def claim(file: h5py.File, name: str, **options: Any) -> h5py.Dataset:
        return file.create_dataset(name, shape, values.dtype, **options)

    def contiguous(file: h5py.File, name: str) -> None:
        space = h5py.h5s.create_simple((min(rows, 2**50), *values.shape[1:]))
        h5py.h5d.create(file.id, name.encode(), h5py.h5t.py_create(values.dtype), space, late)

    def partly(file: h5py.File, name: str) -> None:
        whole = (min(rows, 10**5), *values.shape[1:])  # an index of more chunks would be written
        written = file.create_dataset(name, whole, values.dtype, chunks=(7, *values.shape[1:]), fillvalue=1)
        written[: chance.randrange(1, ROWS)] = 0

    def filtered(file: h5py.File, name: str) -> None:
        properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        properties.set_chunk((ROWS, *values.shape[1:]))
        properties.set_filter(chance.choice((305, 32001, 32015, 65000)), h5py.h5z.FLAG_OPTIONAL, (1, 2))
        space = h5py.h5s.create_simple(values.shape)
        made = h5py.h5d.create(file.id, name.encode(), h5py.h5t.py_create(values.dtype), space, properties)
        made.write_direct_chunk((0,) * values.ndim, values.tobytes())

    def virtual(file: h5py.File, name: str) -> None:
        layout = h5py.VirtualLayout(shape, values.dtype)
        source = chance.choice((".", "file.hdf5", "gone.hdf5", "/dev/zero", "pipe"))
        layout[:ROWS] = h5py.VirtualSource(source, chance.choice(KEYS), shape=values.shape)
        file.create_virtual_dataset(name, layout)

    def raw(file: h5py.File, name: str) -> None:
        path = chance.choice(("/etc/hostname", "/dev/zero", "pipe", "gone", "file.hdf5"))
        file.create_dataset(name, values.shape, values.dtype, external=[(path, 0, h5py.h5f.UNLIMITED)])

    def dense(file: h5py.File, name: str) -> None:
        file.create_dataset(name, data=np.zeros((10**6, *values.shape[1:]), values.dtype), compression="gzip")

    def truncated(file: h5py.File, name: str) -> None:
        made = file.create_dataset(name, values.shape, values.dtype, chunks=values.shape, compression="gzip")
        made.id.write_direct_chunk((0,) * values.ndim, chance.randbytes(chance.choice((0, 1, 9, 100))))

    ways: list[Put] = [
        *(claim, contiguous, partly, filtered, virtual, raw, dense, truncated),
        partial(claim, chunks=(1, *values.shape[1:])),
        partial(claim, chunks=(min(rows, 10**7), *values.shape[1:]), compression="gzip"),
        partial(claim, chunks=(1000, *values.shape[1:]), maxshape=(None, *values.shape[1:])),
        array(values, compression="gzip", scaleoffset=0) if values.dtype == np.float32 else claim,
    ]
    file.entries[key] = chance.choice(ways)


def _attributes(chance: random.Random, file: Draft) -> None:
    """Attributes of every type, at the file and its arrays; ``label`` is one that is read."""
    values: tuple[Any, ...] = (
        *("DSRL", "x" * 60_000, "\x1b[31mred", "a\nb", "\u202e", "", "é" * 300, b"bytes", b"\xff\xfe", 7, np.nan),
        *(h5py.Empty("f4"), h5py.Empty("S1"), np.zeros(3), np.array(["a", "b"], "S1"), True, np.float16(1)),
        np.zeros(2, [("a", "f4"), ("b", "S3")]),
    )
    name = chance.choice(("label", "label", "label", "env_id", "x" * 300, "é"))
    value = chance.choice(values)

    def set_one(file: h5py.File) -> None:
        place = chance.choice((file, chance.choice(list(file.values())) if len(file) else file))
        if chance.random() < 0.15:
            value_type = h5py.ref_dtype
            file.attrs.create(name, file.ref, dtype=value_type)
        elif chance.random() < 0.1:
            file.attrs.create(name, "text", dtype=h5py.string_dtype(chance.choice(("ascii", "utf-8"))))
        elif isinstance(place, h5py.Group | h5py.Dataset):
            place.attrs[name] = value

    def set_many(file: h5py.File) -> None:
        for number in range(300):
            file.attrs[f"{name}{number}"] = "x" * 100

    file.last.append(chance.choice((set_one, set_one, set_one, set_many)))


def _bytes(chance: random.Random, file: Draft) -> None:
    """Bytes that are flipped, lost, overwritten, moved or too many; most among the first, which say what there is."""

    def place(content: bytearray) -> int:
        most = chance.choice((len(content), min(len(content), 4096), min(len(content), 800)))
        return chance.randrange(most) if most else 0

    def flip(content: bytearray) -> bytearray:
        for _ in range(chance.choice((1, 1, 1, 3, 20))):
            if content:
                content[place(content)] ^= 1 << chance.randrange(8)
        return content

    def extreme(content: bytearray) -> bytearray:
        begin, size = place(content), chance.choice((1, 2, 4, 8))
        content[begin : begin + size] = chance.choice((b"\0", b"\xff", b"\x7f", b"\x80", b"\x01")) * size
        return content

    def overwrite(content: bytearray) -> bytearray:
        begin, rubbish = place(content), chance.randbytes(chance.choice((4, 64, 700)))
        content[begin : begin + len(rubbish)] = rubbish
        return content

    def wipe(content: bytearray) -> bytearray:
        begin, size = place(content), chance.choice((16, 512, 4096))
        content[begin : begin + size] = bytes(len(content[begin : begin + size]))
        return content

    def move(content: bytearray) -> bytearray:
        begin, size = place(content), chance.choice((8, 64, 512))
        source = place(content)
        content[begin : begin + size] = content[source : source + size]
        return content

    ways: list[Callable[[bytearray], bytearray]] = [
        *(flip, flip, flip, extreme, extreme, overwrite, wipe, move),
        lambda content: content[: place(content)],
        lambda content: content + chance.randbytes(1000),
        lambda content: content[: (begin := place(content))] + content[begin + chance.randint(1, 9) :],
    ]
    file.damage += [chance.choice(ways) for _ in range(chance.choice((1, 1, 2)))]


WAYS: tuple[Callable[[random.Random, Draft], None], ...] = (
    *(_values, _shapes, _types, _keys, _groups, _links, _storage, _attributes),
    *(_bytes,) * 6,
)


def case(seed: int, number: int) -> Draft:
    """One thing to try, the same for the same numbers."""
    chance = random.Random(f"{seed} {number}")
    made = draft(chance)
    for way in chance.choices(WAYS, k=chance.choice((1, 1, 1, 2, 3))):
        way(chance, made)
        made.how.append(way.__name__.strip("_"))
    return made


def problem(path: Path) -> str:
    """What is wrong with what comes of a file in this process; empty where nothing is."""
    file, made = ["--file", str(path)], path.with_name("converted.hdf5")
    made.unlink(missing_ok=True)
    for arguments in (
        ["data", "check", "BallRun", *file],
        ["data", "check", "Mine", *file],
        ["data", "describe", "BallRun", *file],
        ["data", "describe", "Mine", *file],
        ["data", "convert", str(path), str(made), "--episode-length", str(LENGTH)],
    ):
        if wrong := fault(arguments, str(path), SECONDS):
            return f"{' '.join(arguments[:3])}: {wrong}"
    try:
        training, held_out = CellData(source="own", file=str(path), holdout=0.2).load(TASK)
    except UserError as error:
        return "" if str(path) in str(error) else f"training: {error}"
    for data in (training, held_out):
        assert data is not None
        for length in (None, 5):
            sampler = make_sampler(data, COLUMNS, [Selection()], length)
            batch = sampler.batch(sampler.draw(0, torch.Generator(), (1, 8)))
            wrong_columns = [name for name, values in batch.items() if not torch.isfinite(values.float()).all()]
            if wrong_columns:
                return f"training: {wrong_columns} are not finite"
    return ""


def apart(path: Path, seconds: int = SECONDS, memory: int = MEMORY, find: Callable[[Path], str] = problem) -> str:
    """The same in a process of its own, which the HDF5 library may crash or hang, and whose memory is measured.

    Call it in a process that has done little else: memory that was freed there, yet not given back to the system,
    can be taken by its child without being counted.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.close(reader)
        faulthandler.disable()
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        addresses, before = _pages()
        resource.setrlimit(resource.RLIMIT_AS, (addresses + ADDRESSES, addresses + ADDRESSES))
        try:
            told = find(path)
        except BaseException as error:
            told = f"{type(error).__name__}: {error}"
        taken = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        if not told and taken > memory:
            told = f"it takes {taken >> 20} MB"
        os.write(writer, json.dumps(told[:5000]).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as answer:
        if not select.select([answer], [], [], seconds)[0]:
            os.kill(child, signal.SIGKILL)
        answered = answer.read()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return f"it ends by signal {os.WTERMSIG(status)}, behind {seconds} s at the most"
    return str(json.loads(answered))


def _pages() -> tuple[int, int]:
    """Bytes of addresses, and of memory, that this process has."""
    addresses, memory = Path("/proc/self/statm").read_text().split()[:2]
    return int(addresses) * resource.getpagesize(), int(memory) * resource.getpagesize()


def explore(folder: Path, cases: int, seed: int) -> Iterator[tuple[int, list[str], str]]:
    """Try so many cases; how each was made, and what is wrong with it. The file of the last lies in the folder."""
    path = folder / "file.hdf5"
    os.mkfifo(folder / "pipe")
    Draft({key: array(values) for key, values in GOOD.items()}).write(path)
    assert problem(path) == ""  # and all is imported, once
    for number in range(cases):
        made = case(seed, number)
        path.unlink(missing_ok=True)
        child = os.fork()  # HDF5 may crash over what it is to write, too; then the file is cut, or missing
        if not child:
            faulthandler.disable()
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            with suppress(*STUMBLES):
                made.write(path)
            os._exit(0)
        os.waitpid(child, 0)
        yield number, made.how, apart(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    counts, wrong, slowest = Counter[str](), 0, 0.0
    begun = last = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        for number, how, told in explore(Path(folder), options.cases, options.seed):
            slowest, last = max(slowest, time.monotonic() - last), time.monotonic()
            counts.update(how)
            if told:
                wrong += 1
                kept = Path(tempfile.gettempdir()) / f"case-{options.seed}-{number}.hdf5"
                shutil.copy(Path(folder) / "file.hdf5", kept)
                print(f"{kept}, {', '.join(how)}: {told}", flush=True)
    print(", ".join(f"{count} {way}" for way, count in sorted(counts.items())))
    print(f"{options.cases} cases, {wrong} wrong, {last - begun:.0f} s, the slowest {slowest:.1f} s")
    sys.exit(int(wrong > 0))


if __name__ == "__main__":
    main()
