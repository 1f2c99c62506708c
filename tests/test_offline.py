"""Nothing leaves the machine: no command asks for the address of another one, or keeps a mark of the user."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

RESOLVER = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void record(const char *name) {
  FILE *file;
  if (!name || !strcmp(name, "localhost") || !strncmp(name, "127.", 4)) return;
  if (!(file = fopen(getenv("LOOKED_UP"), "a"))) return;
  fprintf(file, "%s\n", name);
  fclose(file);
}

int getaddrinfo(const char *name, const char *service, const struct addrinfo *hints, struct addrinfo **found) {
  int (*system)(const char *, const char *, const struct addrinfo *, struct addrinfo **) =
      dlsym(RTLD_NEXT, "getaddrinfo");
  record(name);
  return system(name, service, hints, found);
}

struct hostent *gethostbyname(const char *name) {
  record(name);
  return NULL;
}
"""
"""A resolver that writes down whatever name a process asks it for, for the dynamic linker to put first."""
OURS = {".astropy", "astropy", "matplotlib"}
"""What the libraries that we use keep in a home: settings and caches of data and fonts."""


class Watched:
    """A user with an empty home, whose every look-up of an address is written down."""

    def __init__(self, folder: Path) -> None:
        if not (compiler := shutil.which("cc")):
            pytest.skip("no C compiler here")
        (folder / "resolver.c").write_text(RESOLVER)
        library, self.home, self.names = folder / "resolver.so", folder / "home", folder / "names"
        subprocess.run([compiler, "-shared", "-fPIC", "-o", library, folder / "resolver.c", "-ldl"], check=True)
        self.home.mkdir()
        kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH", "OMP_NUM_THREADS") if name in os.environ}
        self.environment = {**kept, "HOME": str(self.home), "LD_PRELOAD": str(library), "LOOKED_UP": str(self.names)}

    def start(self, *command: str) -> "subprocess.Popen[str]":
        return subprocess.Popen([sys.executable, *command], env=self.environment, stdout=subprocess.PIPE, text=True)

    def run(self, *arguments: object) -> None:
        with self.start("-m", "sublens.cli", *map(str, arguments)) as process:
            process.communicate()
        assert process.returncode == 0

    @property
    def marks(self) -> set[str]:
        """Names that were looked up, and files in the home that are not ours."""
        names = set(self.names.read_text().split()) if self.names.is_file() else set()
        files = {path.relative_to(self.home) for path in self.home.rglob("*") if path.is_file()}
        return names | {str(path) for path in files if not OURS & set(path.parts)}


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    (tmp_path / "user").mkdir()
    return Watched(tmp_path / "user")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    np.save(tmp_path / "image.npy", np.random.default_rng(0).poisson(20, (150, 150)))
    return tmp_path / "image.npy"


def test_the_watch_notices_a_look_up_and_a_mark(watched: Watched) -> None:
    code = "import pathlib, socket; pathlib.Path.home().joinpath('mark').touch(); socket.getaddrinfo('::1', 80)"
    with watched.start("-c", code) as process:
        process.communicate()
    assert watched.marks == {"::1", "mark"}


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino", "torch"])
def test_predicting_stays_on_the_machine(watched: Watched, image: Path, engine: str, tmp_path: Path) -> None:
    watched.run("predict", "lensnet", image, "--engine", engine, "--out", tmp_path / "table.fits")
    assert watched.marks == set()


def test_training_and_exporting_stay_on_the_machine(watched: Watched, small_store: Path, tmp_path: Path) -> None:
    settings = ("--set", "train.epochs=1", "--set", "train.batch_size=32")
    watched.run("train", small_store, "--model", "lensnet", "--out", tmp_path / "run", *settings)
    watched.run("export", tmp_path / "run", small_store, "--out", tmp_path / "exported")
    assert watched.marks == set()


def test_a_report_for_a_bug_stays_on_the_machine(watched: Watched) -> None:
    watched.run("doctor")
    assert watched.marks == set()


def test_serving_stays_on_the_machine(watched: Watched, image: Path) -> None:
    from urllib.request import Request, urlopen

    with watched.start("-m", "sublens.cli", "serve", "lensnet", "--port", "0") as process:
        assert process.stdout
        address = process.stdout.readline().strip()
        with urlopen(Request(f"{address}/v1/predict?name=image.npy", image.read_bytes()), timeout=60) as answer:
            assert answer.status == 200
        time.sleep(5)  # what an engine sends, it sends later
        process.send_signal(signal.SIGTERM)
    assert process.returncode == 0
    assert watched.marks == set()
