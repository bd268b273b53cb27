"""A trained run as a notebook for a code competition of Kaggle, which runs without a network.

dist/kaggle/<run>/dataset/: a private data set for Kaggle: wheels (of this project, and of what Kaggle's image lacks)
and the run's folder below data/train/. dist/kaggle/<run>/notebook/: the notebook that installs them and submits.
Sources: the metadata files of Kaggle's client (github.com/Kaggle/kaggle-cli, docs), the notebook format (nbformat 4.5).
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from packaging.markers import default_environment
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import NormalizedName, canonicalize_name

from pipeline import __version__
from pipeline.config import Config, dump_config
from pipeline.kaggle import competition_of
from pipeline.records.files import write_json, write_text
from pipeline.records.paths import Paths
from pipeline.runner import differences_from_settings

if TYPE_CHECKING:
    from pipeline.trained import TrainedRun

CHECKOUT = Path(__file__).parents[1]
OUT = Path("dist/kaggle")
NOTEBOOK, WHEELS = "notebook.ipynb", "wheels"
LARGEST = 20_000_000_000
"""Bytes of a data set that Kaggle takes; its limit has been 20 GB, and higher at times."""
LONGEST_NAME = 50
"""Letters of a data set's or notebook's name on Kaggle, of which there must be 6 at least."""
IN_KAGGLES_IMAGE = (
    "aiohttp", "albumentations", "filelock", "fsspec", "huggingface-hub", "jinja2", "matplotlib", "numba", "numpy",
    "opencv-python-headless", "packaging", "pandas", "pillow", "pydantic", "pyyaml", "safetensors", "scikit-image",
    "scikit-learn", "scipy", "setuptools", "threadpoolctl", "tifffile", "torch", "torchvision", "tqdm",
    "typing-extensions",
)  # fmt: skip
"""Distributions that count as there, in any version, where no list of the image's own is given (github.com/Kaggle/
docker-python). The notebook tells where a version does not fit."""
MANYLINUX = ("linux_x86_64", *(f"manylinux_2_{minor}_x86_64" for minor in range(5, 36)),
             "manylinux1_x86_64", "manylinux2010_x86_64", "manylinux2014_x86_64")  # fmt: skip
"""Platforms whose wheels run on Kaggle's machines."""

FOLDERS = """
import os
import subprocess
import sys
from pathlib import Path

INPUT, WORKING = Path("/kaggle/input"), Path("/kaggle/working")
# Nothing may look for newer versions or for weights where no network is.
os.environ.update(HF_HUB_OFFLINE="1", NO_ALBUMENTATIONS_UPDATE="1")


def folder(*names):
    found = [INPUT / name for name in names if (INPUT / name).is_dir()]
    if not found:
        raise FileNotFoundError(f"{INPUT}: expected {' or '.join(names)}, found neither; add it as an input")
    return found[0]


def run(*command):
    command = [str(part) for part in command]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        for line in process.stdout:
            print(line, end="")
    if process.returncode:
        raise RuntimeError(f"{' '.join(command[:4])} ... failed; what it says stands above")


# Kaggle mounts inputs at one of two places.
packed = folder(DATASET.split("/")[1], f"datasets/{DATASET}")
competition = folder(COMPETITION, f"competitions/{COMPETITION}")
"""
ON_INSTALLING = """
Exactly the packed versions are installed. Where others do not fit, write what `pip freeze` says here into a file and
pack again with `IMAGE=<file>`, or with `WHEELS=all`.
"""
INSTALL = """
if sys.version_info[:2] != PYTHON:
    raise RuntimeError(f"the wheels are for Python {PYTHON}, this is {sys.version}; pack again with KAGGLE_PYTHON")
wheels = sorted((packed / "wheels").glob("*.whl"))
run(sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", *wheels)

from importlib import metadata

from packaging.requirements import Requirement


def version(name):
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


misfits = []
for name in [wheel.name.split("-")[0] for wheel in wheels]:
    asked = [Requirement(line) for line in metadata.requires(name) or ()]
    for wanted in [one for one in asked if one.marker is None or one.marker.evaluate({"extra": ""})]:
        found = version(wanted.name)
        if found is None or not wanted.specifier.contains(found, prereleases=True):
            misfits.append(f"{name} asks for {wanted}, here is {found or 'none'}")
if misfits:
    raise RuntimeError("; ".join(misfits))
"""
SUBMIT = """
trained, out = packed / "data/train" / RUN, WORKING / "submission.csv"
run(sys.executable, "-m", "pipeline", "submit", "--run", trained, "--raw", competition, "--out", out)
"""


@dataclass(frozen=True)
class Pinned:
    """A distribution of the lock: its requirement (name==version), hashes, and the distributions that ask for it."""

    requirement: Requirement
    hashes: tuple[str, ...]
    wanted_by: tuple[NormalizedName, ...]

    @property
    def name(self) -> NormalizedName:
        """The name as indexes write it."""
        return canonicalize_name(self.requirement.name)

    @property
    def exactly(self) -> str:
        """name==version."""
        return f"{self.requirement.name}{self.requirement.specifier}"

    @property
    def line(self) -> str:
        """The lines of a requirements file, hashes included, without the marker."""
        hashes = "".join(f" \\\n    --hash={value}" for value in self.hashes)
        return f"{self.exactly}{hashes}"


def pack_notebook(
    config: Config, paths: Paths, owner: str | None, wheels: Literal["missing", "all"] = "missing",
    image: Path | None = None, python: str | None = None, out: Path = OUT,
) -> None:  # fmt: skip
    """Write the folders of the data set and the notebook that submit a trained run's predictions on Kaggle.

    owner: the user's name on Kaggle; wheels: those that the image lacks, or all, torch among them; image: what
    `pip freeze` says in a notebook there, against which versions are checked; python: version there, such as 3.12, by
    default this one's; out: the folder in which <run>/ is made anew.
    Raises ValueError with everything that is wrong before anything is fetched; with every wheel that cannot be had; and
    where the data set is larger than Kaggle takes.
    """
    from pipeline.trained import open_run

    python = python or f"{sys.version_info.major}.{sys.version_info.minor}"
    competition, problems = competition_of(config), _problems(config, paths, owner, python)
    if image is not None and wheels == "all":
        problems.append(f"IMAGE={image} has no use with WHEELS=all: leave one of them out")
    try:
        pinned, here = read_lock(CHECKOUT / "requirements.lock"), _image(image, wheels)
    except (OSError, ValueError) as error:
        problems.append(str(error))
    if problems:
        raise ValueError(
            f"{paths.train} cannot be packed as a notebook:\n" + "\n".join(f"  {problem}" for problem in problems)
        )
    trained = open_run(paths.train)
    home, name = out / config.run, _name(config.run)
    with tempfile.TemporaryDirectory(dir=_made(home), prefix=".packing-") as folder:
        dataset = Path(folder) / "dataset"
        _copy_runs(trained, config, dataset / "data" / "train")
        wanted = wanted_distributions(pinned, project_requirements(), here, environment_of(python))
        _build_wheel(dataset / WHEELS)
        _fetch_wheels(wanted, dataset / WHEELS, python, home / "dataset" / WHEELS)
        if wheels == "all":
            _try_install(dataset / WHEELS, python)
        write_json(dataset / "dataset-metadata.json", dataset_metadata(f"{owner}/{name}"))
        size = sum(file.stat().st_size for file in dataset.rglob("*") if file.is_file())
        if size > LARGEST:
            raise ValueError(
                f"{home}: expected a data set of at most {LARGEST / 1e9:g} GB, as Kaggle takes, found "
                f"{size / 1e9:.1f} GB ({_largest(dataset)}); pack less with WHEELS=missing"
            )
        shutil.rmtree(home / "dataset", ignore_errors=True)
        dataset.rename(home / "dataset")
    code = notebook(config.run, f"{owner}/{name}", str(competition), python)
    write_json(home / "notebook" / NOTEBOOK, code)
    on_gpu = trained.config.compute.device == "cuda"
    write_json(home / "notebook" / "kernel-metadata.json",
               kernel_metadata(f"{owner}/{name}", str(competition), on_gpu=on_gpu))  # fmt: skip
    print(
        f"{1 + len(wanted)} wheels for Python {python}, {size / 1e6:,.0f} MB; accelerator {'on' if on_gpu else 'off'}"
    )
    print(f"\nWritten: {home / 'dataset'} and {home / 'notebook'}")
    print(f"Next:    kaggle datasets create -p {home / 'dataset'} --dir-mode zip   (again: kaggle datasets version -p "
          f"{home / 'dataset'} --dir-mode zip -m again), then kaggle kernels push -p {home / 'notebook'}")  # fmt: skip


# --- What is checked before anything is made ----------------------------------------------------------------------


def _problems(config: Config, paths: Paths, owner: str | None, python: str) -> list[str]:
    """Say in words everything that keeps a run from being packed."""
    if wrong := differences_from_settings("train", config, paths):
        problems = [
            f"{paths.train}: expected a finished run of these settings, found that {'; '.join(wrong)}; run `make train`"
        ]
    else:
        problems = _unusable(paths)
    if not owner or not re.fullmatch(r"[A-Za-z0-9-]+", owner):
        found = owner or "none"
        problems.append(
            f"OWNER: expected your name on Kaggle, found {found}; give OWNER=<name>, or set KAGGLE_USERNAME"
        )
    if competition_of(config) is None:
        problems.append(
            f"{config.dataset} is no competition of Kaggle's that is known here; name it with submit.competition=<name>"
        )
    if not re.fullmatch(r"3\.\d+", python):
        problems.append(f"KAGGLE_PYTHON: expected a version such as 3.12, found {python}")
    return problems


def _unusable(paths: Paths) -> list[str]:
    from pipeline.trained import BEST, open_run

    trained = open_run(paths.train)
    if trained.outputs.is_image:
        return [f"{paths.train}: expected a run that makes masks or classes, found task {trained.config.train.task}"]
    problems: list[str] = []
    for one in _with_members(trained, problems):
        if not one.config.train.members and not one.weights.exists():
            problems.append(f"{one.folder / BEST}: expected the weights of a trained run, found none; run `make train`")
    return problems


def _with_members(trained: TrainedRun, problems: list[str]) -> list[TrainedRun]:
    """Return a run and the runs whose maps it averages, theirs included; those that are gone are added to problems."""
    from pipeline.trained import open_run

    runs = [trained]
    for name in trained.config.train.members:
        try:
            runs += _with_members(open_run(trained.home / name), problems)
        except ValueError as error:
            problems.append(str(error))
    return runs


def _name(run: str) -> str:
    """Return the name of a run's data set on Kaggle: small letters, digits and hyphens, short enough for a suffix."""
    name = "stainseg-" + re.sub(r"[^a-z0-9]+", "-", run.lower()).strip("-")
    longest = LONGEST_NAME - len("-submission")
    return name if len(name) <= longest else f"{name[: longest - 9]}-{hashlib.sha256(run.encode()).hexdigest()[:8]}"


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _largest(folder: Path) -> str:
    files = sorted((file for file in folder.rglob("*") if file.is_file()), key=lambda file: -file.stat().st_size)
    return ", ".join(f"{file.name} {file.stat().st_size / 1e9:.1f} GB" for file in files[:3])


# --- The run ------------------------------------------------------------------------------------------------------


def _copy_runs(trained: TrainedRun, config: Config, out: Path) -> None:
    """Copy what prediction reads of a run and its members; ingest and submit are set as they are now."""
    from pipeline.stains import normaliser_files
    from pipeline.trained import BEST, FROZEN, MODEL, THRESHOLDS

    for run in _with_members(trained, []):
        target = out / run.folder.absolute().relative_to(trained.home.absolute())
        target.mkdir(parents=True, exist_ok=True)
        files = [run.folder / name for name in (MODEL, BEST, THRESHOLDS)]
        for file in (*(file for file in files if file.exists()), *normaliser_files(run.folder)):
            shutil.copyfile(file, target / file.name)
        now = {"ingest": config.ingest, "submit": config.submit} if run is trained else {}
        write_text(target / FROZEN, dump_config(run.config.model_copy(update=now)))


# --- The wheels ---------------------------------------------------------------------------------------------------


def read_lock(file: Path) -> list[Pinned]:
    """Read a lock with hashes, as uv writes it. Raises ValueError naming lines that pin nothing, or without a hash."""
    pinned: list[Pinned] = []
    faults = []
    blocks = re.findall(r"(?m)^[A-Za-z0-9].*(?:\n[ #].*)*", file.read_text(encoding="utf-8"))
    for block in blocks:
        first = block.splitlines()[0].rstrip(" \\")
        comment = block.partition("# via")[2]
        parents = tuple(canonicalize_name(name.partition("[")[0]) for name in re.findall(r"[\w.\[\]-]+", comment)
                        if name != "pyproject.toml")  # fmt: skip
        try:
            requirement = Requirement(first)
        except InvalidRequirement:
            faults.append(first)
            continue
        hashes = tuple(re.findall(r"--hash=(\S+)", block))
        if not hashes or [one.operator for one in requirement.specifier] != ["=="]:
            faults.append(first)
        pinned.append(Pinned(requirement, hashes, parents))
    if faults or not pinned:
        raise ValueError(
            f"{file}: expected name==version with hashes, found {', '.join(faults[:5]) or 'none'}; run `make lock`"
        )
    return pinned


def read_image(file: Path) -> dict[str, str | None]:
    """Read what `pip freeze` printed: name to version, None where one was installed from elsewhere."""
    found: dict[str, str | None] = {}
    for line in file.read_text(encoding="utf-8").splitlines():
        if match := re.match(r"([A-Za-z0-9][\w.-]*)\s*(?:==\s*(\S+)|@ .*)?\s*$", line.strip()):
            found[canonicalize_name(match[1])] = match[2]
    if not found:
        raise ValueError(
            f"{file}: expected lines such as numpy==2.0.2, found none; write it with `pip freeze` on Kaggle"
        )
    return found


def _image(file: Path | None, wheels: str) -> Mapping[str, str | None]:
    if wheels == "all":
        return {}
    return dict.fromkeys(IN_KAGGLES_IMAGE) if file is None else read_image(file)


def project_requirements() -> list[Requirement]:
    """Return what the project itself asks for, from pyproject.toml."""
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return [Requirement(line) for line in project["dependencies"]]


def environment_of(python: str) -> dict[str, str]:
    """Return the values of environment markers on Kaggle's machines: CPython of a version on Linux, x86-64."""
    return {
        **{name: str(value) for name, value in default_environment().items()},
        "python_version": python, "python_full_version": f"{python}.0", "implementation_version": f"{python}.0",
        "implementation_name": "cpython", "platform_python_implementation": "CPython", "os_name": "posix",
        "sys_platform": "linux", "platform_system": "Linux", "platform_machine": "x86_64", "extra": "",
    }  # fmt: skip


def wanted_distributions(
    pinned: Sequence[Pinned], roots: Iterable[Requirement], image: Mapping[str, str | None],
    environment: Mapping[str, str],
) -> list[Pinned]:  # fmt: skip
    """Return the distributions of the lock that must be brought along, by name.

    Those that the roots ask for, and those that they ask for in turn, but for what the image has: in a version that is
    asked for, where versions are known. What a distribution of the image asks for is there with it.
    """
    here = {one.name: one for one in pinned
            if one.requirement.marker is None or one.requirement.marker.evaluate(dict(environment))}  # fmt: skip
    asked = [root for root in roots if root.marker is None or root.marker.evaluate(dict(environment))]
    wanted: dict[str, Pinned] = {}
    while asked:
        requirement = asked.pop()
        name = canonicalize_name(requirement.name)
        if name in wanted or name not in here or _has(image, requirement):
            continue
        wanted[name] = here[name]
        asked += _asked_by(name, here.values(), environment)
    return [wanted[name] for name in sorted(wanted)]


def _has(image: Mapping[str, str | None], requirement: Requirement) -> bool:
    name = canonicalize_name(requirement.name)
    if name not in image:
        return False
    version = image[name]
    return version is None or requirement.specifier.contains(version, prereleases=True)


def _asked_by(name: NormalizedName, pinned: Iterable[Pinned], environment: Mapping[str, str]) -> list[Requirement]:
    """Return what a distribution asks for by the lock, with the versions where it is installed and says them."""
    try:
        said = [Requirement(line) for line in metadata.requires(name) or ()]
    except metadata.PackageNotFoundError:
        said = []
    versions = {canonicalize_name(one.name): one for one in said
                if one.marker is None or one.marker.evaluate(dict(environment))}  # fmt: skip
    return [versions.get(one.name, Requirement(one.name)) for one in pinned if name in one.wanted_by]


def _build_wheel(out: Path) -> None:
    """Build the project's own wheel, from a copy, so that the checkout stays as it is."""
    with tempfile.TemporaryDirectory() as folder:
        for name in ("pyproject.toml", "README.md", "LICENSE"):
            shutil.copyfile(CHECKOUT / name, Path(folder) / name)
        shutil.copytree(CHECKOUT / "pipeline", Path(folder) / "pipeline", ignore=shutil.ignore_patterns("__pycache__"))
        done = _pip("wheel", "--no-index", "--no-deps", "--no-build-isolation", "--wheel-dir", str(out), folder)
    if done:
        raise ValueError(f"{CHECKOUT}: expected the project to build as a wheel, found {done}")


def _fetch_wheels(wanted: Sequence[Pinned], out: Path, python: str, former: Path) -> None:
    """Fetch wheels, each against the hashes of the lock; those of an earlier packing are taken from there.

    Raises ValueError naming every one that cannot be had.
    """
    if not wanted:
        return
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        listed = Path(folder) / "wanted.txt"

        def fetch(some: Sequence[Pinned]) -> str:
            listed.write_text("".join(one.line + "\n" for one in some), encoding="utf-8")
            return _pip(
                "download", "--no-deps", "--require-hashes", "--requirement", str(listed), "--dest", str(out),
                *(("--find-links", str(former)) if former.is_dir() else ()), *_for_kaggle(python),
            )  # fmt: skip

        if not fetch(wanted):
            return
        missing = [f"{one.exactly}: {said}" for one in wanted if (said := fetch([one]))]
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(wanted)} wheels for Python {python} on Linux could not be had:\n"
            + "\n".join(f"  {line}" for line in missing)
            + "\nLook whether the network is there, or name another version of Python"
        )


def _try_install(wheels: Path, python: str) -> None:
    """Let pip resolve the project from the wheels alone, as it will in an empty environment."""
    with tempfile.TemporaryDirectory() as folder:
        said = _pip(
            "install", "--dry-run", "--ignore-installed", "--no-index", "--find-links", str(wheels), "--target", folder,
            *_for_kaggle(python), f"stainseg=={__version__}",
        )  # fmt: skip
    if said:
        raise ValueError(f"{wheels}: expected wheels that suffice in an empty environment, found {said}")


def _for_kaggle(python: str) -> list[str]:
    platforms = [option for name in MANYLINUX for option in ("--platform", name)]
    abis = [option for name in (f"cp{python.replace('.', '')}", "abi3", "none") for option in ("--abi", name)]
    return ["--only-binary=:all:", "--python-version", python, "--implementation", "cp", *platforms, *abis]


def _pip(*arguments: str) -> str:
    """Run pip; return nothing where it succeeded, else the last line that it printed."""
    # Zips of 1980 are the same bytes whenever they are made.
    environment = {**os.environ, "SOURCE_DATE_EPOCH": "315532800", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    command = [sys.executable, "-m", "pip", arguments[0], "--quiet", *arguments[1:]]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    errors = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
    told = [line for line in errors if line.startswith("ERROR")] or errors or [f"pip ended with {done.returncode}"]
    return " ".join(told[:2]) if done.returncode else ""


# --- What Kaggle reads --------------------------------------------------------------------------------------------


def dataset_metadata(name: str) -> dict[str, Any]:
    """Return dataset-metadata.json; name: <owner>/<data set>."""
    title = name.partition("/")[2].replace("-", " ")
    return {"title": title, "id": name, "licenses": [{"name": "other"}]}


def kernel_metadata(name: str, competition: str, *, on_gpu: bool) -> dict[str, Any]:
    """Return kernel-metadata.json of a private notebook without network; name: <owner>/<data set>."""
    return {
        "id": f"{name}-submission",
        "title": f"{name.partition('/')[2]}-submission".replace("-", " "),
        "code_file": NOTEBOOK,
        "language": "python",
        "kernel_type": "notebook",
        "is_private": True,
        "enable_gpu": on_gpu,
        "enable_internet": False,
        "dataset_sources": [name],
        "competition_sources": [competition],
        "kernel_sources": [],
    }


def notebook(run: str, dataset: str, competition: str, python: str) -> dict[str, Any]:
    """Return the notebook, in format 4.5; dataset: <owner>/<data set>; python: the version that wheels are for."""
    title = (
        f"# {run}\n\nPredicts the test images of `{competition}` with a trained run of stainseg, whose weights, "
        f"thresholds and code are in the data set `{dataset}`, and writes `submission.csv`. Needs no network. Made by "
        "`make kaggle-notebook`."
    )
    version = tuple(int(part) for part in python.split("."))
    named = {"DATASET": dataset, "COMPETITION": competition, "RUN": run, "PYTHON": version}
    names = "".join(f"{name} = {value!r}\n" for name, value in named.items())
    cells = [("markdown", title), ("code", names), ("code", FOLDERS), ("markdown", ON_INSTALLING), ("code", INSTALL),
             ("code", SUBMIT)]  # fmt: skip
    return {
        "cells": [_cell(number, kind, text) for number, (kind, text) in enumerate(cells)],
        "metadata": {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        },
        "nbformat": 4,
        "nbformat_minor": 5,
    }


def _cell(number: int, kind: str, text: str) -> dict[str, Any]:
    source = text.strip().splitlines(keepends=True)
    cell = {"cell_type": kind, "id": f"cell-{number}", "metadata": {}, "source": source}
    return cell if kind == "markdown" else cell | {"execution_count": None, "outputs": []}
