"""One word per idea: no class and no public function has the name of another."""

import ast
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCES = [*ROOT.glob("packages/*/src/**/*.py"), *ROOT.glob("tools/**/*.py")]
OF_EVERY_SCRIPT = {"main"}


def is_public(node: ast.stmt) -> bool:
    if isinstance(node, ast.ClassDef):
        return True
    return isinstance(node, ast.FunctionDef) and not node.name.startswith("_")


def test_no_name_means_two_things() -> None:
    places: dict[str, list[str]] = defaultdict(list)
    for file in sorted(SOURCES):
        for node in ast.parse(file.read_text()).body:
            if is_public(node) and isinstance(node, ast.ClassDef | ast.FunctionDef):
                places[node.name].append(f"{file.relative_to(ROOT)}:{node.lineno}")
    twice = {name: where for name, where in places.items() if len(where) > 1}
    assert {k: v for k, v in twice.items() if k not in OF_EVERY_SCRIPT} == {}
