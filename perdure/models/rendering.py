"""The one call of `tokenizer.apply_chat_template`, with the date pinned and limits around it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date, datetime
from functools import cached_property
from typing import Any

from perdure.errors import DataError, ModelError
from perdure.models.limits import limited, limited_together

_WHAT = "the model's chat template"
_CODES = "aAwdbBmyYHIpMSfzZjUWcxXGuV"
"""The letters of strftime's formats; a macro of the same name writes the pinned day's."""


class Renderer:
    """Renders conversations by a template, with the variables that a recipe gives it.

    Args:
        text: the Jinja template.
        variables: `model.chat_template_kwargs`, such as `enable_thinking`.
        today: what `strftime_now` gives, so that a run that goes on next month has the prompts that
            it began with; None is the day of now.
    """

    def __init__(
        self,
        tokenizer: Any,
        text: str,
        variables: Mapping[str, Any] | None = None,
        today: date | None = None,
    ) -> None:
        self.tokenizer, self.text, self.variables = tokenizer, text, dict(variables or {})
        self.today = today or datetime.now().date()

    def pin(self, today: date) -> None:
        """Render the date of another day from now on."""
        if today != self.today:
            self.today = today
            for name, found in vars(type(self)).items():
                if isinstance(found, cached_property):
                    self.__dict__.pop(name, None)
            self.__dict__.pop("_dated", None)

    @cached_property
    def _dated(self) -> str:
        """The template, with a macro in front that hides the library's `strftime_now`."""
        if "strftime_now" not in self.text:
            return self.text
        told = {code: self.today.strftime(f"%{code}") for code in _CODES}
        bare = {f"-{code}": text.lstrip("0") or "0" for code, text in told.items()}
        written = "".join(f"|replace('%{c}', {text!r})" for c, text in {**bare, **told}.items())
        return (
            f"{{%- macro strftime_now(format) -%}}{{{{ format{written} }}}}{{%- endmacro %}}"
            f"{{{{ '' }}}}{self.text}"
        )

    def rendered(self, turns: list[dict[str, Any]], tools: Any = None, **options: Any) -> str:
        """The conversation as the template writes it.

        Raises:
            DataError: the template refuses it.
            ModelError: it takes more than `perdure.models.limits`.
        """
        try:
            return self._apply(turns, tools, **options)
        except ModelError:
            raise
        except Exception as error:  # whatever templates and jinja2 raise
            raise _refused(error) from error

    def rendered_together(
        self, conversations: Sequence[list[dict[str, Any]]], **options: Any
    ) -> list[str]:
        """The same of several conversations without tools, in a fraction of the time.

        Raises:
            DataError, ModelError: as `rendered`, of one of them: render each to know which.
        """
        try:
            return limited_together(lambda: self._text_of([*conversations], None, options), _WHAT)
        except ModelError:
            raise
        except Exception as error:
            raise _refused(error) from error

    def tried(self, turns: list[dict[str, Any]], **options: Any) -> str | None:
        """As `rendered`; None where the template refuses it."""
        try:
            return self._apply(turns, **options)
        except ModelError:
            raise
        except Exception:  # templates raise their own errors, e.g. "System role not supported"
            return None

    def _apply(self, turns: list[dict[str, Any]], tools: Any = None, **options: Any) -> str:
        return limited(lambda: str(self._text_of(turns, tools, options)), _WHAT)

    def _text_of(self, turns: list[Any], tools: Any, options: Mapping[str, Any]) -> Any:
        """A conversation's text, or of a list of conversations the list of their texts."""
        return self.tokenizer.apply_chat_template(
            turns,
            tokenize=False,
            chat_template=self._dated,
            tools=tools,
            **{**self.variables, **options},
        )


def _refused(error: Exception) -> DataError:
    why = str(error).strip().partition("\n")[0] or type(error).__name__
    return DataError(
        f"the model's chat template refuses this conversation: {why}",
        "change its turns, leave it out, or take another template: model.chat_template",
    )
