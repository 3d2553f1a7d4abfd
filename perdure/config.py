"""The typed recipe: what a YAML file may say, and what each key does.

    recipe = load_recipe("shop.yaml", ["method.name=gere", "train.learning_rate=5e-5"])

A mistake is reported with its line and, where a name is misspelt, the name probably meant; all
mistakes of a recipe at once (`perdure.recipe_check`), before anything is loaded. Paths in a recipe
are relative to its folder, paths on the command line to the current one; a loaded recipe holds
them absolute.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, PrivateAttr, field_validator

from perdure.config_measuring import GaugesConfig, GeneralConfig, ScoringConfig, StopConfig
from perdure.section import Section, mistakes_error
from perdure.streams.cells import check_cell
from perdure.streams.task import COLUMNS, Metric, Scenario
from perdure.yaml_file import Mistake, near, write

FILE_TYPES = (".jsonl", ".csv", ".tsv", ".parquet")
SPLITS = ("train", "validation", "test")

Optimizer = Literal[
    "adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "adamw_8bit", "paged_adamw_8bit",
    "lion_32bit", "lion_8bit", "adamw_torch_8bit", "stable_adamw",
]  # fmt: skip
Schedule = Literal[
    "constant", "linear", "cosine", "cosine_with_restarts", "polynomial", "constant_with_warmup",
    "inverse_sqrt",
]  # fmt: skip
Tracker = Literal["tensorboard", "wandb", "mlflow", "trackio", "comet_ml", "clearml", "swanlab"]


class LoraConfig(Section):
    r: int = Field(8, gt=0, description="rank of the adapters")
    alpha: int = Field(16, gt=0, description="scale; the update is multiplied by alpha / r")
    dropout: float = Field(0.0, ge=0, lt=1, description="share of adapter inputs dropped")
    target_modules: list[str] | Literal["all-linear"] = Field(
        "all-linear", description="names of the modules that get an adapter"
    )


class ModelConfig(Section):
    path: str = Field(description="hub id, folder, .gguf file, or package:NAME that brings one")
    revision: str | None = Field(None, description="branch, tag or commit of a hub model")
    trust_remote_code: bool = Field(False, description="run Python code that the model brings")
    tuning: Literal["full", "lora"] = Field("full", description="train all weights or adapters")
    lora: LoraConfig = Field(default_factory=LoraConfig, description="the adapters' settings")
    attention: str | None = Field(None, description="attention kernel, as transformers names it")
    chat_template: str = Field(
        "auto", description="auto: the model's own; none: plain text; or a Jinja file"
    )
    max_prompt_length: int | None = Field(
        None, gt=1, description="tokens; a longer prompt loses its middle, also when scored"
    )
    fsdp_size: int = Field(0, ge=0, description="processes that share the weights (FSDP2); 0: off")

    def mistakes(self) -> Iterator[Mistake]:
        if self.tuning == "full" and self.lora != LoraConfig():
            yield Mistake(("lora",), "has no effect with tuning: full", "write tuning: lora")
        if self.revision is not None and Path(self.path).is_absolute():
            yield Mistake(("revision",), "has no effect on a local model", "leave it out")


class TaskConfig(Section):
    name: str = Field(pattern=r"^\w[\w .+-]*$", max_length=80, description="unique; names files")
    format: Literal["prompt", "chat", "labels"] = Field(
        "prompt", description="prompt: prompt and answer; chat: messages; labels: text and label"
    )
    dataset: str | None = Field(
        None, description="a hub data set: splits are its own, rows with an empty cell left out"
    )
    subset: str | None = Field(None, description="configuration of the hub data set")
    train: str = Field(description="file to learn from (.jsonl .csv .tsv .parquet), or a split")
    validation: str | None = Field(None, description="file or split that methods may look at")
    test: str | None = Field(None, description="file or split that scores are measured on")
    columns: dict[str, str] = Field(
        default_factory=dict,
        description="our column name: yours, or a text with {yours} in it, where they differ",
    )
    instruction: str | None = Field(None, description="what to do, put before each text")
    labels: list[str] | None = Field(None, description="all allowed answers")
    label_names: dict[str, str] | None = Field(
        None, description="value in the data, or number of a hub data set's class: answer"
    )
    metric: Metric | None = Field(None, description="how answers are scored")
    max_new_tokens: int = Field(32, gt=0, description="longest answer that is generated")
    max_train_rows: int | None = Field(None, gt=0, description="use this many rows at most")
    max_validation_rows: int | None = Field(None, gt=0, description="use this many rows at most")
    max_test_rows: int | None = Field(None, gt=0, description="use this many rows at most")
    validation_share: float = Field(
        0.1, ge=0, lt=1, description="share of train set aside where there is no validation"
    )
    test_share: float = Field(
        0.2, gt=0, lt=1, description="share of train set aside where there is no test"
    )
    _places: Callable[[str], str] | None = PrivateAttr(None)

    def place(self, key: str = "") -> str:
        """`file:line: key` of one of the task's keys, to begin a message about its data with."""
        return self._places(key) if self._places else f"task {self.name}: {key}".rstrip(": ")

    def column(self, ours: str) -> str:
        """The data's name for one of our columns, or a text with names in braces."""
        return self.columns.get(ours, ours)

    @property
    def resolved_metric(self) -> Metric:
        """The metric, with its default by format filled in."""
        return self.metric or ("label_likelihood" if self.format == "labels" else "exact_match")

    def mistakes(self) -> Iterator[Mistake]:
        ours = COLUMNS[self.format]
        for name, source in self.columns.items():
            if name not in ours:
                hint = near(name, ours) or f"write them as {ours[0]}: your-column"
                what = f"format {self.format} has the columns {' and '.join(ours)}"
                yield Mistake(("columns", name), what, hint)
            elif wrong := check_cell(source, one_column=name == "messages"):
                yield Mistake(("columns", name), *wrong)
        if self.dataset is None:
            for split in SPLITS:
                path = getattr(self, split)
                if path is not None and Path(path).suffix.lower() not in FILE_TYPES:
                    what = f'"{path}" is none of {" ".join(FILE_TYPES)}'
                    yield Mistake((split,), what, "for a hub data set, also write dataset: NAME")
            if self.subset is not None:
                yield Mistake(("subset",), "has no effect without dataset", "leave it out")
        yield from self._label_mistakes()
        test, validation = self.test is None, self.validation is None
        if test * self.test_share + validation * self.validation_share >= 1:
            yield Mistake(("test_share",), "the shares set aside leave nothing to train on")

    def _label_mistakes(self) -> Iterator[Mistake]:
        if self.format != "labels":
            for key in ("labels", "label_names"):
                if getattr(self, key) is not None:
                    what = f"has no effect with format: {self.format}"
                    yield Mistake((key,), what, "write format: labels")
            if self.metric == "label_likelihood":
                yield Mistake(("metric",), "label_likelihood needs format: labels")
            return
        labels = self.labels
        if labels is None:
            return
        if len(set(labels)) < max(2, len(labels)) or not all(x.strip() for x in labels):
            what = "must be at least two different texts, none of them empty"
            yield Mistake(("labels",), what)
        for value, name in (self.label_names or {}).items():
            if name not in labels:
                what = f'"{name}" is none of the task\'s labels'
                yield Mistake(("label_names", value), what, near(name, labels))


class StreamConfig(Section):
    name: str | None = Field(None, description="a built-in stream; see perdure streams")
    scenario: Scenario = Field("task-incremental", description="what the tasks have in common")
    order: list[str] | None = Field(None, description="the tasks' names in the order to learn")
    tasks: list[TaskConfig] = Field(default_factory=list, description="your own tasks, in order")

    def mistakes(self) -> Iterator[Mistake]:
        if (self.name is None) == (not self.tasks):
            what = "has both name and tasks" if self.tasks else "has neither name nor tasks"
            yield Mistake((), what, "name a built-in stream, or list your own tasks")
        if self.name is not None:
            from perdure.streams.builtin import STREAMS

            if self.name not in STREAMS:
                hint = near(self.name, list(STREAMS)) + " all of them: perdure streams"
                yield Mistake(("name",), f'no stream is called "{self.name}"', hint.strip())
        names = [task.name for task in self.tasks]
        for i, name in enumerate(names):
            if name in names[:i]:
                what = f'"{name}" is the name of stream.tasks.{names.index(name)} already'
                yield Mistake(("tasks", i, "name"), what, "give each task its own name")
        for i, name in enumerate(self.order or ()):
            if self.tasks and name not in names:
                hint = near(name, names) or f"the tasks are: {', '.join(names)}"
                yield Mistake(("order", i), f'no task is called "{name}"', hint)
            elif name in (self.order or [])[:i]:
                yield Mistake(("order", i), f'"{name}" comes twice')


class MethodSpec(Section):
    """A method's name and all its options, defaults filled in."""

    name: str
    options: dict[str, Any] = Field(default_factory=dict)


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
        "auto", description="auto: bf16 where the hardware computes it"
    )
    optimizer: Optimizer = Field("adamw_torch_fused", description="as transformers names it")
    gradient_checkpointing: bool = Field(False, description="less memory, a third more time")
    log_steps: int = Field(1, gt=0, description="a line in the log each so many steps")
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


class Recipe(Section):
    """Everything that decides a run."""

    name: str = Field("recipe", pattern=r"^\w[\w .+-]*$", max_length=80, description="of the run")
    seed: int = Field(0, ge=0, lt=2**32, description="same seed, same scores")
    order_matters: bool = Field(
        False, description="allow two methods that replace the same thing, in the order listed"
    )
    model: ModelConfig = Field(description="the base model and how it is trained")
    stream: StreamConfig = Field(description="the tasks, in order")
    general: GeneralConfig | None = Field(
        None, description="text or lm-eval tasks for what it could already do; a list is of tasks"
    )
    method: tuple[MethodSpec, ...] = Field(description="how not to forget: one, or a list")
    train: TrainConfig = Field(default_factory=TrainConfig, description="the optimizer's settings")
    scoring: ScoringConfig = Field(default_factory=ScoringConfig, description="how it is scored")
    gauges: GaugesConfig = Field(
        default_factory=GaugesConfig, description="how far the model moved, while it learns"
    )
    stop_when: StopConfig | None = Field(None, description="a budget for the gauges")
    save: SaveConfig = Field(default_factory=SaveConfig, description="which checkpoints are kept")
    _folder: Path = PrivateAttr(default_factory=Path.cwd)
    _places: Callable[[str], str] | None = PrivateAttr(None)

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

    @field_validator("method", mode="before")
    @classmethod
    def _known_methods(cls, value: Any) -> Any:
        from perdure.recipe_check import read_methods

        specs, found = read_methods(value)
        if found:
            raise mistakes_error(found)
        return specs

    def mistakes(self) -> Iterator[Mistake]:
        if self.save.steps is not None and self.model.fsdp_size > 1:
            what = "a sharded model (model.fsdp_size) is only saved after each task"
            yield Mistake(("save", "steps"), what, "leave it out, or shard by accelerate's FSDP2")
        most, whole = self.model.max_prompt_length, self.train.max_length
        if most is not None and most >= whole:
            what = f"{most} leaves no room for an answer in train.max_length, {whole}"
            yield Mistake(("model", "max_prompt_length"), what, "lower it, or raise the other")
        if self.stop_when is not None and not self.gauges.every:
            yield Mistake(("stop_when",), "has no effect without gauges", "set gauges.every")
        if self.stop_when is not None and self.stop_when.flip_share and not self.gauges.texts:
            what = "has no effect with gauges.texts: 0"
            yield Mistake(("stop_when", "flip_share"), what, "ask for some texts, or budget kl")
        names = [spec.name for spec in self.method]
        if twice := {name for name in names if names.count(name) > 1}:
            yield Mistake(("method",), f"{', '.join(sorted(twice))} is listed twice")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Recipe) and self.model_dump() == other.model_dump()

    __hash__ = None  # type: ignore[assignment]  # sections hold dicts and lists


def load_recipe(
    path: str | Path,
    overrides: Sequence[str] = (),
    *,
    check_files: bool = True,
    tasks_only: bool = False,
) -> Recipe:
    """Read and validate a recipe.

    Args:
        path: a YAML file.
        overrides: `section.key=value`, as on the command line; items of a list go by number or,
            for tasks, by name (`stream.tasks.colours.max_train_rows=20`). A `method.name=` that
            differs from the recipe's drops the recipe's options, which belong to another method.
        check_files: also require that every file the recipe names exists.
        tasks_only: `model` and `method` may be missing; for commands that use only the tasks.

    Raises:
        RecipeError: all mistakes, each with its line.
    """
    from perdure import recipe_file

    return recipe_file.load(Path(path), overrides, check_files=check_files, tasks_only=tasks_only)


def dump_recipe(recipe: Recipe) -> str:
    """YAML that `load_recipe` reads back equal; every value is written, defaults too."""
    data = recipe.model_dump(mode="json", exclude_none=True)
    if recipe.model.tuning == "full":
        del data["model"]["lora"]
    methods = [
        {"name": spec.name, **spec.model_dump(mode="json")["options"]} for spec in recipe.method
    ]
    data["method"] = methods[0] if len(methods) == 1 else methods
    return write(data)
