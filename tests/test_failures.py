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
import os
import random
import re
import shutil
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
from typer.testing import CliRunner

import perdure
from perdure import recipes
from perdure.cli import app
from perdure.commands.errors import handle_errors
from perdure.errors import PerdureError, RunError, TrainingError, UsageError
from perdure.failures import CAUSES, at, explained, reading
from perdure.reports import NullDisplay, write_report
from perdure.run import Run

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
                   BrokenPipeError(errno.EPIPE, "Broken pipe")):  # fmt: skip
        assert explained(defect, run) is None
    known = UsageError("a: b")
    assert explained(known) is known


@pytest.mark.unit
def test_another_place_is_asked_for_by_an_option_that_the_command_has(tmp_path: Path) -> None:
    error = OSError(errno.EROFS, "", str(tmp_path))
    assert explained(error).remedy == ("choose another place, for example by --out",)
    told = explained(error, option="")
    assert told.remedy == ("have it mounted to write, or choose another place",)

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
    assert len(recipes.copy("two-csv-files", tmp_path / "shop")) == 3  # the same command again


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
    import json
    import pickle
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

    def meet(self, what: str, path: Any) -> bool:
        """Note what is about to be done; whether it shall fail."""
        name = os.fsdecode(path) if isinstance(path, str | bytes | os.PathLike) else ""
        parts = list(Path(name).absolute().parts)
        home = self.run.absolute()
        while parts and (found := DRAFT.match(parts[-1])):
            parts[-1] = found[1]
        inside = [DRAFT.sub(r"\1", part) for part in parts]
        if tuple(inside[: len(home.parts)]) != home.parts or "lock" in inside[-1]:
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
    """A file that was opened, and whose writes fail, which do not say of which file they were."""

    def __init__(self, file: Any, number: int) -> None:
        self.file, self.number = file, number

    def write(self, *_: Any) -> int:
        raise OSError(self.number, os.strerror(self.number))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def __enter__(self) -> Failing:
        return self

    def __exit__(self, *_: Any) -> None:
        self.file.close()


@contextmanager
def watched(fault: Fault) -> Iterator[None]:
    """Have `fault` see, and let fail, what happens to files inside the block."""
    patch = pytest.MonkeyPatch()
    real_open, fsync, serialize = open, os.fsync, safetensors.torch.serialize_file
    save, safe_open = torch.save, safetensors.torch.safe_open

    def opened(file: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
        if isinstance(file, int):
            return real_open(file, mode, *args, **options)
        reads = not set(mode) & set("wax+")
        if fault.meet("read" if reads else "open", file):
            raise fault.error(file)
        fails = not reads and fault.meet("write", file)
        found = real_open(file, mode, *args, **options)
        return Failing(found, fault.number) if fails else found

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
            raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 7 vs 3")
        return save(data, file, *args, **options)

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
@pytest.mark.timeout(1200)
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
    for number, begin in enumerate((None, torso)):
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
        table = unmet
    assert not table, f"never met: {table}"
    assert not wrong, "\n\n".join(wrong)


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
def test_every_error_has_an_exit_code_that_is_documented() -> None:
    text = (Path(__file__).parents[1] / "docs" / "cli.md").read_text("utf-8")
    told = re.search(r"Exit codes: (.+)", text)
    assert told is not None
    documented = set(map(int, re.findall(r"\b\d+\b", told[1])))
    for kind in (UsageError, RunError, TrainingError):
        assert issubclass(kind, PerdureError)
        assert kind.exit_code in documented
