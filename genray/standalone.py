"""Modules as one text that runs without them: each behind those that it imports from, every one once."""

import ast
import inspect
import symtable
import sys
from collections.abc import Callable, Iterator, Mapping

from genray.errors import RegistryError


def source_of(name: str) -> str:
    """Source of an imported module."""
    return inspect.getsource(sys.modules[name])


def with_siblings(
    name: str, package: str, others: frozenset[str], read: Callable[[str], str] = source_of
) -> dict[str, str]:
    """Sources of the module `name` and of those of `package` that it needs, by name, in the order of their dependence.

    Args:
        name: full name, e.g. `genray.models.vae`.
        package: a sibling is a module below it that is imported by `from PACKAGE.SIBLING import a, b` at the top.
        others: packages that may be imported besides the standard library.
        read: source of a module by its name.

    Raises:
        RegistryError: something else is imported, or siblings import one another in a circle.
    """
    sources: dict[str, str] = {}

    def visit(name: str, importers: tuple[str, ...]) -> None:
        if name in importers:
            raise RegistryError(f"{' imports '.join((*importers, name))}, expected no circle; move what both need out")
        source = read(name)
        tree = ast.parse(source)
        siblings = [node for node in tree.body if _is_plain(node, package)]
        known = sys.stdlib_module_names | others
        foreign = {each for each in _imported(tree, siblings) if each.partition(".")[0] not in known}
        if foreign:
            raise RegistryError(
                f"{_file(name)} imports {', '.join(sorted(foreign))}, expected only {', '.join(sorted(others))}, the "
                f"standard library and, by `from {package}.NAME import a, b` at the top, its siblings: "
                "a registered model carries a copy of all of them; write what it needs into it"
            )
        for node in siblings:
            visit(str(node.module), (*importers, name))  # type: ignore[attr-defined]
        sources[name] = source

    visit(name, ())
    return sources


def join(sources: Mapping[str, str]) -> str:
    """One text of `sources` by module name, in their order, a line above each that says which it is.

    What they import from one another is taken out, and what from `__future__` is moved to the top.

    Raises:
        RegistryError: a name means one thing in one module and another in another.
    """
    meanings: dict[str, tuple[str, str]] = {}
    future, texts = set(), []
    for name, source in sources.items():
        tree = ast.parse(source)
        inner = [node for node in tree.body if isinstance(node, ast.ImportFrom) and node.module in sources]
        above = [node for node in tree.body if isinstance(node, ast.ImportFrom) and node.module == "__future__"]
        future |= {alias.name for node in above for alias in node.names}
        scope = symtable.symtable(source, name, "exec")
        assigned = {symbol.get_name() for symbol in scope.get_symbols() if symbol.is_assigned()}
        for bound, meaning in _bindings(tree, {*inner, *above}, assigned):
            before, where = meanings.setdefault(bound, (meaning, name))
            if where != name and before != meaning:
                raise RegistryError(
                    f"{_file(name)} defines {bound}, as {_file(where)} does, and both are part of one model.py; "
                    "rename one of them"
                )
        taken = {line for node in [*inner, *above] for line in range(node.lineno, (node.end_lineno or 0) + 1)}
        kept = [line for number, line in enumerate(source.split("\n"), 1) if number not in taken]
        texts.append(f"# {_file(name)}\n" + "\n".join(kept).strip() + "\n")
    top = [f"from __future__ import {', '.join(sorted(future))}\n"] if future else []
    return "\n\n".join([*top, *texts])


def _file(name: str) -> str:
    return f"{name.replace('.', '/')}.py"


def _is_plain(node: ast.stmt, package: str) -> bool:
    """Whether a statement takes names from a module below `package`, as they are."""
    return (
        isinstance(node, ast.ImportFrom)
        and not node.level
        and str(node.module).startswith(f"{package}.")
        and all(alias.asname is None and alias.name != "*" for alias in node.names)
    )


def _imported(tree: ast.Module, besides: list[ast.stmt]) -> Iterator[str]:
    """Modules that are imported anywhere, by statements other than `besides`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node not in besides:
            yield "." * node.level + (node.module or "")


def _bindings(tree: ast.Module, besides: set[ast.ImportFrom], assigned: set[str]) -> Iterator[tuple[str, str]]:
    """Names at the top of a module, each with what it stands for: equal where two modules mean the same."""
    for node in tree.body:
        if node in besides:
            continue
        if isinstance(node, ast.Import):
            for alias in node.names:
                bound = alias.asname or alias.name.partition(".")[0]
                yield bound, alias.name if alias.asname else bound
        elif isinstance(node, ast.ImportFrom):
            yield from ((alias.asname or alias.name, f"{node.module}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.ClassDef | ast.FunctionDef):
            yield node.name, ast.dump(node)
        else:
            stored = {
                each.id for each in ast.walk(node) if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store)
            }
            yield from ((bound, ast.dump(node)) for bound in stored & assigned)  # a comprehension's are its own
