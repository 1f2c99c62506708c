"""One word for each idea, the field's own: what the code, the docs and the page no longer say."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from sublens import errors

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "sublens"
RETIRED = re.compile(
    r"(?i:\b(?:judg\w*|strange\w*|familiar\w*|pupils?|diary|diaries|vouch\w*|unborn|heed\w*|honest\w*)\b)"
    r"|\b(?:Sight|Judged|Lot|Wish)\b|_(?:judg|strange|pupil|diary|vouch|heed|hint)\w*|\bhints?_\w+"
)
"""Prediction, out-of-distribution, in-distribution, student, recorder, verified, task ... stand in their stead."""
FORMER = ("hint_loss", "#judge")
"""Names of older logs and addresses, which are still understood."""
VAGUE = {"told", "one", "found", "seen", "asked", "given", "wanted", "said", "shown", "judged"}
"""Names of variables that say nothing of the thing."""
GENITIVE = re.compile(r"(?:Of|That|In which|At which|By which|For which|With which|On which|Which)\b")
"""How a docstring begins that only completes the name before it."""
TEXTS = sorted(
    path
    for folder in (SOURCE, ROOT / "docs", ROOT / "benchmarks", ROOT / "scripts")
    for path in folder.rglob("*")
    if path.suffix in {".py", ".md", ".js", ".html", ".css", ".j2", ".toml", ".sh"}
)
MODULES = [path for path in TEXTS if path.suffix == ".py" and path.is_relative_to(SOURCE)]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", [*TEXTS, ROOT / "README.md"], ids=name_of)
def test_no_retired_word_is_left(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for former in FORMER:
        text = text.replace(former, "")
    lines = enumerate(text.splitlines(), start=1)
    assert [f"{number}: {line.strip()}" for number, line in lines if RETIRED.search(line)] == []


def bindings(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Lines and names of variables, arguments and fields that are bound anywhere."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_variable_is_named_after_the_thing(path: Path) -> None:
    assert [binding for binding in bindings(ast.parse(path.read_text())) if binding[1] in VAGUE] == []


def docstrings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Lines and texts of all docstrings, those of constants and fields included."""
    for node in ast.walk(tree):
        for statement in getattr(node, "body", []) if not isinstance(node, ast.Lambda | ast.IfExp) else []:
            value = getattr(statement, "value", None)
            if isinstance(statement, ast.Expr) and isinstance(value, ast.Constant) and isinstance(value.value, str):
                yield statement.lineno, value.value


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_docstring_stands_alone(path: Path) -> None:
    found = docstrings(ast.parse(path.read_text()))
    assert [(line, text.splitlines()[0]) for line, text in found if GENITIVE.match(text)] == []


OURS = {name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, errors.SublensError)}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_every_error_says_what_is_needed_and_what_to_do_next(path: Path) -> None:
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    made = [call for call in calls if isinstance(call.func, ast.Name) and call.func.id in OURS]
    incomplete = [call.lineno for call in made if not {"need", "next"} <= {keyword.arg for keyword in call.keywords}]
    assert incomplete == []
