"""`perdure route`: a router's choice from its file alone; no model lies in these folders."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from perdure.cli import app
from perdure.commands import route
from perdure.models.codebook import Codebook, Group, SimilarityConfig
from perdure.protocol.method import Method

pytestmark = pytest.mark.unit
BOOK = Codebook(
    groups=(
        Group(name="red", adapter="default", instructions=("Name the colour of the house.",)),
        Group(name="sum", adapter="sum@2", instructions=("Add both numbers up.",)),
    ),
    accept=0.3,
)


def call(*args: str | Path, code: int = 0) -> Result:
    found = CliRunner().invoke(app, ["route", *map(str, args)])
    assert found.exit_code == code, found.output
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Adapters' folders without weights, and a codebook."""
    for place in (tmp_path / "pool", tmp_path / "pool/sum@2"):
        place.mkdir()
        (place / "adapter_config.json").write_text("{}")
    BOOK.save(tmp_path / "pool")
    return tmp_path / "pool"


def test_a_text_is_routed(folder: Path) -> None:
    told = call(folder, "Add these numbers up.").stdout
    lines = dict(line.split(maxsplit=1) for line in told.splitlines())
    assert lines["adapter"] == "sum@2"
    assert lines["runner-up"] == "red 0.00"
    assert lines["why"] == f"sum at {lines['similarity']}, not below accept 0.30"
    assert "base (no adapter)" in call(folder, "Translate this.").stdout


def test_a_file_of_requests(folder: Path, tmp_path: Path) -> None:
    talk = [{"role": "system", "content": "Add both numbers up."},
            {"role": "user", "content": "1 2"}]  # fmt: skip
    answered = [*talk, {"role": "assistant", "content": "Name the colour of the house."}]
    rows: list[Any] = [{"text": "Name the colour of the car."}, {"prompt": talk},
                       {"messages": answered}, {"prompt": "Translate this."}]  # fmt: skip
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)) + "\n")
    found = json.loads(call(folder, "--file", file, "--json").stdout)["requests"]
    assert [one["adapter"] for one in found] == ["default", "sum@2", "sum@2", None]
    assert [one["fits"] for one in found] == [True, True, True, False]
    assert found[1]["messages"] == found[2]["messages"] == talk
    assert found[1]["similarity"] == pytest.approx(1)
    assert found[1]["runner_up"]["group"] == "red"
    assert len(call(folder, "--file", file).stdout.splitlines()) == 4


def test_a_request_of_text_parts_is_read_and_another_part_refused(
    folder: Path, tmp_path: Path
) -> None:
    parts = [{"type": "text", "text": "Add both"}, {"type": "text", "text": "numbers up."}]
    file = tmp_path / "rows.jsonl"

    def asked(content: list[Any], code: int) -> Any:
        file.write_text(json.dumps({"messages": [{"role": "user", "content": content}]}))
        return call(folder, "--file", file, "--json", code=code)

    found = json.loads(asked(parts, 0).stdout)["requests"][0]
    assert found["adapter"] == "sum@2"
    assert found["messages"] == [{"role": "user", "content": "Add both numbers up."}]
    told = asked([*parts, {"type": "image_url"}], 2).output
    assert 'rows.jsonl:1: message 1: its content has a part of the type "image_url"' in told


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "holds no row"),
        ('{"text": "a"}\n{', "rows.jsonl:2: is not valid JSON"),
        ('{"label": "a"}', "rows.jsonl:1: holds no request"),
        ('{"messages": []}', "rows.jsonl:1: holds no request"),
        ("[1]", "rows.jsonl:1: holds no request"),
        ('{"prompt": [{"role": "user"}]}', "rows.jsonl:1: message 1: has no content"),
        (
            '{"messages": [{"role": "system", "content": "a"}, {"role": "user", "content": 5}]}',
            "rows.jsonl:1: message 2: its content is no text: 5",
        ),
    ],
)
def test_a_file_that_holds_no_requests(text: str, said: str, folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(text)
    assert said in call(folder, "--file", file, code=2).output


def test_every_line_that_holds_no_request_is_told(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    null = {"messages": [{"role": "user", "content": None}]}
    rows: list[Any] = [null, {"text": "a"}, {"label": "b"}, *[null] * 9]
    file.write_text("\n".join(map(json.dumps, rows)))
    told = call(folder, "--file", file, code=2).stderr
    assert "rows.jsonl:1: message 1: has no content" in told
    assert 'write {"role": "user", "content": "..."}' in told
    assert "rows.jsonl:3: holds no request" in told
    assert "rows.jsonl:12: message 1: has no content" in told
    assert "rows.jsonl:2:" not in told
    assert "None" not in told
    calls = {"role": "assistant", "content": None, "tool_calls": [{"type": "function"}]}
    asked = [{"role": "user", "content": "Add both numbers up."}, calls,
             {"role": "tool", "content": "3"}]  # fmt: skip
    file.write_text(json.dumps({"messages": asked}))
    assert call(folder, "--file", file).stdout.startswith("sum@2")


def test_what_cannot_be_routed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "give either TEXT or --file" in call(folder, code=2).output
    assert "no such folder" in call(tmp_path / "none", "x", code=2).output
    assert "no such file" in call(folder, "--file", tmp_path / "none.jsonl", code=2).output
    (folder / "sum@2/adapter_config.json").unlink()
    assert "no adapter is called 'sum@2'" in call(folder, "x", code=2).output
    (folder / "codebook.json").unlink()
    said = call(folder, "x", code=2).output
    assert "no router lies in" in said
    assert route.methods_told() in said

    class Routes(Method):
        def router(self, ctx: Any) -> Any:
            return None

    monkeypatch.setattr("perdure.methods.registry.names", lambda: ["ewc", "routes"])
    monkeypatch.setattr(
        "perdure.methods.registry.load", {"ewc": Method, "routes": Routes}.__getitem__
    )
    assert route.methods_told() == "methods that make one: routes"


def test_an_encoder_that_names_code_needs_the_user_s_word(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A codebook may come from anywhere, and names the encoder that is loaded."""
    monkeypatch.setitem(sys.modules, "sentence_transformers", types.ModuleType("there"))
    encoder = tmp_path / "encoder"
    encoder.mkdir()
    (encoder / "config.json").write_text("{}")
    (encoder / "modules.json").write_text(json.dumps([{"type": "my_code.Encoder", "path": ""}]))
    similarity = SimilarityConfig(name="embedding", encoder=str(encoder))
    BOOK.model_copy(update={"similarity": similarity}).save(folder)
    told = call(folder, "Add these numbers up.", code=2).stderr
    assert "modules.json: names Python code to import, my_code.Encoder" in told
    assert "--trust-remote-code" in told
