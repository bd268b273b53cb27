"""How a stage is run, skipped, redone or carried on."""

from __future__ import annotations

import functools
import importlib
import json
import operator
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from pipeline import __version__
from pipeline.records import manifest as manifests
from pipeline.records.files import file_hash, no_room, write_json, written_aside
from pipeline.stages import BY_NAME, STAGES, Stage
from pipeline.torchrun import first_trains, processes, tell_others

if TYPE_CHECKING:
    from pipeline.config import Config
    from pipeline.records.paths import Paths

NEVER_CHANGES_A_RESULT = {
    "compute": ("workers", "scheduler"),
    "train": ("cache_megabytes", "track"),
    "submit": ("message",),
}
"""Settings left out of the comparison that decides whether a stage is redone."""

_ABSENT = "absent"
_APART = "run one after the other, or give each a name of its own (split.name for splits and images, run for trainings)"
_REFUSED = "refused"


class StageNotReady(ValueError):
    """A stage was asked for whose input is missing or was made from something else."""


def needed_for(name: str) -> list[Stage]:
    """Every stage that must be complete before the named one, in order."""
    wanted: set[str] = set()

    def gather(stage: Stage) -> None:
        for need in stage.needs:
            if need not in wanted:
                wanted.add(need)
                gather(BY_NAME[need])

    gather(BY_NAME[name])
    return [stage for stage in STAGES if stage.name in wanted]


def run(name: str, config: Config, paths: Paths, *, with_needs: bool = False, force: bool = False) -> None:
    """Run one stage, and before it all that it needs where asked; print what was done.

    A complete stage made from the same settings and inputs is skipped. One made from others is set aside under a name
    of its own (and taken back when its settings return), as is what was left of one that was interrupted, and one of
    which files are gone or were changed. Under force it is overwritten, but not by what the stage then refuses to do.
    What a stage reads is neither set aside nor overwritten while it runs.
    Of processes that torchrun started the first does all of that; the others train beside it.
    What a stage can refuse by the settings alone, it refuses before any is made.
    Raises StageNotReady where an input is missing and with_needs is off, where another command reads what is to be
    replaced or replaced what was to be read, and for torchrun with another stage than train or with needs, which
    processes would make at once.
    """
    started = processes()
    if started is not None:
        if name != "train" or with_needs:
            raise StageNotReady("torchrun: expected stage train alone; make what it needs first, `make augment`")
        if started.rank:
            if first_trains():
                importlib.import_module("pipeline.stages.train").join(config, paths)
            return
    refuse_at_once(name, config, paths, with_needs=with_needs)
    found: dict[Path, str] = {}
    for stage in needed_for(name) if with_needs else _read_for(name, config, paths):
        if with_needs:
            _run_one(stage, config, paths, found, force=False)
        else:
            _require(stage, config, paths)
        found[stage.manifest_file(paths)] = _digest(stage.manifest_file(paths), paths)
    _run_one(BY_NAME[name], config, paths, found, force=force)
    if started is not None:
        tell_others(trains=False)


def refuse_at_once(name: str, config: Config, paths: Paths, *, with_needs: bool) -> None:
    """Raise ValueError for what the stage, or with_needs one before it, would refuse by the settings alone.

    A stage whose result, and all that it stands on, are of these settings is not asked: to build a network takes
    seconds.
    """
    for stage in [*(needed_for(name) if with_needs else ()), BY_NAME[name]]:
        check = getattr(_module(stage), "check", None)
        made = (_made_by(one, config, paths) for one in [*needed_for(stage.name), stage])
        if check is not None and not all(made):
            check(config, paths)


def _read_for(name: str, config: Config, paths: Paths) -> list[Stage]:
    """Stages whose results the named one depends on, directly or through others; the others are only made before it."""
    read = set(_inputs(BY_NAME[name], config, paths))
    kept = []
    for stage in reversed(needed_for(name)):
        if stage.manifest_file(paths) in read:
            kept.append(stage)
            read.update(_inputs(stage, config, paths))
    return kept[::-1]


def _inputs(stage: Stage, config: Config, paths: Paths) -> list[Path]:
    found: list[Path] = _module(stage).inputs(config, paths)
    return found


def _module(stage: Stage) -> Any:
    return importlib.import_module(f"pipeline.stages.{stage.name}")


def made_from(stage: Stage, config: Config, paths: Paths) -> dict[str, Any]:
    """Everything that the stage's result depends on: settings and hashes of inputs."""
    inputs = {_name(path, paths): _digest(path, paths) for path in _inputs(stage, config, paths)}
    return {"settings": _settings(stage, config), "inputs": inputs, "stainseg": __version__}


def _made_by(stage: Stage, config: Config, paths: Paths) -> bool:
    """Whether the stage has a finished result of these settings, whatever its inputs were."""
    wanted = {"settings": _settings(stage, config)}
    manifest = manifests.read_manifest(stage.manifest_file(paths))
    return manifest is not None and _with_defaults(manifest.made_from, wanted)["settings"] == wanted["settings"]


def _settings(stage: Stage, config: Config) -> dict[str, Any]:
    return {key: _setting(config, key) for key in stage.settings}


def _setting(config: Config, key: str) -> Any:
    """A section, or a single setting, by its dotted path, as a manifest holds it."""
    value: Any = functools.reduce(operator.getitem, key.split("."), config.model_dump(mode="json"))
    for left_out in NEVER_CHANGES_A_RESULT.get(key, ()):
        value.pop(left_out)
    return value


def _with_defaults(made_from: dict[str, Any], wanted: dict[str, Any]) -> dict[str, Any]:
    """Take settings that came after a result was made as their defaults, so that it is not stale for want of them.

    wanted: what the stage would be made from now, which names every setting that it has.
    """
    from pipeline.config import Config, completed

    since = {key: _setting(Config(), key) for key in wanted["settings"] if key not in made_from["settings"]}
    dumped = made_from | {"settings": since | completed(made_from["settings"])}
    for key, names in NEVER_CHANGES_A_RESULT.items():
        for name in names:
            dumped["settings"].get(key, {}).pop(name, None)
    return dumped


def _name(path: Path, paths: Paths) -> str:
    return path.relative_to(paths.root).as_posix() if path.is_relative_to(paths.root) else str(path)


def _digest(path: Path, paths: Paths) -> str:
    if path.name.endswith("stage.json"):
        manifest = manifests.read_manifest(path)
        return manifest.digest if manifest else _ABSENT
    if path.is_dir():
        cache = paths.root / "data" / ".hashes" / f"{_name(path, paths).replace('/', '-')}.json"
        return manifests.folder_digest(path, cache)
    return file_hash(path) if path.exists() else _ABSENT


def _state(stage: Stage, config: Config, paths: Paths) -> tuple[manifests.Manifest | None, dict[str, Any], list[str]]:
    """Return the manifest there is, what the stage would be made from now, and every difference."""
    manifest = manifests.read_manifest(stage.manifest_file(paths))
    wanted = made_from(stage, config, paths)
    if manifest is None:
        return None, wanted, ["it is not there"]
    differences = manifests.changes(_with_defaults(manifest.made_from, wanted), wanted)
    damaged = manifests.damaged_outputs(stage.folder(paths), manifest)
    if damaged:
        differences.append(
            f"{len(damaged)} of its files are gone or changed ({damaged[0]}{', ...' if len(damaged) > 1 else ''})"
        )
    return manifest, wanted, differences


def differences_from_settings(name: str, config: Config, paths: Paths) -> list[str]:
    """Say what keeps a stage's result from being finished and of these settings; nothing where it is.

    What it was made from may be gone, as where a run was brought here from another machine.
    """
    _, _, differences = _state(BY_NAME[name], config, paths)
    return [found for found in differences if not (found.startswith("inputs.") and found.endswith(f" -> {_ABSENT}"))]


def refuse_other_settings(name: str, config: Config, paths: Paths) -> None:
    """Raise StageNotReady unless a stage's result, and all that it stands on, are finished and of these settings."""
    stages = [*_read_for(name, config, paths), BY_NAME[name]]
    stale = {stage.name: differences_from_settings(stage.name, config, paths) for stage in stages}
    if told := [f"{stage}: {'; '.join(differences)}" for stage, differences in stale.items() if differences]:
        raise StageNotReady(
            f"{BY_NAME[name].folder(paths)}: expected what stage {name} makes by these settings, found another result "
            "or none:\n  " + "\n  ".join(told) + f"\nRun it first: `python -m pipeline {name} --with-needs`"
        )


def _require(stage: Stage, config: Config, paths: Paths) -> None:
    _, _, differences = _state(stage, config, paths)
    if differences:
        raise StageNotReady(
            f"{stage.folder(paths)}: expected the finished result of stage {stage.name}, found that "
            f"{'; '.join(differences)}. Make it with `python -m pipeline {stage.name}` and the same settings, "
            f"or add --with-needs to run all that is needed"
        )


@contextmanager
def _alone(name: str, manifest: Path, paths: Paths) -> Iterator[None]:
    """Wait until no other command makes this result; the system lets go of what a killed one held."""
    from filelock import FileLock, Timeout

    lock = FileLock(_lock_file(manifest, paths, "lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"{name:<9} waiting for another command that makes {manifest.parent}", flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _reading(stage: Stage, config: Config, paths: Paths, found: dict[Path, str]) -> Iterator[None]:
    """Keep the results that a stage reads, those of other runs too, as this command found them: digests by manifest.

    Raises StageNotReady where another command has replaced one of them since.
    """
    from filelock import FileLock

    with ExitStack() as held:
        for manifest in (path for path in _inputs(stage, config, paths) if path.name.endswith("stage.json")):
            with _alone(stage.name, manifest, paths):
                if _digest(manifest, paths) != found.get(manifest, _digest(manifest, paths)):
                    raise StageNotReady(
                        f"{manifest.parent}: expected the result that this command found, found another, which a "
                        f"second command has put there since; {_APART}"
                    )
                mark = FileLock(_lock_file(manifest, paths, f"{uuid4().hex}.read"))
                held.callback(Path(mark.lock_file).unlink, missing_ok=True)
                held.enter_context(mark)
        yield


def _refuse_while_read(manifest: Path, paths: Paths) -> None:
    """Raise StageNotReady where another command reads the result that is to be replaced."""
    from filelock import FileLock, Timeout

    file = _lock_file(manifest, paths, "read")
    for mark in file.parent.glob(f"{file.stem}.*.read"):
        try:
            with FileLock(mark, timeout=0):
                mark.unlink(missing_ok=True)  # of a command that was killed
        except Timeout as error:
            raise StageNotReady(
                f"{manifest.parent}: expected a result that nothing reads, since these settings replace it, found "
                f"another command at work with it; {_APART}"
            ) from error


def _lock_file(manifest: Path, paths: Paths, ending: str) -> Path:
    folder = paths.root / "data" / ".locks"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{_name(manifest, paths).replace('/', '-')}.{ending}"


def _run_one(stage: Stage, config: Config, paths: Paths, found: dict[Path, str], *, force: bool) -> None:
    # From what is read to what is made, as every command does: none waits for one that waits for it.
    manifest = stage.manifest_file(paths)
    with _told_of_a_full_disk(stage, paths), _reading(stage, config, paths, found), _alone(stage.name, manifest, paths):
        _make(stage, config, paths, force=force)


@contextmanager
def _told_of_a_full_disk(stage: Stage, paths: Paths) -> Iterator[None]:
    """Raise an OSError that names the stage and says what to do, where the system says only that there is no room."""
    try:
        yield
    except OSError as error:
        if not no_room(error):
            raise
        raise OSError(
            f"{error.filename or stage.folder(paths)}: expected room for what stage {stage.name} writes, found a full "
            f"disk ({error.strerror}); make room, and the same command carries on where it stopped"
        ) from error


def _make(stage: Stage, config: Config, paths: Paths, *, force: bool) -> None:
    module = _module(stage)
    folder, file = stage.folder(paths), stage.manifest_file(paths)
    _refuse_nested(stage, paths)
    if hasattr(module, "prepare"):
        module.prepare(config, paths)
    manifest, wanted, differences = _state(stage, config, paths)
    if not differences and not force:
        print(f"{stage.name:<9} nothing to do: {folder} is up to date")
        return
    unfinished = stage.unfinished_file(paths)
    overwritten: Path | None = None
    if manifest is not None:
        _refuse_while_read(file, paths)
        print(f"{stage.name:<9} redone: " + ("; ".join(differences) if differences else "asked for with --force"))
        if force:
            # Gone once there is another: what the stage refuses to do leaves it where it was.
            overwritten = _set_aside(stage, paths, manifest.short_name)
        elif _with_defaults(manifest.made_from, wanted) == wanted:
            # Somebody's own changes, perhaps, beside hours of training.
            print(f"{'':<9} as it is, it is kept in {_set_aside(stage, paths, manifest.short_name + '-changed')}")
        else:
            aside = _set_aside(stage, paths, manifest.short_name)
            print(f"{'':<9} the former result is kept in {aside}")
            if _take_back(stage, paths, wanted):
                print(f"{'':<9} the result of exactly these settings was there already: taken back")
                return
    else:
        if not force:
            _keep_what_was_begun(stage, paths, wanted)
        if (aside_before := _aside(stage, paths, manifests.short_name(wanted))).exists() and _take_back(
            stage, paths, wanted
        ):
            print(f"{stage.name:<9} taken back from {aside_before}")
            return
    if _begun_from(unfinished, wanted) == wanted or (not force and _take_up(stage, paths, wanted)):
        print(f"{stage.name:<9} carrying on where it was interrupted")
    else:
        _clear(stage, paths)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(unfinished, wanted)
    started = time.perf_counter()
    try:
        lines = module.run(config, paths)
    except ValueError:
        # What a stage refused is not kept when what was wrong is mended.
        write_json(unfinished, wanted | {_REFUSED: True})
        if overwritten is not None:
            _bring_back(stage, paths, overwritten, file.name)
            print(f"{'':<9} refused: the former result is in its place again")
        raise
    seconds = time.perf_counter() - started
    outputs = manifests.describe_outputs(folder, manifests.list_outputs(folder, stage.owns))
    write_json(
        file,
        {
            "stage": stage.name,
            "made_from": wanted,
            "outputs": outputs,
            "provenance": manifests.provenance(config.seed, seconds, paths.root),
        },
    )
    unfinished.unlink()
    if overwritten is not None:
        shutil.rmtree(overwritten)
    for number, line in enumerate(lines or ["done"]):
        print(f"{stage.name if number == 0 else '':<9} {line}" + (f"  [{seconds:.1f} s]" if number == 0 else ""))


def _refuse_nested(stage: Stage, paths: Paths) -> None:
    """Refuse a folder that holds, or lies in, another result: clearing one would take the other with it.

    Raises StageNotReady. A stage that owns names in a shared folder clears those alone.
    """
    if stage.owns:
        return
    folder = stage.folder(paths)
    names = stage.manifest_file(paths).name, stage.unfinished_file(paths).name
    around = [parent for parent in folder.parents if parent.is_relative_to(paths.root / "data")]
    others = {place for place in around for name in names if (place / name).exists()}
    others |= {file.parent for name in names for file in folder.rglob(name) if file.parent != folder}
    if others:
        raise StageNotReady(
            f"{folder}: expected a folder that shares nothing with other results, found "
            f"{', '.join(map(str, sorted(others)[:5]))}; give one of them a name that is not within the other's"
        )


def _aside(stage: Stage, paths: Paths, name: str) -> Path:
    folder = stage.folder(paths)
    return folder.with_name(f"{folder.name}~{stage.name + '-' if stage.owns else ''}{name}")


def _lend(source: Path, target: Path, names: tuple[str, ...]) -> None:
    """Show what a stage owns of a shared folder in a second one too, in the order of names; no byte is copied."""
    for name in names:
        if (source / name).is_dir():
            shutil.copytree(source / name, target / name, copy_function=_link)
        elif (source / name).exists():
            _link(source / name, target / name)


def _link(source: str | Path, target: str | Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system where a file has one name
        with written_aside(Path(target)) as part:
            shutil.copyfile(source, part)


def _set_aside(stage: Stage, paths: Paths, name: str) -> Path:
    aside, folder = _aside(stage, paths, name), stage.folder(paths)
    lent = folder
    if stage.owns:
        # File by file, an interrupted move would leave two halves: one of both places holds all of it at any moment.
        lent = folder.with_name(f".{folder.name}~{stage.name}.part")
        if lent.exists():
            shutil.rmtree(lent)
        lent.mkdir()
        _lend(folder, lent, (*stage.owns, stage.unfinished_file(paths).name, stage.manifest_file(paths).name))
    if aside.exists():
        shutil.rmtree(aside)
    lent.rename(aside)
    _clear(stage, paths)
    return aside


def _bring_back(stage: Stage, paths: Paths, aside: Path, last: str) -> None:
    """Put a result that was set aside in its place again; last: name of the file that stands for it."""
    _clear(stage, paths)
    if not stage.owns:
        aside.rename(stage.folder(paths))
        return
    _lend(aside, stage.folder(paths), (*stage.owns, last))
    shutil.rmtree(aside)


def _begun_from(unfinished: Path, wanted: dict[str, Any]) -> dict[str, Any] | None:
    """What an unfinished result is made from, None where there is none; wanted: as of _with_defaults."""
    if not unfinished.exists():
        return None
    begun: dict[str, Any] = json.loads(unfinished.read_text(encoding="utf-8"))
    return _with_defaults({key: value for key, value in begun.items() if key != _REFUSED}, wanted)


def _keep_what_was_begun(stage: Stage, paths: Paths, wanted: dict[str, Any]) -> None:
    """Set aside what an interrupted command with other settings left, unless those are finished and aside already.

    What a stage refused is not kept, nor what was made from other files: neither comes back.
    """
    unfinished = stage.unfinished_file(paths)
    begun = _begun_from(unfinished, wanted)
    if begun is None or begun["settings"] == wanted["settings"]:
        return
    if _REFUSED in json.loads(unfinished.read_text(encoding="utf-8")):
        return
    name = manifests.short_name(begun)
    if (_aside(stage, paths, name) / stage.manifest_file(paths).name).exists():
        return
    print(f"{stage.name:<9} was interrupted with other settings: {'; '.join(manifests.changes(begun, wanted))}")
    print(f"{'':<9} what there is of it is kept in {_set_aside(stage, paths, name)}")


def _take_up(stage: Stage, paths: Paths, wanted: dict[str, Any]) -> bool:
    """Bring back an unfinished result of these settings that was set aside."""
    aside = _aside(stage, paths, manifests.short_name(wanted))
    unfinished = stage.unfinished_file(paths)
    if _begun_from(aside / unfinished.name, wanted) != wanted:
        return False
    _bring_back(stage, paths, aside, unfinished.name)
    return True


def _take_back(stage: Stage, paths: Paths, wanted: dict[str, Any]) -> bool:
    aside = _aside(stage, paths, manifests.short_name(wanted))
    manifest = manifests.read_manifest(aside / stage.manifest_file(paths).name)
    if (
        manifest is None
        or _with_defaults(manifest.made_from, wanted) != wanted
        or manifests.damaged_outputs(aside, manifest)
    ):
        return False
    _bring_back(stage, paths, aside, stage.manifest_file(paths).name)
    return True


def _clear(stage: Stage, paths: Paths) -> None:
    """Remove what the stage wrote, its manifest first."""
    folder = stage.folder(paths)
    stage.manifest_file(paths).unlink(missing_ok=True)
    stage.unfinished_file(paths).unlink(missing_ok=True)
    for top in [folder / name for name in stage.owns] or [folder]:
        if top.is_dir():
            shutil.rmtree(top)
        else:
            top.unlink(missing_ok=True)
