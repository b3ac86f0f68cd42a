"""A griffe extension for the reference: what the source says of a record's field is its description.

The fields of results are described by the comment behind them, those of options by the text that `--help` shows too.
Neither is a docstring, and without one a field would not be in the reference.
"""

from __future__ import annotations

import ast
import re
from typing import Any

import griffe

COMMENT = re.compile(r"  # (.+)$")


class Fields(griffe.Extension):
    def on_attribute_instance(self, *, node: ast.AST | griffe.ObjectNode, attr: griffe.Attribute, **_: Any) -> None:
        """Describe a field that has no docstring: `name: type  # text`, or `name: type = option(default, text)`."""
        if attr.docstring or attr.name.startswith("_") or not isinstance(node, ast.AnnAssign):
            return
        if not (attr.parent and attr.parent.is_class):
            return
        value = node.value
        if isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id == "option":
            text, attr.value = ast.literal_eval(value.args[1]), ast.unparse(value.args[0])
        else:
            comment = COMMENT.search(attr.source.splitlines()[-1]) if attr.source else None
            text = comment[1] if comment else ""
        if text:
            attr.docstring = griffe.Docstring(text, lineno=node.lineno, parent=attr)
