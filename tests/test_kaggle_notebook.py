"""A packed run submits, in an environment without network that has nothing of this checkout, what the stages submit."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from importlib import metadata
from pathlib import Path

import nbformat
import pytest
from packaging.requirements import Requirement

from pipeline import kaggle_notebook
from pipeline.__main__ import main
from pipeline.config import dump_config, load_config
from pipeline.kaggle_notebook import (
    environment_of,
    notebook,
    pack_notebook,
    project_requirements,
    read_image,
    read_lock,
    wanted_distributions,
)
from pipeline.records.paths import Paths

ROOT = Path(__file__).parents[1]
NETWORK_OFF = """
import socket


def refuse(self, address):
    raise OSError(f"reached out to {address}")


socket.socket.connect = refuse
"""
LOCK = """\
# made by hand
alpha==1.5 ; python_full_version < '3.12' \\
    --hash=sha256:aa \\
    --hash=sha256:ab
    # via stainseg (pyproject.toml)
alpha==2.0 ; python_full_version >= '3.12' \\
    --hash=sha256:ac
    # via stainseg (pyproject.toml)
beta==1.0 \\
    --hash=sha256:ba
    # via
    #   alpha
    #   delta[extra]
gamma==3.0 ; sys_platform == 'win32' \\
    --hash=sha256:ca
    # via alpha
delta-more==0.1 \\
    --hash=sha256:da
    # via beta
only-tests==9.0 \\
    --hash=sha256:ea
    # via stainseg (pyproject.toml)
"""


@pytest.fixture
def here(submitted_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the root that a test may change, and works in."""
    shutil.copytree(submitted_run, tmp_path / "root", symlinks=True)
    monkeypatch.chdir(tmp_path / "root")
    monkeypatch.delenv("KAGGLE_USERNAME", raising=False)
    return tmp_path / "root"


@pytest.fixture
def complete_image(tmp_path: Path) -> Path:
    """A list that says that everything is there but this project, so that no wheel is fetched."""
    installed = {distribution.metadata["Name"]: distribution.version for distribution in metadata.distributions()}
    (tmp_path / "image.txt").write_text("".join(f"{name}=={version}\n" for name, version in installed.items()))
    return tmp_path / "image.txt"


def environment_without_network(folder: Path) -> Path:
    """Make an environment that has this one's libraries, but neither the project nor a network; return its Python."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
    place = subprocess.run([python, "-c", ask], capture_output=True, text=True, check=True).stdout.strip()
    (Path(place) / "network_off.py").write_text(NETWORK_OFF)
    (Path(place) / "others.pth").write_text(f"import network_off\n{sysconfig.get_path('purelib')}\n")
    return python


def executed(python: Path, script: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a script in a folder, without this checkout and without indexes."""
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH" and not name.startswith("PIP_")}
    return subprocess.run(
        [python, "-c", script], cwd=folder, env=clean, capture_output=True, text=True, timeout=240, check=False
    )


def script_of(file: Path, kaggle: Path) -> str:
    """The notebook's code as one script, with Kaggle's folders elsewhere."""
    cells = nbformat.read(file, as_version=4).cells
    code = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
    assert code.count('"/kaggle/input"') == code.count('"/kaggle/working"') == 1
    return code.replace("/kaggle/", f"{kaggle}/")


@pytest.mark.slow
def test_the_notebook_runs_without_network_and_submits_the_bytes_of_the_stages(
    here: Path, tmp_path: Path, sample_folder: Path, complete_image: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["kaggle-notebook", "-c", "tiny.yaml", "--owner", "Me-1", "--image", str(complete_image)]) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[0].startswith("1 wheels") and told[-1].startswith("Next:    kaggle datasets create -p dist/kaggle/tiny")
    packed = here / "dist/kaggle/tiny"
    files = {file.relative_to(packed).as_posix() for file in packed.rglob("*") if file.is_file()}
    assert files == {
        "dataset/dataset-metadata.json", "dataset/wheels/stainseg-0.1.0-py3-none-any.whl",
        *(f"dataset/data/train/tiny/{name}" for name in ("best.pt", "config.yaml", "model.json", "thresholds.json")),
        "notebook/kernel-metadata.json", "notebook/notebook.ipynb",
    }  # fmt: skip

    # As on Kaggle: the data set at one of its places, the competition at the other, both read only by use.
    kaggle = tmp_path / "kaggle"
    (kaggle / "working").mkdir(parents=True)
    shutil.copytree(packed / "dataset", kaggle / "input/datasets/Me-1/stainseg-tiny")
    (kaggle / "input/sample-competition").symlink_to(sample_folder)
    python = environment_without_network(tmp_path / "environment")
    script = script_of(packed / "notebook/notebook.ipynb", kaggle)
    script += "\nrun(sys.executable, '-c', 'import pipeline; print(pipeline.__file__)')\n"
    done = executed(python, script, kaggle / "working")
    assert done.returncode == 0, done.stdout + done.stderr
    assert str(tmp_path / "environment") in done.stdout.splitlines()[-1], "the wheel's code ran, not the checkout's"
    assert [file.name for file in (kaggle / "working").iterdir()] == ["submission.csv"]
    assert (kaggle / "working/submission.csv").read_bytes() == (here / "reports/tiny/submission.csv").read_bytes()

    (kaggle / "input/sample-competition").unlink()
    assert "expected sample-competition or competitions/sample-competition, found neither; add it as an input" in (
        executed(python, script, kaggle / "working").stderr
    )


@pytest.mark.slow
def test_members_and_stain_are_packed_and_settings_are_those_of_now(
    here: Path, complete_image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = here / "data/train"
    shutil.copytree(train / "tiny", train / "cv/tiny/fold-0")
    (train / "tiny/stain.json").write_text("{}")
    (train / "tiny/best.pt").unlink()
    averaged = load_config(train / "tiny/config.yaml", ["train={members: [cv/tiny/fold-0]}"])
    (train / "tiny/config.yaml").write_text(dump_config(averaged))
    monkeypatch.setattr(kaggle_notebook, "differences_from_settings", lambda *_: [])
    config = load_config(Path("tiny.yaml"), ["ingest.exclude_faulty=true"])
    (here / "dist/kaggle/tiny/dataset/data/train/former").mkdir(parents=True)
    pack_notebook(config, Paths.of(config), "me", image=complete_image)
    runs = here / "dist/kaggle/tiny/dataset/data/train"
    assert {file.relative_to(runs).as_posix() for file in runs.rglob("*") if file.is_file()} == {
        *(f"tiny/{name}" for name in ("config.yaml", "model.json", "stain.json", "thresholds.json")),
        *(f"cv/tiny/fold-0/{name}" for name in ("best.pt", "config.yaml", "model.json", "thresholds.json")),
    }
    assert load_config(runs / "tiny/config.yaml").ingest.exclude_faulty
    assert not load_config(runs / "cv/tiny/fold-0/config.yaml").ingest.exclude_faulty
    assert not (runs / "former").exists()


@pytest.mark.slow
def test_everything_that_is_wrong_is_told_at_once(
    here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["kaggle-notebook", "-c", "tiny.yaml", "run=untrained", "submit.competition=null", "--owner", "a b",
                 "--image", str(tmp_path / "none.txt"), "--python", "three"]) == 2  # fmt: skip
    told = capsys.readouterr().err
    for part in ("untrained: expected a finished run of these settings, found that it is not there; run `make train`",
                 "OWNER: expected your name on Kaggle, found a b", "submit.competition=<name>", "none.txt",
                 "KAGGLE_PYTHON: expected a version such as 3.12, found three"):  # fmt: skip
        assert part in told
    assert main(["kaggle-notebook", "-c", "tiny.yaml", "train.steps=49", "--owner", "me"]) == 2
    assert "train.steps: 48 -> 49; run `make train`" in capsys.readouterr().err
    assert not (here / "dist").exists()


@pytest.mark.slow
def test_a_run_from_another_machine_is_packed_without_what_it_was_made_from(here: Path, complete_image: Path) -> None:
    for stage in ("ingest", "split", "normalise", "augment"):
        shutil.rmtree(here / "data" / stage)
    assert main(["kaggle-notebook", "-c", "tiny.yaml", "--owner", "me", "--image", str(complete_image)]) == 0


@pytest.mark.slow
def test_wheels_that_cannot_be_had_are_all_named_and_nothing_is_left(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    assert main(["kaggle-notebook", "-c", "tiny.yaml", "--owner", "me"]) == 2
    told = capsys.readouterr().err
    assert "wheels for Python 3." in told and "\n  monai==" in told and "\n  imagecodecs==" in told
    assert "\n  torch==" not in told, "Kaggle's image has it"
    assert not any((here / "dist/kaggle/tiny").iterdir())


@pytest.mark.slow
def test_a_data_set_that_kaggle_does_not_take_is_refused(
    here: Path, complete_image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kaggle_notebook, "LARGEST", 1000)
    config = load_config(Path("tiny.yaml"))
    with pytest.raises(ValueError, match=r"at most 1e-06 GB, as Kaggle takes, found 0\.0 GB \(stainseg-0\.1\.0"):
        pack_notebook(config, Paths.of(config), "me", image=complete_image)
    assert not any((here / "dist/kaggle/tiny").iterdir())


def test_the_notebook_and_its_metadata_are_what_kaggle_reads() -> None:
    made = notebook("cv/hubmap_2022/fold-0", "me/stainseg-x", "hubmap-organ-segmentation", "3.12")
    nbformat.validate(made)
    read = nbformat.reads(json.dumps(made), as_version=4)
    code = [cell.source for cell in read.cells if cell.cell_type == "code"]
    for source in code:
        compile(source, "cell", "exec")
    names: dict[str, object] = {}
    exec(code[0], names)
    assert {key: value for key, value in names.items() if key.isupper()} == {
        "DATASET": "me/stainseg-x", "COMPETITION": "hubmap-organ-segmentation", "RUN": "cv/hubmap_2022/fold-0",
        "PYTHON": (3, 12),
    }  # fmt: skip
    kernel = kaggle_notebook.kernel_metadata("me/stainseg-x", "hubmap-organ-segmentation", on_gpu=True)
    assert kernel["enable_internet"] is False and kernel["enable_gpu"] is True
    assert kernel["dataset_sources"] == ["me/stainseg-x"]
    assert kernel["competition_sources"] == ["hubmap-organ-segmentation"]
    # Kaggle makes the name of a notebook from its title: the two must agree.
    assert kernel["title"].replace(" ", "-") == kernel["id"].partition("/")[2]


def test_the_notebook_names_every_version_that_does_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "wheels").mkdir()
    for name in ("lightning_fabric-2.6.6-py3-none-any.whl", "monai-1.6.1-py3-none-any.whl"):
        (tmp_path / "wheels" / name).touch()
    asked: list[tuple] = []
    names = {"sys": sys, "packed": tmp_path, "run": lambda *command: asked.append(command)}
    exec(kaggle_notebook.INSTALL, names | {"PYTHON": sys.version_info[:2]})
    assert asked[0][1:7] == ("-m", "pip", "install", "--quiet", "--no-index", "--no-deps")
    assert [wheel.name.split("-")[0] for wheel in asked[0][7:]] == ["lightning_fabric", "monai"]
    monkeypatch.setattr(metadata, "version", lambda name: "0.1" if name in ("torch", "numpy") else "9999")
    with pytest.raises(
        RuntimeError, match=r"lightning_fabric asks for torch.*, here is 0\.1.*; monai asks for numpy.*, here is 0\.1"
    ):
        exec(kaggle_notebook.INSTALL, names | {"PYTHON": sys.version_info[:2]})
    with pytest.raises(RuntimeError, match=r"the wheels are for Python \(3, 9\), this is 3\."):
        exec(kaggle_notebook.INSTALL, names | {"PYTHON": (3, 9)})


@pytest.mark.parametrize("run", ["a", "cv/HuBMAP_2022/fold-0", "x" * 80])
def test_names_are_of_a_length_that_kaggle_takes(run: str) -> None:
    name = kaggle_notebook._name(run)
    assert len(name) >= 6 and len(f"{name}-submission") <= 50
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
    assert kaggle_notebook._name("x" * 80) != kaggle_notebook._name("x" * 81)


def test_a_lock_is_read_and_what_is_no_pin_is_refused(tmp_path: Path) -> None:
    (tmp_path / "lock").write_text(LOCK)
    pinned = read_lock(tmp_path / "lock")
    assert [one.exactly for one in pinned] == [
        "alpha==1.5", "alpha==2.0", "beta==1.0", "gamma==3.0", "delta-more==0.1", "only-tests==9.0",
    ]  # fmt: skip
    assert pinned[0].line == "alpha==1.5 \\\n    --hash=sha256:aa \\\n    --hash=sha256:ab"
    assert pinned[2].wanted_by == ("alpha", "delta")
    (tmp_path / "lock").write_text(LOCK + "loose>=1 \\\n    --hash=sha256:fa\nbare==1.0\n")
    with pytest.raises(ValueError, match=r"found loose>=1, bare==1\.0; run `make lock`"):
        read_lock(tmp_path / "lock")


@pytest.mark.parametrize(
    ("python", "image", "wanted"),
    [
        ("3.11", {}, ["alpha==1.5", "beta==1.0", "delta-more==0.1"]),
        ("3.12", {}, ["alpha==2.0", "beta==1.0", "delta-more==0.1"]),
        ("3.12", {"alpha": "2.1"}, []),
        ("3.12", {"alpha": None}, []),
        ("3.12", {"alpha": "1.0"}, ["alpha==2.0", "beta==1.0", "delta-more==0.1"]),
        ("3.12", {"beta": "0.1"}, ["alpha==2.0"]),
    ],
)
def test_what_is_brought_along_follows_from_lock_image_and_version(
    tmp_path: Path, python: str, image: dict[str, str | None], wanted: list[str]
) -> None:
    (tmp_path / "lock").write_text(LOCK)
    roots = [Requirement("Alpha>=1.2"), Requirement("gamma; sys_platform == 'win32'")]
    found = wanted_distributions(read_lock(tmp_path / "lock"), roots, image, environment_of(python))
    assert [one.exactly for one in found] == wanted


def test_an_image_is_read_from_pip_freeze(tmp_path: Path) -> None:
    (tmp_path / "image.txt").write_text("# said by pip\nNumPy==2.0.2\ntorch @ https://x/torch.whl#sha256=1\n-e git+x\n")
    assert read_image(tmp_path / "image.txt") == {"numpy": "2.0.2", "torch": None}
    (tmp_path / "image.txt").write_text("# nothing\n")
    with pytest.raises(ValueError, match=r"expected lines such as numpy==2\.0\.2, found none"):
        read_image(tmp_path / "image.txt")


def test_the_projects_lock_holds_what_the_project_asks_for() -> None:
    """With nothing there, every requirement is packed in a version that fits, and nothing that only tests need."""
    pinned = read_lock(ROOT / "requirements.lock")
    found = {one.name: one for one in wanted_distributions(pinned, project_requirements(), {}, environment_of("3.12"))}
    for requirement in project_requirements():
        version = next(iter(found[requirement.name.lower()].requirement.specifier)).version
        assert requirement.specifier.contains(version)
    assert {"torch", "triton", "nvidia-cudnn-cu13"} <= set(found)
    assert not {"pytest", "kaggle", "ruff", "colorama"} & set(found)
    assert set(kaggle_notebook.IN_KAGGLES_IMAGE) <= set(found)
