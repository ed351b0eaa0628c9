"""Signatures and docstrings of functions that take parameters of the table, for help() and notebooks.

Light to import. Must not know: what a parameter does.
"""

import inspect
from collections.abc import Callable
from typing import Any, ForwardRef, TypeVar, get_args

from .kinds import Parameter
from .parameters import BY_NAME, FIELDS

Function = TypeVar("Function", bound=Callable[..., Any])


def documented(*rows: Parameter) -> Callable[[Function], Function]:
    """Shows the rows in a function's signature, in the place of `**parameters`, and what they mean in its docstring:
    for help() and notebooks. Editors read the typed dictionary."""

    def decorate(function: Function) -> Function:
        signature = inspect.signature(function)
        own = [each for each in signature.parameters.values() if each.kind is not inspect.Parameter.VAR_KEYWORD]
        shown = [*own, *(_as_argument(row) for row in rows if row.name not in signature.parameters)]
        function.__signature__ = signature.replace(parameters=shown)  # type: ignore[attr-defined]
        meanings = [BY_NAME[each.name] for each in shown if each.name in BY_NAME]
        lines = [f"{row.name}: {row.help}{f' ({row.default_text})' if row.default_text else ''}" for row in meanings]
        function.__doc__ = "\n".join([inspect.cleandoc(function.__doc__ or ""), "", *lines])
        return function

    return decorate


def _as_argument(row: Parameter) -> inspect.Parameter:
    kind = get_args(FIELDS[row.scope].__annotations__[row.name])[0]
    annotation = kind.__forward_arg__ if isinstance(kind, ForwardRef) else kind
    return inspect.Parameter(row.name, inspect.Parameter.KEYWORD_ONLY, default=row.default, annotation=annotation)
