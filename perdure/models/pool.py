"""Several adapters on one base, each request answered by the one that is chosen for it.

    pool = AdapterPool.load("runs/week2")               # a run's adapters and their router
    pool = AdapterPool(base, {"sql": folder, ...})      # `peft` folders from elsewhere
    pool.choose([messages, ...])                        # which adapter would answer, and why
    pool.generate([messages, ...])                      # the answers, in the order asked
    pool.generate([messages, ...], adapter="sql")       # named, not routed

`messages` is a conversation before its answer: `[{"role": "user", "content": "..."}]`. A content
may be a list of text parts, `[{"type": "text", "text": "..."}]`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perdure.consent import by_argument
from perdure.errors import ModelError, UsageError, brief
from perdure.models.adapter_checks import (
    CONFIG,
    Finding,
    fit,
    layers_of_base,
    rank_of,
    refuse,
    size,
)
from perdure.models.adapter_lists import BASE, check_known, check_new, names, showing, use
from perdure.models.adapters import join_adapter, reading, saved_base
from perdure.models.chat import Encoder
from perdure.models.codebook import BASE as BASE_NAME
from perdure.models.codebook import nearest
from perdure.models.generate import batches_alike, generate
from perdure.models.instructions import plain
from perdure.models.load import load_base, load_saved, resolve_saved
from perdure.models.precision import in_bf16
from perdure.models.router import Choice as Chosen
from perdure.models.served import (
    Choice,
    Messages,
    Router,
    check_base,
    keep_router,
    names_group,
    router_of,
    verify_saved,
)
from perdure.models.weights import evaluating

if TYPE_CHECKING:
    from perdure.recipe.schema import ModelConfig

logger = logging.getLogger("perdure")


@dataclass(frozen=True)
class Answer:
    """What a pool answers to one request: the text, and which adapter wrote it and why."""

    text: str
    choice: Choice


class AdapterPool:
    """Adapters that Perdure did not train, on one base; `load` takes those of a run.

    Args:
        base: the base model: folder, `.gguf`, `package:NAME` or hub id.
        adapters: a name and a `peft` folder, or a run with one adapter, for each.
        router: chooses among them; None: each request names its adapter.
        precision: type of the base's weights, "fp32" or "bf16".
        trust_remote_code: code that the base brings may run.

    Attributes:
        model, tokenizer: what answers; encoder: how conversations are read.
        findings: what is worth knowing of the adapters, see `perdure.models.adapter_checks`; it is
            logged as well.

    Raises:
        ModelError, RecipeError: an adapter does not fit the base, or adds nothing to it.
        UsageError: no adapter, a name that none can have, or a router that is none or knows others.
    """

    @by_argument
    def __init__(
        self,
        base: str | Path,
        adapters: Mapping[str, str | Path],
        router: Router | None = None,
        *,
        precision: str = "fp32",
        trust_remote_code: bool = False,
    ) -> None:
        from perdure.recipe.schema import ModelConfig

        _refuse_types(adapters, router)
        if router is not None:
            router.check(adapters)
        folders = {name: _folder(name, path) for name, path in adapters.items()}
        config = ModelConfig(path=str(base))
        found, first = [], None
        layers = layers_of_base(config)
        for name, folder in folders.items():
            found += fit(name, folder, layers, config.path, first)
            first = rank_of(folder) if first is None else first
        refuse(found)
        model, tokenizer = load_base(config)
        check_base(router, model)
        if precision == "bf16":
            model = in_bf16(model)
        for name, folder in folders.items():
            check_new(model, name)
            model = join_adapter(folder, model, name)
            found += size(model, name)
        refuse(found)
        use(model, list(folders)[:1], ())
        keep_router(model, router)
        self._begin(model, tokenizer, config, found)

    @classmethod
    @by_argument
    def load(
        cls, path: str | Path, *, precision: str = "fp32", trust_remote_code: bool = False
    ) -> AdapterPool:
        """The adapters and the router of a run, of a checkpoint in it, or of a folder of adapters.

        Args: precision, trust_remote_code: as of the class.

        Raises:
            UsageError: there is no such folder, or it holds no adapters.
            ModelError, RunError, ConsentError: as `perdure.models.load_saved`.
        """
        folder = adapters_in(path)
        model, tokenizer = load_saved(
            folder, precision=precision, trust_remote_code=trust_remote_code
        )
        pool = cls.__new__(cls)
        pool._begin(model, tokenizer, saved_base(folder), [])
        return pool

    def _begin(
        self, model: Any, tokenizer: Any, config: ModelConfig | None, findings: Sequence[Finding]
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.findings = tuple(findings)
        self.encoder = Encoder(tokenizer, **({} if config is None else reading(config)))
        for finding in findings:
            logger.warning("%s: %s", finding.what, finding.remedy)

    @property
    def adapters(self) -> tuple[str, ...]:
        """The names of the adapters, in the order in which they came."""
        return names(self.model)

    @property
    def router(self) -> Router | None:
        """What chooses among them; None: each request names its adapter."""
        return router_of(self.model)

    def choose(self, requests: Sequence[Messages]) -> list[Choice]:
        """Choose an adapter for each conversation, in their order; nothing is written.

        Raises:
            UsageError: a request is no conversation, or the pool has no router.
        """
        asked = [_plain(number, request) for number, request in enumerate(requests, 1)]
        if self.router is None:
            raise UsageError(
                "this pool has no router that chooses an adapter",
                f"name one: adapter={self.adapters[0]!r}; or make the pool with router=...",
            )
        return list(self.router.choose(asked)) if asked else []

    def named(self, name: str) -> Choice:
        """The choice of who names an adapter, a group of the router, or "base"; a group first.

        Raises:
            UsageError: it is no text; or nothing is called so, with the nearest names.
        """
        if not isinstance(name, str):
            raise UsageError(
                f"adapter: {brief(repr(name))}: is no text, and one adapter answers all requests",
                f"give one name, such as {self.adapters[0]!r}, and call once for each adapter; or "
                "leave it out where the pool has a router",
            )
        if name in (BASE_NAME, BASE):
            return Chosen(None, None, 0.0, None, "the base model was asked for")
        if name in self.adapters and not names_group(self.router, name):
            return Chosen(name, None, 0.0, None, f"{name} was asked for")
        by_router = getattr(self.router, "named", None)
        if by_router is not None:
            choice: Choice = by_router(name)
            return choice
        raise UsageError(
            f"no adapter is called {name!r}", nearest(name, [*self.adapters, BASE_NAME])
        )

    def generate(
        self,
        requests: Sequence[Messages],
        max_new_tokens: int = 64,
        adapter: str | None = None,
        *,
        batch_size: int = 8,
        grouped: bool = False,
    ) -> list[Answer]:
        """Answer each conversation by its adapter, greedily; answers are in the requests' order.

        Requests for one adapter share a batch where they fill one. The rest is mixed, as a pass of
        several adapters takes less time than a pass for each; every request is answered as it is
        alone.

        Args:
            max_new_tokens: tokens of an answer at most.
            adapter: it answers all requests, and nothing is routed: an adapter, a group, or "base".
            batch_size: requests in a pass.
            grouped: go adapter by adapter and mix nothing, as where a base's layers take so little
                time that `peft`'s walk through a batch's adapters in each of them counts for more.
                Adapters that no batch can mix (DoRA, whole modules) always go so.

        Raises:
            UsageError: as `choose`; nothing is called `adapter`; or a conversation and its answer
                are longer than the model's context.
        """
        for what, value in (("max_new_tokens", max_new_tokens), ("batch_size", batch_size)):
            remedy = "give a whole number above 0"
            if not isinstance(value, Integral) or isinstance(value, bool):
                raise UsageError(f"{what}: {brief(repr(value))}: is no whole number", remedy)
            if value < 1:
                raise UsageError(f"{what}: {value}: is less than 1", remedy)
        if adapter is None:
            choices = self.choose(requests)
        else:
            choices = [self.named(adapter)] * len(requests)
        prompts = [
            self._prompt(number, request, max_new_tokens)
            for number, request in enumerate(requests, 1)
        ]
        if not prompts:
            return []
        wanted = [BASE if choice.adapter is None else choice.adapter for choice in choices]
        check_known(self.model, [name for name in wanted if name != BASE])
        texts: dict[int, str] = {}
        with evaluating(self.model):
            alike = len(prompts) == 1 or batches_alike(self.model, self.encoder, prompts)
            at_once = batch_size if alike else 1
            for at in _batches(wanted, at_once, grouped or not mixes(self.model)):
                texts |= dict(
                    zip(at, self._batch(prompts, wanted, at, max_new_tokens), strict=True)
                )
        return [Answer(texts[place], choice) for place, choice in enumerate(choices)]

    def _batch(
        self, prompts: Sequence[list[int]], wanted: Sequence[str], at: Sequence[int], tokens: int
    ) -> list[str]:
        """The texts written after the prompts at some places, in one pass."""
        here = [wanted[place] for place in at]
        one = len(set(here)) == 1
        with showing(self.model, here[:1]) if one else nullcontext():
            return generate(
                self.model,
                self.encoder,
                [prompts[place] for place in at],
                max_new_tokens=tokens,
                adapters=None if one else here,
            )

    def _prompt(self, number: int, request: Messages, tokens: int) -> list[int]:
        """Token ids of a request, which leave room for its answer."""
        ids = self.encoder.prompt_ids({"prompt": _plain(number, request), "answer": ""})
        most = int(self.tokenizer.model_max_length)
        if len(ids) + tokens > most:
            raise UsageError(
                f"request {number}: {len(ids):,} tokens and {tokens:,} of an answer, more than "
                f"the model's context of {most:,}",
                "shorten the request, or lower max_new_tokens",
            )
        return ids


def mixes(model: Any) -> bool:
    """Whether `peft` takes a batch of several of a model's adapters: not with DoRA, not with
    adapters on a layer's parameters themselves, and not where one holds whole modules."""
    return not any(
        any(getattr(module, "use_dora", {}).values()) or type(module).__name__ in _ALONE
        for module in model.modules()
    )


_ALONE = ("ParamWrapper", "ModulesToSaveWrapper", "TrainableTokensWrapper")
"""peft's modules that look up every adapter of a batch, or fail where one lacks them."""


def adapters_in(path: str | Path) -> Path:
    """The folder with adapters that a run, a checkpoint or a folder stands for.

    Raises:
        UsageError: there is none.
    """
    folder = resolve_saved(Path(path).expanduser())
    if folder is None:
        raise UsageError(f"{path}: no such folder", "give a run directory, or a folder of adapters")
    if not (folder / CONFIG).is_file():
        raise ModelError(
            f"{path}: holds a whole model and no adapters: {folder} has no {CONFIG}",
            "a pool is of adapters: tuning: lora in the recipe's section model",
        )
    return folder


def _refuse_types(adapters: Any, router: Any) -> None:
    """Raise for adapters that are none by name, and for a router that cannot choose."""
    remedy = 'name some: {"sql": "path/to/adapter"}'
    if not isinstance(adapters, Mapping):
        what = f"adapters: {brief(repr(adapters))}: is no mapping of names to folders"
        raise UsageError(what, remedy)
    if not adapters:
        raise UsageError("a pool needs an adapter", remedy)
    for name, path in adapters.items():
        if not isinstance(name, str):
            what = f"adapter {brief(repr(name))}: its name is no text"
            raise UsageError(what, f'write it in quotes: {{"{brief(name)}": ...}}')
        if not isinstance(path, str | Path):
            raise UsageError(f"adapter {name}: {brief(repr(path))}: is no path", remedy)
    if router is not None and not all(
        callable(getattr(router, hook, None)) for hook in ("choose", "check")
    ):
        raise UsageError(
            f"router: {brief(repr(router))}: is no router",
            "give a perdure.models.router.Router, such as Router.load(FOLDER) of a folder with "
            "codebook.json; or leave it out and name an adapter for each request",
        )


def _folder(name: str, path: str | Path) -> Path:
    place = Path(path).expanduser()
    if place.is_dir() and not (place / CONFIG).is_file():
        place = resolve_saved(place) or place
    if not place.is_dir():
        raise UsageError(
            f"adapter {name}: {path}: no such folder", "give a folder that holds a peft adapter"
        )
    verify_saved(place)
    return place


def _plain(number: int, request: Messages) -> list[dict[str, str]]:
    """A request's messages, without what is none of a request's.

    Raises:
        UsageError: it is no conversation of texts.
    """
    try:
        return plain(request)
    except UsageError as error:
        raise UsageError(f"request {number}: {error.what}", error.remedy) from error


def _batches(wanted: Sequence[str], most: int, grouped: bool) -> Iterator[list[int]]:
    """The places of requests that go through the model together, at most so many.

    As many full batches of one adapter as there are requests for, then the others in batches of
    few adapters each: no more passes than without regard to adapters, and fewer that are mixed.

    Args: grouped: mix none, which may take more passes.
    """
    mixed: list[int] = []
    for name in dict.fromkeys(wanted):
        own = [at for at, other in enumerate(wanted) if other == name]
        alone = len(own) if grouped else len(own) // most * most
        for start in range(0, alone, most):
            yield own[start : min(start + most, alone)]
        mixed += own[alone:]
    for start in range(0, len(mixed), most):
        yield sorted(mixed[start : start + most])
