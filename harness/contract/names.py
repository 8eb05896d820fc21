"""Method names that carry settings: `adafocus-v2[random_pass=false,order=temporal]`. No torch.

Such a name stands wherever a method's name does. Its settings are checked against the keyword arguments of the
method's class, read from its source without importing it, so that a wrong one is told at once.
"""

from __future__ import annotations

import ast
import importlib.util
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from harness.contract.values import plain, setting_value, split_outside_brackets
from harness.errors import UsageError

BASE = ("harness.contract.recognizer", "EfficientRecognizer")
"""Where the settings of a method's class end; what lies above is mmaction2's."""
DATA_SETTINGS = ("num_classes", "resolution", "mean", "std")
"""Constructor settings that follow from the data set."""
GROUP_DECORATORS = ("settings", "dataclass")
"""What makes a class a group: any dataclass is one."""
NOT_SETTINGS = frozenset({"self", "args", "kwargs", "data_preprocessor"})
"""Constructor arguments that are no settings."""


def split_name(name: str) -> tuple[str, dict[str, Any]]:
    """Method and settings of a name; no settings where it has no brackets. Raises UsageError for a broken one."""
    base, bracket, rest = name.strip().partition("[")
    if not bracket:
        return base.strip(), {}
    if not rest.endswith("]"):
        raise UsageError(f"method {name!r}: settings stand at the end, as in NAME[setting=value,...]")
    settings: dict[str, Any] = {}
    for part in split_outside_brackets(rest[:-1]):
        key, sign, value = (text.strip() for text in part.partition("="))
        if not (sign and key and value):
            listed = "; a list stands in brackets, as in [order=[1,0]]" if settings and not sign else ""
            raise UsageError(f"method {name!r}: expected setting=value, not {part!r}{listed}")
        if key in settings:
            raise UsageError(f"method {name!r} gives {key!r} twice")
        settings[key] = setting_value(value)
    return base.strip(), settings


def stands_for(asked: str, method: Mapping[str, Any], defaults: Mapping[str, Any]) -> bool:
    """Whether a typed name means a recorded method (`name`, `settings`), with settings written out that it has anyway.

    `defaults` are those that its class sets, which a record leaves out.
    """
    (base, wanted), (recorded, own) = split_name(asked), split_name(method["name"])
    held, said = plain({**defaults, **method["settings"]}), plain(wanted)
    return base == recorded and {*own} <= {*said} and all(k in held and held[k] == v for k, v in said.items())


def written(settings: Mapping[str, Any]) -> str:
    """Settings as they stand in a name: sorted, `a=1,b=false`."""
    return ",".join(f"{key}={_text(value)}" for key, value in sorted(settings.items()))


@cache
def class_settings(module: str, cls: str) -> frozenset[str] | None:
    """Names of the keyword settings of a recognizer class and its bases, from their source.

    None where a base cannot be found without importing; the constructor then has the word.
    """
    found = _class(module, cls)
    if found is None:
        return None
    names: frozenset[str] = frozenset()
    for node in found.body:
        if isinstance(node, ast.FunctionDef) and node.name == "__init__":
            for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs):
                names |= _group_fields(module, argument.annotation) or {argument.arg}
    for base in () if (module, cls) == BASE else found.bases:
        if not isinstance(base, ast.Name):
            return None
        inherited = class_settings(*_origin(module, base.id))
        if inherited is None:
            return None
        names |= inherited
    return names - NOT_SETTINGS


def _group_fields(module: str, annotation: ast.expr | None) -> frozenset[str]:
    """Fields of the group (harness.contract.groups) that an annotation names; empty where it names none."""
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        annotation = ast.parse(annotation.value, mode="eval").body
    if isinstance(annotation, ast.BinOp):  # GROUP | None
        return _group_fields(module, annotation.left) | _group_fields(module, annotation.right)
    if isinstance(annotation, ast.Subscript) and _last_name(annotation.value) == "Optional":
        return _group_fields(module, annotation.slice)
    home, name = _named(module, annotation)
    found = _class(home, name) if home and home.partition(".")[0] not in sys.stdlib_module_names else None
    if found is None or not any(_last_name(d) in GROUP_DECORATORS for d in found.decorator_list):
        return frozenset()
    own = (n for n in found.body if isinstance(n, ast.AnnAssign) and "ClassVar" not in ast.unparse(n.annotation))
    fields = frozenset(n.target.id for n in own if isinstance(n.target, ast.Name))
    return fields.union(*(_group_fields(home, base) for base in found.bases))


def _named(module: str, expression: ast.expr | None) -> tuple[str, str]:
    """Module and name of the class that an expression means: `Exits`, or `settings.Exits` of an imported module."""
    if isinstance(expression, ast.Name):
        return _origin(module, expression.id)
    if isinstance(expression, ast.Attribute) and isinstance(expression.value, ast.Name):
        return ".".join(filter(None, _origin(module, expression.value.id))), expression.attr
    return "", ""


def _last_name(expression: ast.expr) -> str:
    """`settings` of `settings`, `groups.settings` and `settings(...)`."""
    return ast.unparse(expression).partition("(")[0].rpartition(".")[2]


def _class(module: str, name: str) -> ast.ClassDef | None:
    """The class as written in a module's source."""
    tree = _tree(module)
    return next((n for n in ast.walk(tree) if isinstance(n, ast.ClassDef) and n.name == name), None) if tree else None


def _origin(module: str, name: str) -> tuple[str, str]:
    """Module and name of what a module calls `name`: imported, or its own."""
    tree = _tree(module)
    for node in tree.body if tree else ():
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            for alias in node.names:
                if name == (alias.asname or alias.name):
                    return node.module, alias.name
        if isinstance(node, ast.Import):
            for alias in node.names:
                if name == alias.asname:
                    package, _, last = alias.name.rpartition(".")
                    return package, last
    return module, name


@cache
def _tree(module: str) -> ast.Module | None:
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):  # a package on the way to it is missing
        return None
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return None
    return ast.parse(Path(spec.origin).read_text(encoding="utf-8"), filename=spec.origin)


def _text(value: Any) -> str:
    """A value that `literal` reads back."""
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        bare = setting_value(value) == value and not set(value) & set("[](){},=")
        return value if bare else repr(value)
    return repr(value).replace(" ", "")
