"""Housekeeping: the layers, the public names, the README."""

import ast
import importlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer

import sublens
from sublens import cli, config

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "sublens"
LAYERS = (
    *(
        "errors",
        "progress",
        "remote",
        "files",
        "config",
        "mapping",
        "cluster",
        "images",
        "mosaic",
        "reading",
        "legacy",
        "cutout",
        "engine",
    ),
    *("sim.survey", "sim.presets", "sim.cosmology", "sim.compiled", "sim.mass", "sim.light", "sim.camera"),
    *("sim.population", "sim.render", "sim.workers", "sim.scene"),
    *(
        "store",
        "fits",
        "data",
        "timm_import",
        "models",
        "metrics",
        "calibrate",
        "bundle",
        "weights",
        "checkpoint",
        "hints",
        "ranks",
        "train",
        "fidelity",
        "sheet",
    ),
    *("predict", "evaluate", "explain", "catalog", "classify", "export", "run", "publish", "report", "job", "visible"),
    *("web.problem", "web.keys", "web.batching", "web.metrics", "web.guard", "web.served"),
    *("web.inference", "web.judging", "web.exploring", "web.app", "web.server", "cli"),
)
"""A file imports only from those before it."""


def imports(path: Path) -> set[str]:
    """The modules of sublens that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    own = {name.removeprefix("sublens.") for name in found if name.startswith("sublens.")}
    return {name for name in own if name in LAYERS}


def test_every_file_has_its_layer() -> None:
    modules = {path.relative_to(SOURCE).with_suffix("").as_posix().replace("/", ".") for path in SOURCE.rglob("*.py")}
    assert modules - {"__init__", "sim.__init__", "web.__init__"} == set(LAYERS)


@pytest.mark.parametrize("name", LAYERS)
def test_a_file_imports_only_from_layers_below(name: str) -> None:
    path = SOURCE / (name.replace(".", "/") + ".py")
    above = [other for other in imports(path) if LAYERS.index(other) >= LAYERS.index(name)]
    assert above == []


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
    names = [name for name in LAYERS if not importlib.import_module(f"sublens.{name}").__doc__]
    assert names == []


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
