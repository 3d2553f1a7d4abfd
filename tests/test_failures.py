"""What the system refuses is told with file, cause and a way on, wherever a run reads or writes.

A whole run is watched first: each place where it makes, writes, syncs, renames or reads a file is a
row of the table. Then a run meets them all, one after the other: at each it must end with a message
and a documented exit code, and be resumed, to the end of the run that met none. The errno of each
is drawn with a seed; PERDURE_FAULTS=all takes all of them at each place.
"""

from __future__ import annotations

import builtins
import errno
import io
import json
import os
import pickle
import random
import re
import shutil
import socket
import ssl
import subprocess
import sys
import urllib.error
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import typer
from safetensors import SafetensorError
from synthetic_runs import make_run
from tiny_runs import write_recipe
from transformers import PreTrainedTokenizerBase
from typer.testing import CliRunner

import perdure
from perdure import recipes
from perdure.cli import app
from perdure.commands.errors import handle_errors
from perdure.commands.progress import Lenient
from perdure.drafts import drafted
from perdure.errors import PerdureError, RunError, TrainingError, UsageError
from perdure.failures import CAUSES, at, explained, reading
from perdure.reports import NullDisplay, write_report
from perdure.run import Run
from perdure.run.damage import verify_scores
from perdure.seals import is_whole, write_sealed

ERRNOS = (
    "EDQUOT", "ENOSPC", "ESTALE", "EIO", "EBUSY", "EXDEV", "EMFILE", "ENAMETOOLONG", "ELOOP",
    "EROFS", "EACCES", "EPERM",
)  # fmt: skip
WHOLE = os.environ.get("PERDURE_FAULTS") == "all"

# --- one error


@pytest.mark.unit
@pytest.mark.parametrize("name", CAUSES)
def test_each_errno_is_one_line_with_file_cause_and_command(name: str, tmp_path: Path) -> None:
    error = OSError(getattr(errno, name), "as C says it", str(tmp_path / "a.json"))
    told = explained(error, tmp_path / "my run")
    assert told is not None
    assert told.exit_code in (4, 5)
    assert re.fullmatch(rf"{tmp_path}/a\.json: [^\n]+", told.what)
    assert CAUSES[name].what in told.what
    assert "as C says it" not in told.what
    assert f"go on with: perdure resume '{tmp_path}/my run'" in told.remedy[0]
    alone = explained(error)
    assert alone is not None
    assert alone.exit_code == (5 if CAUSES[name].kind == "passing" else 2)
    assert "perdure resume" not in str(alone)


@pytest.mark.unit
def test_libraries_quote_the_system_in_their_own_ways(tmp_path: Path) -> None:
    run = tmp_path / "run"
    full = "Error while serializing: I/O error: No space left on device (os error 28)"
    torn = "[enforce fail at inline_container.cc:672] . unexpected pos 367488 vs 367380"
    for error, kind, said in (
        (SafetensorError(full), TrainingError, "no space left on the disk ("),
        (OSError("[Errno 122] Error writing bytes. Detail: [errno 122] Disk quota exceeded"),
         TrainingError, "your disk quota is used up"),
        (OSError("12 requested and 0 written"), TrainingError, "12 requested and 0 written"),
        (RuntimeError(torn), TrainingError, "could not be written to its end"),
        (RuntimeError(f"Parent directory {run} does not exist."), TrainingError, "not be written"),
        (RuntimeError("File x.pt cannot be opened."), TrainingError, "could not be written"),
        (Exception("No space left on device (os error 28)"), TrainingError, "no space left on the"),
        (MemoryError(), TrainingError, "there is not enough memory"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried"), TrainingError, "not enough memory"),
        (RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by "
                      "peer [127.0.0.1]:33"), TrainingError, "another process of this run has"),
    ):  # fmt: skip
        told = explained(error, run)
        assert type(told) is kind, error
        assert told.what.startswith(f"{run}: "), told
        assert said in told.what, told
        assert "perdure resume" in str(told)
    for defect in (ValueError("a defect"), RuntimeError("shapes differ"), KeyError("x"),
                   Exception("a row of 28"),
                   BrokenPipeError(errno.EPIPE, "Broken pipe")):  # fmt: skip
        assert explained(defect, run) is None
    known = UsageError("a: b")
    assert explained(known) is known


@pytest.mark.unit
@pytest.mark.parametrize(
    "error",
    [
        ssl.SSLError(1, "[SSL: CERTIFICATE_VERIFY_FAILED]"),  # 1 is no EPERM here
        socket.gaierror(-2, "Name or service not known"),
        urllib.error.URLError("no host given"),
        ConnectionError("Couldn't reach the Hub"),
        TimeoutError("timed out"),
    ],
)
def test_the_network_is_no_disk(error: OSError, tmp_path: Path) -> None:
    told = explained(error, tmp_path)
    assert isinstance(told, TrainingError)
    assert told.what.startswith(f"{tmp_path}: the network failed: ")
    assert told.remedy == (f"look at the network, then go on with: perdure resume {tmp_path}",)
    alone = explained(error)
    assert alone is not None
    assert alone.what.startswith("the network failed: ")
    assert explained(BrokenPipeError()) is None


@pytest.mark.unit
def test_what_is_damaged_and_was_not_looked_for_is_no_traceback(tmp_path: Path) -> None:
    def work(read: Any) -> None:
        with at(tmp_path / "a.json"):
            read()

    for read in (lambda: json.loads("{"), lambda: b"\xff".decode(), lambda: pickle.loads(b"\xff")):
        with pytest.raises(Exception, match=r".") as caught:
            work(read)
        told = explained(caught.value, tmp_path)
        assert isinstance(told, RunError)
        assert told.what.startswith(f"{tmp_path}/a.json: damaged: it ")
        assert f"put it back from a copy, then go on with: perdure resume {tmp_path}" in str(told)
    short = SafetensorError("Error while deserializing header: header too small")
    told = explained(short)
    assert isinstance(told, UsageError)
    assert "damaged: it is no whole safetensors file" in told.what
    # A defect of ours that has nothing to do with a file stays one.
    assert explained(json.JSONDecodeError("x", "y", 0), tmp_path) is None


@pytest.mark.unit
def test_what_cannot_be_read_is_not_to_be_written_elsewhere_alone(tmp_path: Path) -> None:
    """Whether a command read or wrote is not known here, so both ways on are told."""
    told = explained(PermissionError(errno.EACCES, "", str(tmp_path / "log.jsonl")))
    assert isinstance(told, UsageError)
    assert told.remedy[0] == "give yourself the right to it, then run the command again"
    assert told.remedy[1].startswith("or, where it was to be written, choose another place")


@pytest.mark.unit
def test_another_place_is_asked_for_by_an_option_that_the_command_has(tmp_path: Path) -> None:
    error = OSError(errno.EROFS, "", str(tmp_path))
    other = "or, where it was to be written, choose another place"
    assert explained(error).remedy[1] == f"{other}, for example by --out"
    told = explained(error, option="")
    assert told.remedy == ("have it mounted to write, then run the command again", other)

    @handle_errors
    def without() -> None:
        raise error

    @handle_errors
    def with_it(out: Path | None = None) -> None:
        raise error

    for command, has in ((without, False), (with_it, True)):
        said: list[str] = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("perdure.commands.errors.say", said.append)
            with pytest.raises(typer.Exit):
                command()
        assert ("--out" in said[0]) == has


@pytest.mark.unit
def test_a_full_disk_is_named_by_the_page_or_file_that_it_was_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failed write tells no name of its own."""

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    run = make_run(tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        with pytest.raises(OSError, match="No space") as caught:
            write_report([run], tmp_path / "page.html")
    assert explained(caught.value).what.startswith(f"{tmp_path}/page.html: no space left")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", full)
        with pytest.raises(OSError, match="No space") as caught:
            recipes.copy("two-csv-files", tmp_path / "shop")
    assert explained(caught.value).what.startswith(f"{tmp_path}/shop/two-csv-files.yaml: no space")
    assert not [*(tmp_path / "shop").iterdir()]
    assert len(recipes.copy("two-csv-files", tmp_path / "shop")) == 4  # the same command again


@pytest.mark.unit
def test_a_path_that_none_can_be(tmp_path: Path) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    for path, said in (
        ("a\0b", "a name cannot hold a null character"),
        ("x" * 300, "the name is too long"),
        (str(loop), "a link leads back to itself"),
        ("~nosuchuser/x", "~NAME is the folder of no user of this machine"),
    ):
        for work in (lambda p: p.expanduser().resolve(strict=True).exists(), open):
            if path[0] == "~" and work is open:
                continue
            with pytest.raises((OSError, ValueError, RuntimeError)) as caught:
                work(Path(path))
            told = explained(caught.value)
            assert isinstance(told, UsageError), path
            assert said in told.what


@pytest.mark.unit
@pytest.mark.parametrize("command", ["resume", "report", "run", "compare", "eval"])
@pytest.mark.parametrize("path", ["a\0b", "x" * 300, "loop/x"])
def test_no_command_dies_of_a_path(command: str, path: str, tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        told = CliRunner().invoke(app, [command, path])
    assert isinstance(told.exception, SystemExit), told.exception
    assert told.exit_code in (2, 4), told.output
    assert "error: " in told.stderr.lower()  # typer has words of its own for a null character


@pytest.mark.unit
def test_a_template_that_refuses(tmp_path: Path) -> None:
    import jinja2

    with pytest.raises(jinja2.TemplateError) as caught:
        jinja2.Template("{{ 1 // none.x }}").render()
    told = explained(caught.value)
    assert isinstance(told, UsageError)
    assert told.what == "the model's chat template refuses this: 'None' has no attribute 'x'"


@pytest.mark.unit
def test_what_names_no_file_is_told_of_the_innermost_that_was_at_work(tmp_path: Path) -> None:
    def work() -> None:
        with at("outer"), at("inner"):
            raise SafetensorError("I/O error: Disk quota exceeded (os error 122)")

    with pytest.raises(SafetensorError) as caught:
        work()
    told = explained(caught.value, tmp_path)
    assert told is not None
    assert told.what == "inner: your disk quota is used up"
    # Where nothing is known of the place, none is told, and no room that is free elsewhere.
    nowhere = explained(OSError(errno.ENOSPC, ""))
    assert nowhere is not None
    assert nowhere.what == "no space left on the disk"
    # Of a rename the place is told that the file was to have, not the draft.
    renamed = OSError(errno.EXDEV, "", ".a.12", None, "a")
    assert str(explained(renamed)).startswith("a: it lies on another disk")


@pytest.mark.unit
def test_what_cannot_be_read_is_damage(tmp_path: Path) -> None:
    import zipfile

    (tmp_path / "x").write_bytes(b"\xff\xfe no file of any kind")

    def torch_file() -> None:
        with zipfile.ZipFile(tmp_path / "y", "w") as file:
            file.writestr("a", "b")
        torch.load(tmp_path / "y")

    reads: dict[str, Any] = {
        "no UTF-8 text": lambda: (tmp_path / "x").read_text("utf-8"),
        "no JSON": lambda: json.loads("{"),
        "no whole safetensors": lambda: safetensors.torch.load_file(tmp_path / "x"),
        "no whole archive": lambda: zipfile.ZipFile(tmp_path / "x"),
        "no whole file of torch": torch_file,
        "a pickle": lambda: pickle.loads(b"\xff"),
        "ends too early": lambda: pickle.loads(b""),
        "not found": lambda: (tmp_path / "z").read_bytes(),
    }

    def work(read: Any) -> None:
        with reading(tmp_path, "delete it"):
            read()

    for said, read in reads.items():
        with pytest.raises(RunError, match=f"{tmp_path}.*: damaged: .*{said}") as told:
            work(read)
        assert told.value.remedy == ("delete it",)
    for error in (ValueError("a defect"), OSError(errno.EMFILE, "too many"), UsageError("a: b")):

        def fails(error: Exception = error) -> None:
            raise error

        with pytest.raises(type(error)) as other:
            work(fails)
        assert other.value is error


# --- each place where a run reads or writes

DRAFT = re.compile(r"^\.(.+?)\.\d+-[-.\w]*$")
Place = tuple[str, str]
"""What is done, and to which file or folder of the run, numbers and drafts made alike."""


class Fault:
    """Sees all that is done to files below a folder, and lets one of it fail."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self.seen: dict[Place, int] = {}
        self.at: Place | None = None
        self.number = 0
        self.late = False
        """Whether a write is told to have failed when its file is closed."""

    def meet(self, what: str, path: Any) -> bool:
        """Note what is about to be done; whether it shall fail."""
        name = os.fsdecode(path) if isinstance(path, str | bytes | os.PathLike) else ""
        parts = list(Path(name).absolute().parts)
        home = self.run.absolute()
        while parts and (found := DRAFT.match(parts[-1])):
            parts[-1] = found[1]
        inside = [DRAFT.sub(r"\1", part) for part in parts]
        if tuple(inside[: len(home.parts)]) != home.parts or inside[-1] == "lock":
            return False
        name = "/".join(inside[len(home.parts) :])
        if re.match("checkpoints|work|cache", name):  # of each kind of file in a folder one
            name = re.sub(r"[^/]+\.", "*.", name)
        place = (what, re.sub(r"\d+|-[0-9a-f]{12}", "N", name))
        self.seen[place] = self.seen.get(place, 0) + 1
        if place != self.at:
            return False
        self.at = None
        return True

    def error(self, path: Any) -> OSError:
        return OSError(self.number, os.strerror(self.number), os.fsdecode(path))


class Failing:
    """A file that was opened, and whose writes fail, which do not say of which file they were.

    Or all of them go well, and what the server refuses is told when the file is closed.
    """

    def __init__(self, file: Any, number: int, late: bool = False) -> None:
        self.file, self.number, self.late = file, number, late

    def write(self, *args: Any) -> Any:
        if self.late:
            return self.file.write(*args)
        raise OSError(self.number, os.strerror(self.number))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def __enter__(self) -> Failing:
        return self

    def __exit__(self, *_: Any) -> None:
        self.file.close()
        if self.late:
            raise OSError(self.number, os.strerror(self.number))


@contextmanager
def watched(fault: Fault) -> Iterator[None]:
    """Have `fault` see, and let fail, what happens to files inside the block."""
    patch = pytest.MonkeyPatch()
    real_open, fsync, serialize = open, os.fsync, safetensors.torch.serialize_file
    save, safe_open = torch.save, safetensors.torch.safe_open
    saves = PreTrainedTokenizerBase.save_pretrained

    def opened(file: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
        if isinstance(file, int):
            return real_open(file, mode, *args, **options)
        reads = not set(mode) & set("wax+")
        if fault.meet("read" if reads else "open", file):
            raise fault.error(file)
        fails = not reads and fault.meet("write", file)
        found = real_open(file, mode, *args, **options)
        return Failing(found, fault.number, late=fault.late) if fails else found

    def synced(handle: int) -> None:
        if fault.meet("sync", os.readlink(f"/proc/self/fd/{handle}")):
            raise OSError(fault.number, os.strerror(fault.number))
        fsync(handle)

    def serialized(tensors: Any, file: Any, *args: Any, **options: Any) -> Any:
        if fault.meet("write", file):
            said = f"I/O error: {os.strerror(fault.number)} (os error {fault.number})"
            raise SafetensorError(f"Error while serializing: {said}")
        return serialize(tensors, file, *args, **options)

    def saved(data: Any, file: Any, *args: Any, **options: Any) -> Any:
        if fault.meet("write", file):
            torn = "[enforce fail at inline_container.cc:672] . unexpected pos 7 vs 3"
            raise RuntimeError(f"File {file} cannot be opened." if fault.late else torn)
        return save(data, file, *args, **options)

    def tokenizer(self: Any, folder: Any, *args: Any, **options: Any) -> Any:
        if fault.meet("write", Path(folder) / "tokenizer.json"):  # written by Rust
            raise Exception(f"{os.strerror(fault.number)} (os error {fault.number})")
        return saves(self, folder, *args, **options)

    def read(file: Any, *args: Any, **options: Any) -> Any:
        if fault.meet("read", file):
            raise fault.error(file)
        return safe_open(file, *args, **options)

    def renamed(real: Any) -> Any:
        def call(source: Any, target: Any, **options: Any) -> Any:
            if fault.meet("rename", target):
                raise OSError(fault.number, os.strerror(fault.number), os.fsdecode(source), None,
                              os.fsdecode(target))  # fmt: skip
            return real(source, target, **options)

        return call

    def made(real: Any) -> Any:
        def call(path: Any, *args: Any, **options: Any) -> Any:
            if not os.path.isdir(path) and fault.meet("mkdir", path):
                raise fault.error(path)
            return real(path, *args, **options)

        return call

    for module, name, new in (
        (builtins, "open", opened), (io, "open", opened), (os, "fsync", synced),
        (safetensors.torch, "serialize_file", serialized), (torch, "save", saved),
        (safetensors.torch, "safe_open", read), (os, "mkdir", made(os.mkdir)),
        (PreTrainedTokenizerBase, "save_pretrained", tokenizer),
        (os, "replace", renamed(os.replace)), (os, "rename", renamed(os.rename)),
    ):  # fmt: skip
        patch.setattr(module, name, new)
    try:
        yield
    finally:
        patch.undo()


def end_of(run: Path) -> tuple[Any, ...]:
    """Scores with their rows, and the bytes of the last weights and of the methods' state."""
    opened = Run.open(run)
    scores = [(s["kind"], s["after"], s.get("task"), s["score"]) for s in opened.scores()]
    rows = [opened.items(after, task) for after in range(3) for task in ("colour", "count")]
    last = run / "checkpoints" / "task-2"
    files = [last / "model" / "model.safetensors", last / "perdure_methods.safetensors"]
    return sorted(scores, key=str), rows, [file.read_bytes() for file in files]


def go_on(run: Path, recipe: Path) -> Any:
    words = ["resume", str(run)] if run.exists() else ["run", str(recipe), "--out", str(run)]
    return CliRunner().invoke(app, words)


class Stop(Exception):
    pass


def stop_at_the_end(self: Any, method: str, task: str, step: int, *_: Any, **__: Any) -> None:
    """Of the second task: both checkpoints are there to be read, of a task and inside one."""
    if (task, step) == ("count", 2):
        raise Stop


@pytest.fixture(scope="module")
def straight(
    tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[Place], tuple[Any, ...], Path]:
    """A recipe, all places of its run and of one that is resumed, and the run's end."""
    folder = tmp_path_factory.mktemp("failures")
    recipe = write_recipe(
        folder, tiny_model_dir, train__max_steps=2, save__steps=1, gauges={"every": 0},
        general={"source": "pydoc", "replay_rows": 2, "held_out_rows": 2, "max_tokens": 16},
        method=[{"name": "ewc", "rows": 2}, {"name": "gere", "max_tokens": 16, "insert": 2}],
    )  # fmt: skip
    fault = Fault(folder / "run")
    with watched(fault):
        assert go_on(fault.run, recipe).exit_code == 0
        end = end_of(fault.run)
        places = dict(fault.seen)
    torso = folder / "torso" / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(NullDisplay, "training", stop_at_the_end)
        with pytest.raises(Stop):
            perdure.learn(read := perdure.load_recipe(recipe), Run.create(torso, read))
    again = Fault(shutil.copytree(torso, folder / "again"))
    with watched(again):
        assert go_on(again.run, recipe).exit_code == 0
    assert end_of(again.run) == end
    return recipe, list(places | again.seen), end, torso


@pytest.mark.train
@pytest.mark.timeout(14_400)
def test_a_run_meets_every_fault_and_comes_to_the_same_end(
    straight: tuple[Path, list[Place], tuple[Any, ...], Path], tmp_path: Path
) -> None:
    recipe, places, end, torso = straight
    assert {what for what, _ in places} == {"read", "open", "write", "sync", "rename", "mkdir"}
    assert len(places) > 60
    rng = random.Random(23)
    names = [ERRNOS[i % len(ERRNOS)] for i in range(len(places))]
    rng.shuffle(names)
    table = [(place, n) for place, name in zip(places, names, strict=True)
             for n in (ERRNOS if WHOLE else [name])]  # fmt: skip
    wrong: list[str] = []
    number = idle = 0
    # A run comes to some places once or twice, and a fault that is told late lets it go on past
    # those of others: runs are begun, in turn anew and where one was stopped, until all were met.
    while number < 2 or (table and idle < 3):
        begin = torso if number % 2 else None
        run = tmp_path / f"from-{number}" / "run"
        run.parent.mkdir()
        if begin is not None:
            shutil.copytree(begin, run)
        unmet = []
        for place, name in table:
            fault, before = Fault(run), tmp_path / "before"
            if run.exists():
                shutil.copytree(run, before)
            fault.at, fault.number = place, getattr(errno, name)
            fault.late = rng.random() < 0.5
            with watched(fault):
                told = go_on(run, recipe)
            if fault.at is None:
                if said := complaint(told, run):
                    wrong.append(f"{name} at {place}: {said}: {told.output[-600:]}")
            else:  # it was done before this moment of the run, which is taken back
                unmet.append((place, name))
            if fault.at is not None or (run / "finished").exists():
                shutil.rmtree(run)
                if before.exists():
                    shutil.copytree(before, run)
            shutil.rmtree(before, ignore_errors=True)
        assert go_on(run, recipe).exit_code == 0
        assert end_of(run) == end
        number, idle = number + 1, 0 if len(unmet) < len(table) else idle + 1
        table = unmet
    assert not wrong, "\n\n".join(wrong)
    assert not table, f"never met: {table}"


def complaint(told: Any, run: Path) -> str:
    """What is wrong about the end of a run that met a fault; "" if nothing is."""
    if not (told.exception is None or isinstance(told.exception, SystemExit)):
        return f"a traceback: {told.exception!r}"
    if told.exit_code == 0:  # it can do without, as without a link
        return ""
    if told.exit_code not in (2, 4, 5):
        return f"exit code {told.exit_code}"
    _, _, error = told.stderr.rpartition("error: ")
    if run.exists():
        return "" if f"perdure resume {run}" in error else "no way on"
    return "" if not list(run.parent.iterdir()) else "something was left"


@pytest.mark.unit
@pytest.mark.parametrize("fails", ["picture", "page"])
def test_a_comparison_that_failed_can_be_made_by_the_same_command(
    fails: str, tmp_path: Path
) -> None:
    """Nothing half of it is left, which the next try would not overwrite; and the file is named."""
    run = make_run(tmp_path / "run", rows=4)
    out = tmp_path / "out"
    page, picture = out / "c.html", out / "c.svg"
    words = ["compare", str(run.path), "--out", str(page), "--figure", str(picture)]
    fault = Fault(out)
    fault.at = ("write", "c.svg" if fails == "picture" else "c.html")
    fault.number = errno.EDQUOT
    with watched(fault):
        told = CliRunner().invoke(app, words)
    assert fault.at is None
    assert told.exit_code == 5, told.output
    failed = picture if fails == "picture" else page
    assert told.stderr == (
        f"error: {failed}: your disk quota is used up\n"
        "  free some of it, then run the command again\n"
    )
    assert not list(out.iterdir())
    assert CliRunner().invoke(app, words).exit_code == 0


@pytest.mark.unit
@pytest.mark.parametrize("command", ["compare", "report"])
def test_numbers_beside_a_long_page_replace_no_file_of_yours(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("perdure.reports.full.needed", lambda runs: True)
    run = make_run(tmp_path / "run", rows=4)
    yours = tmp_path / "c-scores.csv"
    yours.write_text("yours")
    words = [command, str(run.path), "--out", str(tmp_path / "c.html")]
    told = CliRunner().invoke(app, words)
    assert told.exit_code == 4, told.output
    assert f"error: {yours}: exists already" in told.stderr
    assert not (tmp_path / "c.html").exists()
    assert yours.read_text() == "yours"
    yours.unlink()
    assert CliRunner().invoke(app, words).exit_code == 0
    assert yours.exists()
    # The page in the run is renewed, and what lies beside it too.
    for _ in range(2 if command == "report" else 0):
        assert CliRunner().invoke(app, words[:2]).exit_code == 0


class Refusing:
    """A file that was opened, and cannot be read, which does not say of which file it was."""

    def __init__(self, number: int) -> None:
        self.number = number

    def read(self, *_: Any) -> Any:
        raise OSError(self.number, os.strerror(self.number))

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: None

    def __enter__(self) -> Refusing:
        return self

    def __exit__(self, *_: Any) -> None:
        pass


@pytest.mark.unit
@pytest.mark.parametrize("file", ["environment.json", "scores.jsonl", "log.jsonl"])
@pytest.mark.parametrize(("name", "code"), [("EACCES", 2), ("EMFILE", 5), ("ESTALE", 5)])
@pytest.mark.parametrize("opens", [True, False])
def test_what_the_system_refuses_to_read_now_is_not_called_damaged(
    file: str, name: str, code: int, opens: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever is told so puts an old copy in its place."""
    run = make_run(tmp_path / "run", rows=4)
    number, real = getattr(errno, name), open

    def refuses(path: Any, *args: Any, **options: Any) -> Any:
        if not str(path).endswith(file):
            return real(path, *args, **options)
        if opens:
            return Refusing(number)
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(builtins, "open", refuses)
    monkeypatch.setattr(io, "open", refuses)
    told = CliRunner().invoke(app, ["report", str(run.path)])
    assert told.exit_code == code, told.output
    assert f"error: {run.path / file}: {CAUSES[name].what}\n" in told.stderr
    assert "damaged" not in told.stderr
    assert "Errno" not in told.stderr


@pytest.mark.unit
def test_a_sum_that_is_no_text_is_of_no_whole_file(tmp_path: Path) -> None:
    write_sealed(tmp_path / "a", "x")
    (tmp_path / "a.sha256").write_bytes(b"\xff")
    assert not is_whole(tmp_path / "a")


@pytest.mark.unit
def test_a_recipe_that_was_half_copied_can_be_copied_again(tmp_path: Path) -> None:
    words = ["recipes", "copy", "two-csv-files", str(tmp_path / "shop")]
    fault = Fault(tmp_path / "shop")
    fault.at, fault.number = ("write", "products.csv"), errno.EIO
    with watched(fault):
        told = CliRunner().invoke(app, words)
    assert told.exit_code == 5, told.output
    assert f"error: {tmp_path}/shop/products.csv: the disk or the network file" in told.stderr
    assert not list((tmp_path / "shop").iterdir())
    assert CliRunner().invoke(app, words).exit_code == 0


@pytest.mark.unit
def test_what_is_made_in_a_draft_is_named_where_a_write_names_nothing(tmp_path: Path) -> None:
    for error in (OSError(errno.EDQUOT, ""), SafetensorError("I/O error (os error 122)")):

        def work(error: Exception = error) -> None:
            with drafted(tmp_path / "model"):
                raise error

        with pytest.raises(type(error)) as caught:
            work()
        assert str(explained(caught.value)).startswith(f"{tmp_path}/model: your disk quota")
    # Where nothing is known, the folder that we are in is not blamed.
    assert str(explained(OSError(errno.EDQUOT, ""))).startswith("your disk quota is")
    assert str(explained(MemoryError())).startswith("there is not enough memory")


@pytest.mark.unit
def test_two_that_begin_one_run_at_once_leave_it_to_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look and the rename the other one appears: nothing says to move it away."""
    (tmp_path / "t.csv").write_text("prompt,answer\n" + "a,b\n" * 9)
    (tmp_path / "r.yaml").write_text(
        "model: {path: none/x}\nmethod: sequential\nstream: {tasks: [{name: a, train: t.csv}]}\n"
    )
    recipe = perdure.load_recipe(tmp_path / "r.yaml")

    def slower(draft: Path) -> None:
        monkeypatch.undo()
        Run.create(tmp_path / "run", recipe)

    with pytest.raises(RunError, match="exists already") as caught:
        Run.create(tmp_path / "run", recipe, fill=slower)
    assert f"go on with it: perdure resume {tmp_path / 'run'}" in caught.value.remedy
    assert [path.name for path in tmp_path.iterdir() if "draft" in path.name] == []
    assert Run.open(tmp_path / "run").state == "interrupted"


@pytest.mark.unit
def test_scores_that_are_lost_while_a_run_learns_are_noticed_at_its_end(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    (run.path / "finished").unlink()
    for after in (1, 2):
        folder = run.draft(after)
        (folder / "weights").write_text("w")
        run.seal(after)
        if after == 1:
            (run.path / "scores.jsonl").unlink()
            run.record({"kind": "task", "after": 2, "task": "a", "metric": "m", "score": 0.5})
    run.finish()
    with pytest.raises(RunError, match=r"scores\.jsonl: damaged: lines that were written are gone"):
        verify_scores(run)


@pytest.mark.unit
def test_a_folder_that_was_deleted_under_the_shell_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(FileNotFoundError) as caught:
        os.getcwd()
    assert str(explained(caught.value)) == (
        "the folder that this command was started in is gone\n"
        "  go to one that exists, see cd, then run the command again"
    )


@pytest.mark.process
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize(("words", "code"), [("methods", 0), ("methods nosuch", 2)])
def test_a_log_on_a_full_disk_does_not_change_the_exit_code(words: str, code: int) -> None:
    """Of an audit 1 would say that the model lost something."""
    command = [sys.executable, "-m", "perdure", *words.split()]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=full, check=False)
    assert done.returncode == code


@pytest.mark.unit
def test_what_is_lost_on_a_full_disk_is_lost_and_a_closed_pipe_is_told() -> None:
    class Broken(io.StringIO):
        number = errno.ENOSPC

        def write(self, text: str) -> int:
            raise OSError(self.number, "no")  # Python makes a BrokenPipeError of EPIPE

    stream = Broken()
    assert Lenient(stream).write("abc") == 3
    Lenient(stream).writelines(["a", "b"])
    stream.number = errno.EPIPE
    with pytest.raises(BrokenPipeError):
        Lenient(stream).write("abc")


@pytest.mark.unit
def test_every_error_has_an_exit_code_that_is_documented() -> None:
    text = (Path(__file__).parents[1] / "docs" / "cli.md").read_text("utf-8")
    told = re.search(r"Exit codes: (.+)", text)
    assert told is not None
    documented = set(map(int, re.findall(r"\b\d+\b", told[1])))
    for kind in (UsageError, RunError, TrainingError):
        assert issubclass(kind, PerdureError)
        assert kind.exit_code in documented
