"""No words of pydantic's own reach a user: each error that a section can raise has plain ones."""

from __future__ import annotations

import typing
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, Field, ValidationError
from pydantic_core import core_schema

from perdure.methods import registry
from perdure.protocol.method import MethodConfig
from perdure.recipe.mistakes import mistakes_in
from perdure.recipe.schema import Recipe
from perdure.recipe.validate import validate

pytestmark = pytest.mark.unit

RIGHT: dict[str, Any] = {
    "name": "r", "model": {"path": "org/x"}, "method": "sequential",
    "stream": {"tasks": [{"name": "a", "train": "a.csv", "format": "labels"}]},
}  # fmt: skip
OF_RECIPE: dict[str, tuple[tuple[str, ...], Any, str]] = {
    # the error: where, what is written, and what is told of it
    "missing": (("model",), {}, "model.path: is required and missing"),
    "extra_forbidden": (("train", "epoch"), 1, "train.epoch: unknown key"),
    "invalid_key": (("train",), {1: 2}, "train.1: 1 is no name of a key: names are text"),
    "model_type": (("train",), 3, "train: must be a section of `key: value` lines"),
    "dict_type": (("model", "chat_template_kwargs"), 3,
                  "model.chat_template_kwargs: must be a section of `key: value` lines"),
    "greater_than": (("train", "epochs"), -1, "train.epochs: must be greater than 0, not -1"),
    "greater_than_equal": (("train", "weight_decay"), -1,
                           "train.weight_decay: must be greater than or equal to 0, not -1"),
    "less_than": (("train", "warmup"), 1, "train.warmup: must be less than 1, not 1"),
    "less_than_equal": (("stop_when", "flip_share"), 2,
                        "stop_when.flip_share: must be less than or equal to 1, not 2"),
    "finite_number": (("train", "epochs"), float("inf"),
                      "train.epochs: must be a finite number, not inf"),
    "string_type": (("model", "path"), True, "model.path: must be a string, not true"),
    "string_unicode": (("name",), "\ud83d", "name: has half a character (a lone "
                       "surrogate): write the character itself"),
    "string_too_long": (("name",), "a" * 81, "name: has more than 80 characters"),
    "string_pattern_mismatch": (("name",), "a/b", 'name: "a/b" must be letters, digits, spaces '
                                "and . + - _ only, and begin with a letter or digit"),
    "list_type": (("train", "report_to"), 3, "train.report_to: must be a list, not 3"),
    "bool_type": (("order_matters",), [1],
                  "order_matters: must be true or false, not [1]"),
    "bool_parsing": (("order_matters",), "maybe",
                     'order_matters: must be true or false, not "maybe"'),
    "int_type": (("seed",), [1], "seed: must be a whole number, not [1]"),
    "int_parsing": (("seed",), "x", 'seed: must be a whole number, not "x"'),
    "int_parsing_size": (("seed",), "9" * 5000,
                         "seed: has more digits than any number here can have"),
    "int_from_float": (("seed",), 1.5, "seed: must be a whole number, not 1.5"),
    "float_type": (("train", "epochs"), [1], "train.epochs: must be a number, not [1]"),
    "float_parsing": (("train", "epochs"), "x", 'train.epochs: must be a number, not "x"'),
    "literal_error": (("model", "tuning"), "ful",
                      'model.tuning: "ful" is none of full, lora'),
}  # fmt: skip
OF_METHODS: dict[str, tuple[str, dict[str, Any], str, str]] = {
    # the error: method, options, what is told, and the remedy
    "tuple_type": ("gere", {"layers": -1}, "layers: must be a list, not -1", "write [-1]"),
    "too_short": ("gere", {"layers": []},
                  "layers: has 0 entries, and at least 1 are needed",
                  "layers held, averaged; -1: final norm"),
    "value_error": ("rewind", {"grid": [2]},
                    "grid: factors lie between 0 (undo the task) and 1 (keep it)",
                    "factors tried, smallest first"),
}  # fmt: skip
NEVER = {
    "of types that no section has": {
        "json_invalid", "json_type", "no_such_attribute", "get_attribute_error",
        "needs_python_object", "dataclass_type", "dataclass_exact_type", "named_tuple_type",
        "multiple_of", "iterable_type", "iteration_error", "string_sub_type", "string_not_ascii",
        "enum", "frozen_dict_type", "ordered_dict_type", "counter_type", "deque_type", "set_type",
        "set_item_not_hashable", "bytes_type", "bytes_too_short", "bytes_too_long",
        "bytes_invalid_encoding", "missing_sentinel_error", "ellipsis_error", "date_type",
        "date_parsing", "date_from_datetime_parsing", "date_from_datetime_inexact", "date_past",
        "date_future", "time_type", "time_parsing", "datetime_type", "datetime_parsing",
        "datetime_object_invalid", "datetime_from_date_parsing", "datetime_past",
        "datetime_future", "timezone_naive", "timezone_aware", "timezone_offset",
        "time_delta_type", "time_delta_parsing", "frozen_set_type", "is_instance_of",
        "is_subclass_of", "callable_type", "union_tag_invalid", "union_tag_not_found",
        "arguments_type", "missing_argument", "unexpected_keyword_argument",
        "missing_keyword_only_argument", "unexpected_positional_argument",
        "missing_positional_only_argument", "multiple_argument_values", "url_type", "url_parsing",
        "url_syntax_violation", "url_too_long", "url_scheme", "uuid_type", "uuid_parsing",
        "uuid_version", "decimal_type", "decimal_parsing", "decimal_max_digits",
        "decimal_max_places", "decimal_whole_digits", "fraction_type", "fraction_parsing",
        "complex_type", "complex_str_parsing", "none_required",
    },
    "of other classes of recursion or limits that no section has": {
        "recursion_loop", "recursion_depth_exceeded", "string_too_short", "too_long",
    },
    "of attributes in place of keys, of a Mapping whose items fail": {
        "model_attributes_type", "mapping_type",
    },
    "of writing to a section, not of reading one": {"frozen_field", "frozen_instance"},
    "of validators' own asserts and defaults, of which there are none": {
        "assertion_error", "default_factory_not_called",
    },
}  # fmt: skip
TYPES = {
    "any", "bool", "default", "dict", "float", "function-after", "function-before",
    "function-plain", "int", "list", "literal", "model", "model-field", "model-fields", "none",
    "nullable", "str", "tuple", "union",
}  # fmt: skip
"""What the sections are made of; another one needs a look at the errors that it brings."""


def told(data: dict[str, Any]) -> list[str]:
    _, found = validate(data)
    return [f"{'.'.join(map(str, m.key))}: {m.what}" for m in found]


def test_every_error_that_there_is_has_a_place_here() -> None:
    every = set(typing.get_args(core_schema.ErrorType))
    never = set().union(*NEVER.values())
    assert every <= OF_RECIPE.keys() | OF_METHODS.keys() | never
    assert not never & (OF_RECIPE.keys() | OF_METHODS.keys())


def types_in(schema: Any) -> set[str]:
    if isinstance(schema, list | tuple):
        return set().union(*map(types_in, schema)) if schema else set()
    if not isinstance(schema, dict):
        return set()
    kind = schema.get("type")
    own = {kind} if isinstance(kind, str) and "ref" not in kind else set()
    skipped = {"metadata", "cls", "function", "config", "serialization", "default"}
    return own.union(*[types_in(v) for k, v in schema.items() if k not in skipped])


def test_no_section_has_a_type_that_was_not_looked_at() -> None:
    found = types_in(Recipe.__pydantic_core_schema__)
    for name in registry.names():
        found |= types_in(registry.load(name).Config.__pydantic_core_schema__)
    assert {kind for kind in found if kind in typing.get_args(core_schema.CoreSchemaType)} <= TYPES


@pytest.mark.parametrize("kind", sorted(OF_RECIPE))
def test_an_error_of_a_recipe_in_plain_words(kind: str) -> None:
    where, value, wanted = OF_RECIPE[kind]
    data: dict[str, Any] = {**RIGHT}
    here = data
    for part in where[:-1]:
        here[part] = dict(here.get(part, {}))
        here = here[part]
    here[where[-1]] = value
    with pytest.raises(ValidationError) as error:
        Recipe.model_validate(data)
    assert kind in {problem["type"] for problem in error.value.errors()}
    assert wanted in told(data)


@pytest.mark.parametrize("kind", sorted(OF_METHODS))
def test_an_error_of_a_methods_options_in_plain_words(kind: str) -> None:
    name, options, wanted, remedy = OF_METHODS[kind]
    config = registry.load(name).Config
    with pytest.raises(ValidationError) as error:
        config.model_validate(options)
    assert kind in {problem["type"] for problem in error.value.errors()}
    (found,) = mistakes_in(error.value, options, config)
    assert (f"{found.key[0]}: {found.what}", found.remedy) == (wanted, remedy)


def test_what_is_no_number_is_refused_of_methods_too() -> None:
    for name, key in (("gere", "weight"), ("ewc", "lam"), ("replay", "ratio"), ("lwf", "weight")):
        for value in (float("nan"), float("inf")):
            with pytest.raises(ValidationError) as error:
                registry.load(name).Config.model_validate({key: value})
            (found, *_) = mistakes_in(error.value, {key: value}, registry.load(name).Config)
            assert found.what == f"must be a finite number, not {value}"
    with pytest.raises(ValidationError):
        registry.load("rewind").Config.model_validate({"grid": []})


class Colour(Enum):
    RED = "red"


class Strange(MethodConfig):
    """Types that no method of Perdure's has."""

    one: Path = Field(Path(), description="a path")
    two: set[int] = Field(set(), description="a set")
    three: Colour = Field(Colour.RED, description="a colour")
    four: list[int] = Field([], max_length=1, description="few")
    five: str = Field("abc", min_length=2, description="a word")


def test_what_other_methods_may_have_is_said_in_plain_words_too() -> None:
    data = {"one": 3, "two": 3, "three": "blue", "four": [1, 2], "five": "a"}
    with pytest.raises(ValidationError) as error:
        Strange.model_validate(data)
    found = {m.key[0]: m.what for m in mistakes_in(error.value, data, Strange)}
    assert found["two"] == "must be a list, not 3"
    assert found["four"] == "has 2 entries, and at most 1 are allowed"
    assert found["five"] == "has fewer than 2 characters"
    for what in found.values():
        assert "Input" not in what
        assert " a a" not in what
        assert "must be a i" not in what


class Few(BaseModel):
    pair: dict[str, int] = Field({}, min_length=2)


def test_no_words_of_lengths_of_pydantics_own() -> None:
    with pytest.raises(ValidationError) as error:
        Few.model_validate({"pair": {"a": 1}})
    (found,) = mistakes_in(error.value, {"pair": {"a": 1}}, Few)
    assert found.what == "has 1 entries, and at least 2 are needed"
