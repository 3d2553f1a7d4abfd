"""The typed recipe: what a YAML file may say, and what each key does.

    recipe = load_recipe("shop.yaml", ["method.name=gere", "train.learning_rate=5e-5"])

A mistake is reported with its line and, where a name is misspelt, the name probably meant; all
mistakes of a recipe at once (`perdure.recipe.validate`), before anything is loaded. Paths in a
recipe are relative to its folder, paths on the command line to the current one; a loaded recipe
holds them absolute.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, PrivateAttr, ValidationInfo, field_validator

from perdure.errors import task_named
from perdure.recipe.data import StreamConfig
from perdure.recipe.general import GeneralConfig
from perdure.recipe.mistakes import Key, Mistake
from perdure.recipe.rl import RLConfig
from perdure.recipe.scoring import GaugesConfig, ScoringConfig, StopConfig
from perdure.recipe.section import Judge, Section, mistakes_error
from perdure.recipe.yaml import inline

Optimizer = Literal[
    "adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "adamw_8bit", "paged_adamw_8bit",
    "lion_32bit", "lion_8bit", "adamw_torch_8bit", "stable_adamw",
]  # fmt: skip
Schedule = Literal[
    "constant", "linear", "cosine", "cosine_with_restarts", "polynomial", "constant_with_warmup",
    "inverse_sqrt",
]  # fmt: skip
Tracker = Literal["tensorboard", "wandb", "mlflow", "trackio", "comet_ml", "clearml", "swanlab"]


_NOT_VARIABLES = {
    "add_generation_prompt", "chat_template", "continue_final_message", "conversation",
    "documents", "max_length", "messages", "padding", "return_assistant_tokens_mask",
    "return_dict", "return_tensors", "tokenize", "tokenizer_kwargs", "tools", "truncation",
}  # fmt: skip
"""Arguments of `apply_chat_template` that no recipe may give."""


class LoraConfig(Section):
    r: int = Field(8, gt=0, description="rank of the adapters")
    alpha: int = Field(16, gt=0, description="scale; the update is multiplied by alpha / r")
    dropout: float = Field(0.0, ge=0, lt=1, description="share of adapter inputs dropped")
    target_modules: list[str] | Literal["all-linear"] = Field(
        "all-linear", description="names of the modules that get an adapter"
    )


class HeadConfig(Section):
    type: Literal["cosine", "linear"] = Field("cosine", description="how a class is scored")
    scale: float = Field(1.0, gt=0, description="factor of a cosine head's logits")
    learn_scale: bool = Field(False, description="train that factor, each head its own")
    preallocate: int | Literal["all"] = Field(
        0, description="classes in the softmax from the first task on, or all of the stream's"
    )
    learning_rate: float = Field(1e-3, gt=0, description="of the heads; the body's is in train")
    weight_decay: float = Field(1e-2, ge=0, description="of the heads; the body's is in train")

    def mistakes(self) -> Iterator[Mistake]:
        if isinstance(self.preallocate, int) and self.preallocate < 0:
            yield Mistake(("preallocate",), "must be 0 or more, or all")
        if self.type == "linear":
            for key, default in (("scale", 1.0), ("learn_scale", False)):
                if getattr(self, key) != default:
                    yield Mistake((key,), "has no effect with type: linear", "write type: cosine")


class ModelConfig(Section):
    path: str = Field(
        description="hub id, folder, run of full weights, .gguf file, or package:NAME with one"
    )
    revision: str | None = Field(None, description="branch, tag or commit of a hub model")
    tuning: Literal["full", "lora"] = Field("full", description="train all weights or adapters")
    lora: LoraConfig = Field(default_factory=LoraConfig, description="the adapters' settings")
    attention: str | None = Field(None, description="attention kernel, as transformers names it")
    chat_template: str = Field(
        "auto", description="auto: the model's own; none: plain text; or a Jinja file"
    )
    chat_template_kwargs: dict[str, Any] = Field(
        default_factory=dict, description="variables of the template, as enable_thinking: false"
    )
    head: HeadConfig = Field(
        default_factory=HeadConfig, description="of tasks with classes: what scores them"
    )
    pooling: Literal["auto", "cls", "mean", "last", "entity_starts"] = Field(
        "auto",
        description="of tasks with classes: the text's feature; auto: of decoders last, else as a "
        "sentence encoder's files say, or cls",
    )
    template: str | None = Field(
        None,
        description="of tasks with classes: the text that is read, with {text} in it; of "
        "relations also {head} and {tail}",
    )
    truncate: Literal["text_only", "right"] = Field(
        "text_only",
        description="of tasks with classes, what a text that is too long loses. text_only: words, "
        "never the template or a marker; right: the end of all that is read, as SEQ*'s code",
    )
    max_prompt_length: int | None = Field(
        None, gt=1, description="tokens; a longer prompt loses its middle, also when scored"
    )
    fsdp_size: int = Field(0, ge=0, description="processes that share the weights (FSDP2); 0: off")

    def mistakes(self) -> Iterator[Mistake]:
        if self.tuning == "full" and self.lora != LoraConfig():
            yield Mistake(("lora",), "has no effect with tuning: full", "write tuning: lora")
        for name in sorted(_NOT_VARIABLES & self.chat_template_kwargs.keys()):
            what = "is no variable of the template: Perdure sets it itself"
            yield Mistake(("chat_template_kwargs", name), what, "leave it out")
        if self.chat_template_kwargs and self.chat_template == "none":
            what = "has no effect with chat_template: none"
            yield Mistake(("chat_template_kwargs",), what, "leave it out")
        if self.template is not None and "{text}" not in self.template:
            yield Mistake(("template",), "has no {text} in it", "write {text} where the text goes")
        if self.revision is not None and Path(self.path).is_absolute():
            yield Mistake(("revision",), "has no effect on a local model", "leave it out")


class MethodSpec(Section):
    """A method's name and all its options, defaults filled in."""

    name: str
    file: str | None = None
    """The Python file that holds it, where no package does."""
    options: dict[str, Any] = Field(default_factory=dict)


def read_methods(value: Any, judge: Judge | None) -> tuple[tuple[MethodSpec, ...], list[Mistake]]:
    """One method or a list, each a name or `{name: ..., option: ...}`; keys relative to `method`.

    Without a judge names and options are taken as they are.
    """
    many = isinstance(value, list | tuple)
    specs: list[MethodSpec] = []
    found: list[Mistake] = []
    for i, item in enumerate(value if many else [value]):
        spec, wrong = _spec(item)
        if judge is not None and spec is not None:
            spec, wrong = judge.method(spec)
        at: Key = (i,) if many else ()
        found += [replace(m, key=(*at, *m.key)) for m in wrong]
        if spec is not None:
            specs.append(spec)
    if many:
        found = _with_the_others(value, found)
    if many and not value:
        found.append(Mistake((), "the list is empty", "write method: {name: sequential}"))
    return tuple(specs), found


def in_place(entries: Mapping[str, Any] | Sequence[Any]) -> str:
    """The remedy that says what to write as `method`."""
    return f"write method: {inline(entries)}"


def _with_the_others(entries: Sequence[Any], found: Sequence[Mistake]) -> list[Mistake]:
    """Where an entry of the list is to be written anew: the whole list, the others as they are."""
    anew = {m.key[0]: m.instead for m in found if m.instead is not None}
    whole = [anew.get(i, _plain(entry)) for i, entry in enumerate(entries)]
    return [m if m.instead is None else replace(m, remedy=in_place(whole)) for m in found]


def _plain(entry: Any) -> Any:
    if not isinstance(entry, MethodSpec):
        return entry
    file = {"file": entry.file} if entry.file else {}
    return {"name": entry.name, **file, **entry.options}


def _spec(item: Any) -> tuple[MethodSpec | None, list[Mistake]]:
    if isinstance(item, MethodSpec):
        return item, []
    if isinstance(item, str):
        item = {"name": item}
    if not isinstance(item, dict):
        return None, [Mistake((), "must be a name, or a name and options")]
    options = dict(item)
    name, file = options.pop("name", None), options.pop("file", None)
    if isinstance(file, str) and name is None:
        name = Path(file).stem
    if not isinstance(name, str):
        return None, [Mistake((), "has no name", "write method: {name: sequential}")]
    if file is not None and (not isinstance(file, str) or name != Path(file).stem):
        what = "must be a Python file, and the method's name its name without .py"
        return None, [Mistake(("file",), what, "leave name out")]
    return MethodSpec(name=name, file=file, options=options), []


class TrainConfig(Section):
    learning_rate: float = Field(1e-4, gt=0, description="highest learning rate")
    epochs: float = Field(1, gt=0, description="passes over each task's training rows")
    max_steps: int | None = Field(None, gt=0, description="optimizer steps a phase at most")
    batch_size: int = Field(8, gt=0, description="rows per optimizer step, over all processes")
    micro_batch_size: int | None = Field(
        None, gt=0, description="rows per forward pass and process; less needs less memory"
    )
    max_length: int = Field(512, gt=1, description="tokens a row at most, prompt and answer")
    warmup: float = Field(0.0, ge=0, lt=1, description="share of steps that ramp the rate up")
    schedule: Schedule = Field("constant", description="learning rate over a task")
    weight_decay: float = Field(0.0, ge=0, description="pull of the weights towards 0")
    max_grad_norm: float = Field(1.0, ge=0, description="gradients are clipped to this norm")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto",
        description="auto: bf16 where the hardware computes it; on a CPU where it is a tenth "
        "faster, which is measured: name one where runs must repeat",
    )
    optimizer: Optimizer = Field("adamw_torch_fused", description="as transformers names it")
    gradient_checkpointing: bool = Field(False, description="less memory, a third more time")
    log_steps: int = Field(1, gt=0, description="a log line each so many steps, and at the last")
    report_to: list[Tracker] = Field(default_factory=list, description="experiment trackers")

    def mistakes(self) -> Iterator[Mistake]:
        micro = self.micro_batch_size
        if micro is not None and self.batch_size % micro:
            what = f"batch_size {self.batch_size} is no multiple of {micro}"
            fits = max(n for n in range(1, micro) if self.batch_size % n == 0)
            yield Mistake(("micro_batch_size",), what, f"{fits} would do")


class SaveConfig(Section):
    tasks: Literal["all", "last"] = Field("all", description="which tasks' models are kept")
    steps: int | None = Field(None, gt=0, description="also save within a task, each N steps")
    minutes: float | None = Field(None, gt=0, description="also save within a task, each N minutes")


class Recipe(Section):
    """Everything that decides a run."""

    name: str = Field("recipe", pattern=r"^\w[\w .+-]*$", max_length=80, description="of the run")
    seed: int = Field(0, ge=0, lt=2**32, description="same seed, same scores")
    order_matters: bool = Field(
        False, description="allow two methods that replace the same thing, in the order listed"
    )
    trust_remote_code: bool = Field(
        False, description="run Python code that a model or the recipe brings; see security"
    )
    model: ModelConfig = Field(description="the base model and how it is trained")
    stream: StreamConfig = Field(description="the tasks, in order")
    general: GeneralConfig | None = Field(
        None, description="text or lm-eval tasks for what it could already do; a list is of tasks"
    )
    method: tuple[MethodSpec, ...] = Field(
        description="how not to forget: one, or a list; file: a Python file that holds it"
    )
    train: TrainConfig = Field(default_factory=TrainConfig, description="the optimizer's settings")
    rl: RLConfig | None = Field(None, description="of tasks with learn: rl, which needs it")
    scoring: ScoringConfig = Field(default_factory=ScoringConfig, description="how it is scored")
    gauges: GaugesConfig = Field(
        default_factory=GaugesConfig, description="how far the model moved, while it learns"
    )
    stop_when: StopConfig | None = Field(None, description="a budget for the gauges")
    save: SaveConfig = Field(default_factory=SaveConfig, description="which checkpoints are kept")
    _folder: Path = PrivateAttr(default_factory=Path.cwd)
    _places: Callable[[str], str] | None = PrivateAttr(None)
    _lists_methods: bool = PrivateAttr(False)

    @property
    def methods(self) -> tuple[MethodSpec, ...]:
        return self.method

    @property
    def folder(self) -> Path:
        """The folder that relative paths in the recipe's file start from."""
        return self._folder

    def place(self, key: str) -> str:
        """`file:line: key`, to begin a message about a value with."""
        return self._places(key) if self._places else key

    def method_place(self, number: int, key: str) -> str:
        """`place` of an option of the method with this number in `methods`."""
        listed = self._lists_methods or len(self.methods) > 1
        return self.place(f"method.{number}.{key}" if listed else f"method.{key}")

    def of_task(self, learn: str) -> Recipe:
        """This recipe with the settings of `train` by which such a task is learned."""
        if learn != "rl" or self.rl is None:
            return self
        return self.model_copy(update={"train": self.train.model_copy(update=self.rl.changes())})

    @field_validator("method", mode="before")
    @classmethod
    def _read_methods(cls, value: Any, info: ValidationInfo) -> Any:
        specs, found = read_methods(value, info.context)
        if found:
            raise mistakes_error(found)
        return specs

    def mistakes(self) -> Iterator[Mistake]:
        for key in ("steps", "minutes") if self.model.fsdp_size > 1 else ():
            if getattr(self.save, key) is not None:
                what = "a sharded model (model.fsdp_size) is only saved after each task"
                yield Mistake(("save", key), what, "leave it out, or shard by accelerate's FSDP2")
        most, whole = self.model.max_prompt_length, self.train.max_length
        if most is not None and most >= whole:
            what = f"{most} leaves no room for an answer in train.max_length, {whole}"
            yield Mistake(("model", "max_prompt_length"), what, "lower it, or raise the other")
        if self.stop_when is not None and not self.gauges.every:
            yield Mistake(("stop_when",), "has no effect without gauges", "set gauges.every")
        if self.stop_when is not None and self.stop_when.flip_share and not self.gauges.texts:
            what = "has no effect with gauges.texts: 0"
            yield Mistake(("stop_when", "flip_share"), what, "ask for some texts, or budget kl")
        yield from self._reinforced()
        names = [spec.name for spec in self.method]
        if twice := {name for name in names if names.count(name) > 1}:
            yield Mistake(("method",), f"{', '.join(sorted(twice))} is listed twice")

    def _reinforced(self) -> Iterator[Mistake]:
        """What is wrong about tasks that are learned from rewards."""
        by_rl = [task.name for task in self.stream.tasks if task.learn == "rl"]
        if self.rl is None:
            if by_rl:
                what = f"is missing: {task_named(by_rl[0])} has learn: rl"
                yield Mistake(("rl",), what, "write rl: {rewards: [...]}")
            return
        if not by_rl:
            yield Mistake(("rl",), "has no effect: no task has learn: rl", "leave it out")
        batch, group = self.of_task("rl").train.batch_size, self.rl.group
        if batch % group:
            key = ("rl", "batch_size") if self.rl.batch_size else ("train", "batch_size")
            what = f"{batch} completions are no multiple of rl.group, {group}"
            yield Mistake(key, what, f"{max(1, batch // group) * group} would do")
        if self.save.steps is not None and self.save.steps % self.rl.iterations:
            what = f"{self.save.steps} is no multiple of rl.iterations, {self.rl.iterations}"
            hint = "a run goes on where new completions are written"
            yield Mistake(("save", "steps"), what, hint)
        if self.model.fsdp_size > 1:
            what = "tasks with learn: rl are not learned by a sharded model"
            yield Mistake(("model", "fsdp_size"), what, "leave it out: each process has a copy")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Recipe) and self.model_dump() == other.model_dump()

    __hash__ = None  # type: ignore[assignment]  # sections hold dicts and lists
