# SPDX-License-Identifier: Apache-2.0
"""Which module may import which: the arrow points downwards, and parsing a DAG loads no client."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path

import pytest

PACKAGE = "airflow_provider_gptimg"
ROOT = Path(__file__).parent.parent / PACKAGE
MODULES = {
    ".".join((PACKAGE, *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in ROOT.rglob("*.py")
}
# What a DAG imports; the triggerer and the webserver aside, also what they import of it.
PARSED = ("operators", "sensors", "transfers", "decorators", "triggers", "links")
PUBLIC_EVERYWHERE = ("airflow.triggers.base", "airflow.providers")
CLIENTS = ("httpx", "aiohttp", "boto3", "botocore", f"{PACKAGE}.hooks")


def is_below(module: str, *layers: str) -> bool:
    return any(module == layer or module.startswith(f"{layer}.") for layer in layers)


def layer(name: str) -> str:
    return f"{PACKAGE}.{name}"


def imports(tree: ast.AST, anywhere: bool) -> Iterator[str]:
    """Yield the modules that are imported: `anywhere`, or only when the module itself is imported."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            assert node.module
            # `from package import module` names a module; `from module import name` does not.
            yield from (
                name if (name := f"{node.module}.{alias.name}") in MODULES else node.module for alias in node.names
            )
        elif anywhere or not is_run_later(node):
            yield from imports(node, anywhere)


def is_run_later(node: ast.AST) -> bool:
    is_for_types = isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
    return is_for_types or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)


@cache
def imported_by(module: str, anywhere: bool = True) -> frozenset[str]:
    return frozenset(imports(ast.parse(MODULES[module].read_text()), anywhere))


@cache
def loaded_by(module: str) -> frozenset[str]:
    """Return all that importing `module` loads, as far as this package's own modules lead."""
    found, todo = set(), [module]
    while todo:
        for name in imported_by(todo.pop(), anywhere=False) - found:
            found.add(name)
            if name in MODULES:
                todo.append(name)
    return frozenset(found)


def in_layers(*names: str) -> list[str]:
    return sorted(module for module in MODULES if is_below(module, *map(layer, names)))


def test_there_are_modules_to_look_at():
    assert {layer("api.protocol"), layer("hooks.gptimg"), layer("operators.gptimg"), PACKAGE} <= set(MODULES)
    assert layer("api.tasks") in imported_by(layer("api.protocol"))


def offenders(modules: Iterable[str], is_allowed: Callable[[str], bool], anywhere: bool = True) -> dict[str, list[str]]:
    """Return the imports that each of `modules` must not have."""
    found = {module: [name for name in imported_by(module, anywhere) if not is_allowed(name)] for module in modules}
    return {module: names for module, names in found.items() if names}


def test_api_and_polling_import_the_standard_library_errors_and_themselves():
    pure = ("api", "exceptions", "polling")

    def is_allowed(name: str) -> bool:
        return name.split(".")[0] in sys.stdlib_module_names or is_below(name, *map(layer, pure))

    assert offenders(in_layers(*pure), is_allowed) == {}


def test_nothing_but_decorators_imports_operators():
    """And the command line that reads DAGs, which are made of them."""
    others = set(MODULES) - set(in_layers("operators", "decorators", "cost"))
    assert offenders(others, lambda name: not is_below(name, layer("operators"))) == {}


def test_imports_point_downwards_in_the_layout():
    """As CONTRIBUTING.md draws it."""
    layout = (ROOT.parent / "CONTRIBUTING.md").read_text().split("```")[1]
    library, tools = (re.findall(r"^\S.*?(?=  )", part, re.MULTILINE) for part in layout.split("\n\n"))
    above = [layer(name) for row in tools for name in names_in(row)]
    for row in library:
        assert offenders(in_layers(*names_in(row)), lambda name, above=tuple(above): not is_below(name, *above)) == {}
        above += map(layer, names_in(row))


def names_in(row: str) -> list[str]:
    return re.findall(r"(\w+)(?:/|\.py)", row)


@pytest.mark.parametrize("tool", ["emulator", "sandbox", "gallery", "cost"])
def test_nothing_imports_the_tools_beside_it(tool):
    others = set(MODULES) - set(in_layers(tool, "sandbox", "fixtures"))
    assert offenders(others, lambda name: not is_below(name, layer(tool))) == {}


def test_the_emulator_shares_no_code_with_the_client():
    """Else both may agree and be wrong."""

    def is_allowed(name: str) -> bool:
        return is_below(name, layer("emulator")) or not is_below(name, PACKAGE, "airflow")

    assert offenders(in_layers("emulator"), is_allowed) == {}


def test_parsing_a_dag_loads_no_client():
    found = {module: [name for name in loaded_by(module) if is_below(name, *CLIENTS)] for module in in_layers(*PARSED)}
    assert {module: names for module, names in found.items() if names} == {}


def test_one_module_knows_airflow():
    """The others import what is public on every Airflow, and the rest through `airflow_compat`."""
    others = set(MODULES) - set(in_layers("airflow_compat", "sandbox"))

    def is_allowed(name: str) -> bool:
        return not is_below(name, "airflow", "packaging") or is_below(name, *PUBLIC_EVERYWHERE)

    assert offenders(others, is_allowed) == {}
    for module in others:
        text = MODULES[module].read_text()
        assert "import_module(" not in text, f"{module} hides what it imports"
        assert 'apache-airflow"' not in text, f"{module} asks for a version"


def test_the_package_itself_loads_nothing():
    assert all(name in ("__future__", "typing") for name in imported_by(PACKAGE))


def test_the_fixtures_load_nothing_but_pytest():
    """Every run of pytest loads them."""
    loaded = loaded_by(layer("fixtures")) - {"pytest"}
    assert [name for name in loaded if name.split(".")[0] not in sys.stdlib_module_names] == []
