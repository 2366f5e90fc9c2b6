"""What a notebook's cell of parameters gives: taken for what it stands for, or refused in one line."""

import ast
import contextlib
import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any, ParamSpec, TypeVar

from pydantic import BeforeValidator, ConfigDict, ValidationError, validate_call

from aimo.inference.errors import AimoError, explain

P = ParamSpec("P")
T = TypeVar("T")


def list_of_texts(value: Any) -> Any:
    """Return a text as a list: of what it lists, or of itself alone."""
    if not isinstance(value, str):
        return value
    with contextlib.suppress(ValueError, SyntaxError):
        if isinstance(listed := ast.literal_eval(value), list):
            return listed
    return [value] if value.strip() else []


# A list of texts; papermill's `-p` gives a list as one text.
Texts = Annotated[list[str], BeforeValidator(list_of_texts)]


def checked(function: Callable[P, T]) -> Callable[P, T]:
    """Make a function take numbers for texts, and raise AimoError for arguments of another type."""
    config = ConfigDict(coerce_numbers_to_str=True, arbitrary_types_allowed=True)
    validated = validate_call(config=config)(function)
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*arguments: P.args, **named: P.kwargs) -> T:
        try:
            return validated(**signature.bind(*arguments, **named).arguments)  # type: ignore[call-arg]
        except ValidationError as e:
            if e.title != function.__name__:
                raise
            wrong = "; ".join(explain(error) for error in e.errors())
            raise AimoError(f"{wrong}; correct it in the cell of parameters") from None

    return call
