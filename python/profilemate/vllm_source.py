"""vLLM's sources, read and never imported: where a function is, what it takes, what a class has.

Used by `profilemate doctor` on the vLLM that is installed, and by `scripts/check_versions.py` on released ones. Never
loaded inside vLLM.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef

#: With one of these a name in a class is no plain function, and no hook goes on it.
_NOT_PLAIN = {"staticmethod", "classmethod", "property", "cached_property", "overload"}


@dataclass(frozen=True)
class Function:
    """A function of vLLM."""

    #: Of what it does: comments, docstrings and layout change nothing.
    fingerprint: str
    #: In order: `name`, `name=` (has a default), `*name`, `*` (only keywords follow), `**name`.
    parameters: tuple[str, ...]
    is_coroutine: bool = False


class Sources:
    """The sources of one vLLM. `read` gives those of a module, or `None` if there is no such module."""

    def __init__(self, read: Callable[[str], bytes | None]) -> None:
        self._read = read
        self._trees: dict[str, ast.Module | None] = {}
        self._texts: dict[str, str] = {}

    def function(self, place: str) -> Function | str:
        """The function at a place `module:Class.method`, or why no hook can be put there."""
        found = self._find_function(place)
        if isinstance(found, str):
            return found
        _, node = found
        return Function(fingerprint(node), parameters(node), isinstance(node, ast.AsyncFunctionDef))

    def text(self, place: str) -> str | None:
        """The function at a place as it stands in its file."""
        found = self._find_function(place)
        if isinstance(found, str):
            return None
        module, node = found
        first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
        return "\n".join(self._texts[module].splitlines()[first - 1 : node.end_lineno]) + "\n"

    def names(self, owner: str) -> frozenset[str] | None:
        """What a class `module:Class` has, its bases included, or the parameters and variables of `module:function()`.

        An attribute counts wherever it is declared in the class or assigned to `self`. `None`: there is no such owner.
        """
        if owner.endswith("()"):
            found = self._find_function(owner.removesuffix("()"))
            return None if isinstance(found, str) else frozenset(_variables(found[1]))
        module, _, path = owner.partition(":")
        found_class = self._find_class(module, path, set())
        return None if found_class is None else frozenset(self._attributes(*found_class, set()))

    def _tree(self, module: str) -> ast.Module | None:
        if module not in self._trees:
            source = self._read(module)
            tree = None
            if source is not None:
                try:
                    tree = ast.parse(source)
                except (SyntaxError, ValueError):
                    tree = None
                self._texts[module] = source.decode("utf-8", errors="replace")
            self._trees[module] = tree
        return self._trees[module]

    def _find_function(self, place: str) -> tuple[str, FunctionNode] | str:
        module, _, path = place.partition(":")
        tree = self._tree(module)
        if tree is None:
            return f"there is no {module}"
        body: list[ast.stmt] = tree.body
        *owners, name = path.split(".")
        for owner in owners:
            found = next(
                (node for node in _flat(body) if isinstance(node, ast.ClassDef) and node.name == owner), None
            )
            if found is None:
                return f"{module} has no {owner}"
            body = found.body
        functions = [node for node in _flat(body) if isinstance(node, FunctionNode) and node.name == name]
        plain = [node for node in functions if not _NOT_PLAIN & set(_decorators(node))]
        if plain:
            return module, plain[-1]
        if functions:
            return f"{path} in {module} is no plain function"
        if not owners:
            # A name that a module imports is one that its own functions call.
            imported = self._imported(module, name)
            if imported is not None:
                return self._find_function(":".join(imported))
        return f"{module} has no {path}"

    def _imported(self, module: str, name: str) -> tuple[str, str] | None:
        """Where a name that a module imports from another module of vLLM comes from."""
        tree = self._tree(module)
        for node in _flat(tree.body if tree is not None else []):
            if not isinstance(node, ast.ImportFrom):
                continue
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    origin = node.module or ""
                    if node.level:
                        parents = module.split(".")
                        # Whether a module is a package shows only in its file's name, so both readings are tried.
                        for drop in (node.level, node.level - 1):
                            base = ".".join(parents[: len(parents) - drop])
                            candidate = f"{base}.{origin}" if origin else base
                            if self._tree(candidate) is not None:
                                return candidate, alias.name
                    elif origin.startswith("vllm"):
                        return origin, alias.name
        return None

    def _find_class(self, module: str, path: str, seen: set[str]) -> tuple[str, ast.ClassDef] | None:
        tree = self._tree(module)
        if tree is None or f"{module}:{path}" in seen:
            return None
        seen.add(f"{module}:{path}")
        body: list[ast.stmt] = tree.body
        found = None
        for name in path.split("."):
            found = next(
                (node for node in _flat(body) if isinstance(node, ast.ClassDef) and node.name == name), None
            )
            if found is None:
                break
            body = found.body
        if found is not None:
            return module, found
        imported = self._imported(module, path)
        return None if imported is None else self._find_class(*imported, seen)

    def _attributes(self, module: str, node: ast.ClassDef, seen: set[str]) -> set[str]:
        key = f"{module}:{node.name}"
        if key in seen:
            return set()
        seen.add(key)
        names: set[str] = set()
        for statement in _flat(node.body):
            if isinstance(statement, FunctionNode):
                names.add(statement.name)
                names |= _assigned_to_self(statement)
            elif isinstance(statement, ast.ClassDef):
                names.add(statement.name)
            else:
                names |= _stored(statement)
        for base in node.bases:
            if isinstance(base, ast.Name):
                found = self._find_class(module, base.id, set())
                if found is not None:
                    names |= self._attributes(*found, seen)
        return names


def installed(folder: Path) -> Sources:
    """The sources of a package `vllm` that lies in `folder`."""

    def read(module: str) -> bytes | None:
        file = folder.parent.joinpath(*module.split("."))
        for candidate in (file.with_suffix(".py"), file / "__init__.py"):
            if candidate.is_file():
                return candidate.read_bytes()
        return None

    return Sources(read)


def fingerprint(node: ast.AST) -> str:
    """A hash of what a function does, the same in every Python that can read it."""
    return hashlib.sha256(repr(_shape(node)).encode()).hexdigest()[:12]


def _shape(value: object) -> object:
    """A node as nested tuples, without what Python's versions differ in: positions, and fields that are empty."""
    if isinstance(value, list):
        return [_shape(item) for item in value]
    if not isinstance(value, ast.AST):
        return value
    fields = []
    for name, field in ast.iter_fields(value):
        if name == "body" and isinstance(value, FunctionNode | ast.ClassDef) and ast.get_docstring(value, False):
            field = field[1:]
        if field not in (None, []) and name not in ("ctx", "kind", "type_comment"):
            fields.append((name, _shape(field)))
    return type(value).__name__, fields


def parameters(node: FunctionNode) -> tuple[str, ...]:
    """The parameters of a function, as in `Function.parameters`."""
    arguments = node.args
    positional = [*arguments.posonlyargs, *arguments.args]
    without_default = len(positional) - len(arguments.defaults)
    found = [f"{one.arg}{'=' * (place >= without_default)}" for place, one in enumerate(positional)]
    if arguments.vararg is not None:
        found.append(f"*{arguments.vararg.arg}")
    elif arguments.kwonlyargs:
        found.append("*")
    for one, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        found.append(f"{one.arg}{'=' * (default is not None)}")
    if arguments.kwarg is not None:
        found.append(f"**{arguments.kwarg.arg}")
    return tuple(found)


def _flat(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements of a body, and those inside of its `if`, `try` and `with`."""
    for node in body:
        yield node
        if isinstance(node, ast.If | ast.Try | ast.With):
            for inner in (node.body, getattr(node, "orelse", []), getattr(node, "finalbody", [])):
                yield from _flat(inner)
            for handler in getattr(node, "handlers", []):
                yield from _flat(handler.body)


def _decorators(node: FunctionNode) -> Iterator[str]:
    for decorator in node.decorator_list:
        target = decorator.func if isinstance(decorator, ast.Call) else decorator
        if isinstance(target, ast.Name):
            yield target.id
        elif isinstance(target, ast.Attribute):
            yield target.attr


def _stored(node: ast.AST) -> set[str]:
    return {one.id for one in ast.walk(node) if isinstance(one, ast.Name) and isinstance(one.ctx, ast.Store)}


def _assigned_to_self(method: FunctionNode) -> set[str]:
    arguments = [*method.args.posonlyargs, *method.args.args]
    if not arguments:
        return set()
    return {
        node.attr
        for node in ast.walk(method)
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Store)
        and isinstance(node.value, ast.Name)
        and node.value.id == arguments[0].arg
    }


def _variables(function: FunctionNode) -> set[str]:
    names = [name.strip("*=") for name in parameters(function)]
    positional = [one.arg for one in (*function.args.posonlyargs, *function.args.args)]
    placed = {f"{name}@{place}" for place, name in enumerate(positional)}
    return {*names, *placed, *_stored(function)} - {""}
