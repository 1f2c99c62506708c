"""Housekeeping: the layers, the public names, the README."""

import ast
import os
import re
import shlex
import subprocess
import sys
from collections import Counter
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
import typer

import sublens
from sublens import cli, config

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "sublens"
FLOORS = (
    *("errors", "progress", "config", "metrics"),
    *("storage", "parallel", "images", "surveys", "lensing", "modelling", "models", "observation", "sim"),
    *("data", "inference", "training", "evaluation", "report"),
    *("web", "workflows", "cli"),
)
"""Packages and files of sublens; each imports only from those before it."""
MODULES = sorted(
    path.relative_to(SOURCE).with_suffix("").as_posix().replace("/", ".")
    for path in SOURCE.rglob("*.py")
    if path.name != "__init__.py"
)


def imports(name: str) -> set[str]:
    """The modules of sublens that a module imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse((SOURCE / (name.replace(".", "/") + ".py")).read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return {name.removeprefix("sublens.") for name in names} & set(MODULES)


def floor(name: str) -> str:
    return name.partition(".")[0]


def test_every_module_has_its_floor() -> None:
    assert {floor(name) for name in MODULES} == set(FLOORS)


@pytest.mark.parametrize("name", MODULES)
def test_a_module_imports_only_from_floors_below_and_its_own(name: str) -> None:
    above = [other for other in imports(name) if FLOORS.index(floor(other)) > FLOORS.index(floor(name))]
    assert above == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    TopologicalSorter({name: imports(name) for name in MODULES}).prepare()  # raises CycleError


def test_no_package_is_crowded_and_no_file_long() -> None:
    packages = Counter(floor(name) for name in MODULES if "." in name)
    lines = {name: len((SOURCE / (name.replace(".", "/") + ".py")).read_text().splitlines()) for name in MODULES}
    assert max(packages.values()) <= 13
    assert [name for name, n in lines.items() if n > 450 and name not in ("cli", "surveys.survey")] == []


@pytest.mark.parametrize("name", sublens.__all__)
def test_public_names_exist_and_are_documented(name: str) -> None:
    assert getattr(sublens, name).__doc__


def test_an_unknown_public_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        sublens.nothing  # noqa: B018


def test_nothing_unpickles_but_legacy_in_its_child() -> None:
    banned = re.compile(r"torch\.load\(|allow_pickle=True|import pickle|joblib\.load")
    found = [(path.name, words) for path in SOURCE.rglob("*.py") for words in banned.findall(path.read_text())]
    assert found == [("legacy.py", "import pickle")]


def test_every_module_says_what_it_is_for() -> None:
    texts = {name: (SOURCE / (name.replace(".", "/") + ".py")).read_text() for name in MODULES}
    assert [name for name, text in texts.items() if not ast.get_docstring(ast.parse(text))] == []


def test_constraints_pin_every_dependency() -> None:
    pinned = {line.split("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines()}
    project = (ROOT / "pyproject.toml").read_text()
    wanted = re.findall(r'"([a-z0-9-]+)>=', project.split("[project.scripts]")[0])
    assert len(wanted) >= 12
    assert set(wanted) <= pinned
    assert {"torchvision", "pytest", "ruff", "mypy"} <= pinned


def test_ci_runs_what_the_readme_says() -> None:
    assert "\nmake test\n" in (ROOT / ".ci" / "run").read_text()
    assert "\nmake test " in (ROOT / "README.md").read_text()


def shell_lines() -> list[str]:
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.startswith("sublens ")]


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) < 150


def test_the_readme_holds_the_table_of_results() -> None:
    printed = subprocess.run(
        [sys.executable, ROOT / "scripts" / "results.py"], capture_output=True, text=True, check=True
    )
    assert printed.stdout in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("line", shell_lines())
def test_the_readme_commands_are_understood(line: str) -> None:
    """Parsed with their options, up to the point of running."""
    command, *arguments = shlex.split(line, comments=True)[1:]
    typer.main.get_command(cli.app).commands[command].make_context(command, arguments)  # type: ignore[attr-defined]


def test_the_readme_names_every_command() -> None:
    text = (ROOT / "README.md").read_text()
    for command in cli.app.registered_commands:
        name = command.name or command.callback.__name__  # type: ignore[union-attr]
        assert f"sublens {name}" in text


@pytest.mark.parametrize(
    ("network", "labels"),
    [
        ("resnet18", ["train", "evaluate"]),
        ("mobilenetv3-small", ["train", "train", "evaluate"]),
        ("efficientnet-b5", []),
    ],
)
def test_the_reference_script_trains_every_seed_and_publishes_all(
    tmp_path: Path, network: str, labels: list[str]
) -> None:
    stub = tmp_path / "sublens"  # says what it is asked for
    stub.write_text('#!/bin/sh\necho "$@"\n')
    stub.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "SEEDS": "2"}
    command = ["bash", str(ROOT / "scripts" / "reference.sh"), network, str(tmp_path / "work")]
    asked = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.splitlines()
    expected = ["simulate"] * 2 + ["train", "evaluate"] * 2 + labels + ["publish"]
    assert [line.split()[0] for line in asked] == expected
    for line in asked:
        name, *arguments = line.split()
        typer.main.get_command(cli.app).commands[name].make_context(name, arguments)  # type: ignore[attr-defined]
    runs = [line.split()[1] for line in asked if line.startswith("evaluate")]
    assert all(run in asked[-1] for run in runs)


@pytest.mark.parametrize("path", sorted((ROOT / "scripts" / "recipes").glob("*.toml")), ids=lambda path: path.stem)
def test_a_recipe_is_one_for_the_network_in_its_name(path: Path) -> None:
    settings = config.load(path)
    assert path.stem.rsplit("-", 1) == [
        settings.model.name,
        "labels" if settings.train.truth_weight == 0 else "simulator",
    ]
