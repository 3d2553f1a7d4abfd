"""`perdure route`: which of a run's adapters answers a request, and why; nothing is answered."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from perdure.commands.errors import handle_errors
from perdure.commands.options import Json, Trust
from perdure.errors import DataError, RecipeError, UsageError, brief, typed
from perdure.failures import utf8_text
from perdure.paths import no_file

KEYS = ("messages", "prompt", "text")
"""Of a row of a file the first of these that it has is the request."""


@handle_errors
def route(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Run, checkpoint or adapters' folder.")],
    text: Annotated[
        str | None, typer.Argument(metavar="[TEXT]", help="What a user would write.")
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option(metavar="ROWS.jsonl", help="Requests: messages, prompt or text a line."),
    ] = None,
    trust_remote_code: Trust = False,
    as_json: Json = False,
) -> None:
    """Show which adapter answers a text, and why.

    Of the base model nothing is loaded: the router and its encoder are enough.
    """
    from perdure.models.served import open_router
    from perdure.reports.output import emit, first_process, lines, working

    if (text is None) == (file is None):
        raise UsageError("give either TEXT or --file", "perdure route RUN 'Translate this.'")
    asked = requests_in(file) if file is not None else [as_request(text)]
    with working():
        router, folder = open_router(run)
        if router is None:
            raise UsageError(
                f"{run}: no router lies in {folder}: all requests go to the adapters that are "
                f"active; {methods_told()}",
                f"ask its model itself: {typed('predict', run, 'FILE')}",
            )
        found = [
            told(request, choice)
            for request, choice in zip(asked, router.choose(asked), strict=True)
        ]
    if as_json:
        emit({"requests": found})
    elif first_process() and file is None:
        lines([(key, value) for key, value in shown(found[0]).items() if value])
    elif first_process():
        lines([(one["adapter"], f"{one['why']} | {one['text']}") for one in map(shown, found)])


def as_request(text: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


def requests_in(file: Path) -> list[list[dict[str, Any]]]:
    """The requests of a .jsonl file: of a conversation that ends in an answer what is before it.

    Raises:
        DataError: it cannot be read, is empty, or a line holds no request; RecipeError: several
            lines hold none, all are listed.
    """
    if why := no_file(file):
        raise DataError(f"{file}: {why}", "give a .jsonl file")
    written = utf8_text(file, "give a .jsonl file", DataError)
    found, wrong = [], []
    for number, line in enumerate(written.split("\n"), 1):
        if line.strip():
            try:
                found.append(_request(f"{file}:{number}", line))
            except UsageError as error:
                wrong.append(error)
    if wrong:
        raise wrong[0] if len(wrong) == 1 else RecipeError(wrong, None)
    if not found:
        raise DataError(f"{file}: holds no row", 'write {"text": "..."}, one a line')
    return found


def _request(place: str, line: str) -> list[dict[str, Any]]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise DataError(f"{place}: is not valid JSON: {error}", "one object a line") from error
    given = next((row[key] for key in KEYS if key in row), None) if isinstance(row, dict) else None
    if isinstance(given, str):
        return as_request(given)
    if isinstance(given, list) and all(isinstance(turn, dict) and "role" in turn for turn in given):
        turns = given[:-1] if given and given[-1]["role"] == "assistant" else given
        if turns:
            return [
                _read(turn, f"{place}: message {number}") for number, turn in enumerate(turns, 1)
            ]
    raise DataError(
        f"{place}: holds no request", f"give one of {', '.join(KEYS)}: a text, or a conversation"
    )


def _read(turn: dict[str, Any], where: str) -> dict[str, Any]:
    """A message with its text; only one that calls tools may be without."""
    from perdure.models.instructions import joined

    content = turn.get("content")
    if content is None and turn.get("tool_calls"):
        content = ""
    if isinstance(content, list):
        content = joined(content, where)
    if not isinstance(content, str):
        what = "has no content" if content is None else f"its content is no text: {brief(content)}"
        raise DataError(f"{where}: {what}", 'write {"role": "user", "content": "..."}')
    return {**turn, "content": content}


def told(request: list[dict[str, Any]], choice: Any) -> dict[str, Any]:
    """A choice for `--json`; a router of somebody's own may not say all of it."""
    second = getattr(choice, "runner_up", None)
    return {
        "messages": request,
        "adapter": choice.adapter,
        "group": getattr(choice, "group", None),
        "similarity": choice.similarity,
        "runner_up": None if second is None else {"group": second[0], "similarity": second[1]},
        "fits": getattr(choice, "fits", None),
        "why": choice.why,
    }


def shown(one: dict[str, Any]) -> dict[str, str]:
    """A choice for people."""
    second = one["runner_up"]
    return {
        "text": brief(one["messages"][-1].get("content")),
        "adapter": one["adapter"] or "base (no adapter)",
        "similarity": f"{one['similarity']:.2f}",
        "runner-up": "" if second is None else f"{second['group']} {second['similarity']:.2f}",
        "why": one["why"],
    }


def methods_told() -> str:
    """Which built-in methods make a router, in words."""
    from perdure.methods import registry
    from perdure.protocol.method import Method

    names = [name for name in registry.names() if registry.load(name).router is not Method.router]
    if not names:
        return "no built-in method makes one, and one of your own does by its hook `router`"
    return f"methods that make one: {', '.join(names)}"
