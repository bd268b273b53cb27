"""The page of a run that makes images: it, its input and other methods, in figures and side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.config import KIND_SETTINGS, Config
from pipeline.metrics.normalisers import BETTER, INPUT, METRICS, OVERALL, excludes_zero
from pipeline.metrics.summary import MINIMUM_GROUPS
from pipeline.records.paths import Paths
from pipeline.reporting.cases import choose_cases
from pipeline.reporting.frame import Panel, common_cautions, draw_history, inline, interval, render
from pipeline.reporting.side_by_side import compare_cases
from pipeline.reporting.sources import Sources, read_sources, scores_hold, settings_tree

PICTURE_BYTES = 2_300_000
"""Bytes for all pictures of cases together, as they stand in the page."""
TABLE_ROWS = 300

TITLES = {
    "psnr": "PSNR", "ssim": "SSIM", "ciede2000": "CIEDE2000", "haematoxylin_angle": "Haematoxylin angle",
    "eosin_angle": "Eosin angle", "energy_distance": "Energy distance", "energy_ratio": "Ratio to halves",
    "excess_removed": "Excess removed", "structure": "Structure kept", "mask_dice": "Masks' Dice",
    "objects_change": "Change of objects",
}  # fmt: skip
UNITS = {"psnr": " dB", "haematoxylin_angle": "°", "eosin_angle": "°"}
DIGITS = {"psnr": 2, "ciede2000": 2, "haematoxylin_angle": 2, "eosin_angle": 2, "energy_ratio": 2}
COLUMNS = {
    "paired": ("psnr", "ssim", "ciede2000", "haematoxylin_angle", "eosin_angle", "mask_dice", "objects_change"),
    "restored": ("psnr", "ssim", "ciede2000", "mask_dice", "objects_change"),
    "unpaired": ("excess_removed", "energy_ratio", "energy_distance", "structure", "mask_dice", "objects_change"),
}
"""Figures in the table of methods, by kind of judging."""
DRAWN = {"paired": ("psnr", "ciede2000"), "restored": ("psnr", "ssim"), "unpaired": ("energy_distance", "structure")}
"""Figures of single cases that are drawn as dots, and ranked by the first."""
NAMES = {INPUT: "input", "reinhard": "Reinhard", "macenko": "Macenko", "vahadane": "Vahadane", "ruifrok": "Ruifrok"}
KINDS = {"paired": "normaliser", "restored": "restoration", "unpaired": "normaliser"}
PANELS: tuple[Panel, ...] = (
    ("loss", "Training loss", {"loss": "loss"}),
    ("discriminator", "Discriminator's loss", {"loss_discriminator": "loss"}),
    ("psnr", "PSNR of the validation part, dB", {"validation_psnr": "PSNR"}),
    ("ssim", "SSIM of the validation part", {"validation_ssim": "SSIM"}),
    ("share", "Active share of the code", {"active_share": "active share"}),
    ("latents", "Active latents", {"active_latents": "active latents"}),
    ("rate", "Learning rate", {"learning_rate": "learning rate"}),
)


def applies(paths: Paths) -> bool:
    """Say whether reports/<run>/metrics.json is that of a run that makes images."""
    return scores_hold(paths, "methods")


def build_page(paths: Paths, config: Config) -> str:
    """Return the report as one HTML text, the same for the same files; it reads and computes no score.

    Raises ValueError where metrics.json or per_case.csv is missing; what else is missing is named on the page.
    """
    sources = read_sources(paths, config)
    metrics = sources.metrics
    part, kind, run, methods = metrics["part"], metrics["kind"], metrics["run"], metrics["methods"]
    scores = metrics[part]
    columns = [
        name for name in COLUMNS[kind] if any(_mean(entry[part], name) is not None for entry in methods.values())
    ]
    ranked_by = DRAWN[kind][0]
    rows = _rows(sources, run, ranked_by)
    chosen = choose_cases(rows, "gain", config.report.cases)
    network = str(settings_tree(sources.settings).get("train", {}).get("network", {}).get("name", ""))
    if "codes" in sources.absent and not _has_code(paths):
        del sources.absent["codes"]
    return render(
        "normaliser_page.html.jinja",
        sources,
        config,
        styles=("side_by_side.css",),
        scripts=("side_by_side.js",),
        kind=kind,
        kind_name=KINDS[kind],
        run=run,
        scores=scores,
        columns=columns,
        headline=columns[:4] if kind == "unpaired" else columns[:3],
        methods=methods,
        ordered=_ordered(metrics),
        names={name: NAMES.get(name, name) for name in methods},
        titles=TITLES,
        units=UNITS,
        digits=DIGITS,
        meanings={**METRICS, **OVERALL},
        strata=metrics.get("by_stratum", {}),
        strata_columns=[name for name in dict.fromkeys((metrics["ranked_by"], *DRAWN[kind])) if name in columns][:2],
        speeds=sources.timing.get("megapixels_per_second", {}),
        verdict=verdict,
        signed=signed,
        figures=inline(_figures(sources, columns)),
        comparisons=compare_cases(chosen, [*methods], sources, paths, PICTURE_BYTES),
        ranked_by=ranked_by,
        gains=_gain_title(kind, ranked_by),
        table=sorted(rows, key=lambda row: (row["gain"] if row["gain"] is not None else 1e9, row["case_id"]))[
            :TABLE_ROWS
        ],
        table_columns=[name for name in columns if any(row.get(name) is not None for row in rows)],
        rows=rows,
        own_network=network.partition(":")[0] in ("unet", "autoencoder"),
        idle={name for kind, names in KIND_SETTINGS.items() if network != f"autoencoder:{kind}" for name in names},
        curves=inline(draw_history(sources.history, PANELS)),
        maps=inline(_maps(sources)),
        cautions=_cautions(sources, part),
    )


def verdict(metric: str, entry: Mapping[str, Any] | None) -> str:
    """Say in a word what a paired difference shows: better, worse, or even; even where no interval excludes 0."""
    if not entry or entry.get("mean") is None or not excludes_zero(entry):
        return "even"
    return "better" if entry["mean"] * BETTER[metric] > 0 else "worse"


def signed(value: float | None, digits: int = 3) -> str:
    """Write a difference with its sign, a true minus where it is below 0."""
    return "–" if value is None else f"{value:+.{digits}f}".replace("-", "−")


def _mean(scores: Mapping[str, Any], name: str) -> float | None:
    entry = scores.get(name)
    return entry.get("mean") if isinstance(entry, dict) else None


def _has_code(paths: Paths) -> bool:
    """Whether the run's network has a code; where that cannot be known, it is taken to have one."""
    import yaml

    file = paths.train / "config.yaml"
    if not file.exists():
        return True
    tree = yaml.safe_load(file.read_text(encoding="utf-8"))
    return str(tree.get("train", {}).get("network", {}).get("name", "")).startswith("autoencoder:")


def _ordered(metrics: Mapping[str, Any]) -> list[str]:
    """Names of the methods: the input first, then from the best to the worst by the ranking figure."""
    part, ranked_by = metrics["part"], metrics["ranked_by"]

    def place(name: str) -> tuple[bool, float, str]:
        figure = _mean(metrics["methods"][name][part], ranked_by)
        return name != INPUT, float("inf") if figure is None else -BETTER[ranked_by] * figure, name

    return sorted(metrics["methods"], key=place)


def _rows(sources: Sources, run: str, ranked_by: str) -> list[dict[str, Any]]:
    """One row a case: the run's own scores, `before` (the input's figure that cases are ranked by) and `gain`."""
    by_case: dict[str, dict[str, dict[str, Any]]] = {}
    for row in sources.rows:
        by_case.setdefault(row["case_id"], {})[row["method"]] = row
    rows = []
    for found in by_case.values():
        if run not in found:
            continue
        row, before = found[run], found.get(INPUT, {}).get(ranked_by)
        known = before is not None and row.get(ranked_by) is not None
        gain = BETTER[ranked_by] * (row[ranked_by] - before) if known else None
        figures = {name: entry.get(ranked_by) for name, entry in found.items()}
        rows.append(row | {"before": before, "gain": gain, "by_method": figures})
    return rows


def _gain_title(kind: str, ranked_by: str) -> str:
    return "Gain in PSNR over the input, dB" if kind != "unpaired" else "Energy distance removed"


def _figures(sources: Sources, columns: Sequence[str]) -> list[str]:
    from pipeline.reporting.figures import draw_strata

    metrics = sources.metrics
    figures = []
    for metric in DRAWN[metrics["kind"]]:
        rows = []
        for name in _ordered(metrics):
            values = [row[metric] for row in sources.rows if row["method"] == name and row.get(metric) is not None]
            # The energy distance of all images together is no mean of single ones: only the dots are of one kind.
            entry = {} if metric == "energy_distance" else metrics["methods"][name][metrics["part"]].get(metric) or {}
            rows.append((NAMES.get(name, name), values, entry))
        if not any(values for _, values, _ in rows):
            continue
        told = "; ".join(f"{name} {interval(entry)}" for name, _, entry in rows)
        description = f"{TITLES[metric]} by method: {told}"
        figures.append(draw_strata(f"{TITLES[metric]}, image by image", rows, description, f"methods-{metric}", None))
    return figures


def _maps(sources: Sources) -> list[str]:
    from pipeline.reporting.figures import draw_map

    drawn = []
    for column in ("stratum", "group"):
        points = [(row["x"], row["y"], row.get(column) or "unknown") for row in sources.codes]
        names = sorted({name for _, _, name in points})
        if points and len(names) > 1:
            description = f"Map of {len(points)} images by their codes, coloured by {column}: {len(names)} of them"
            drawn.append(draw_map(f"Codes, by {column}", points, description, f"codes-{column}"))
    return drawn


def _cautions(sources: Sources, part: str) -> list[str]:
    """Say what limits the figures, as far as the files tell."""
    metrics, told = sources.metrics, []
    if metrics["groups"] < MINIMUM_GROUPS:
        told.append(
            f"The {part} part has {metrics['groups']} groups. Below {MINIMUM_GROUPS} there is no interval: it would "
            "promise too much. In how many groups a method is better stands instead."
        )
    if metrics["kind"] == "unpaired" and metrics["reference"]["cases"] < 2 * MINIMUM_GROUPS:
        told.append(
            f"The reference has {metrics['reference']['cases']} images: two halves of it differ by chance as well, so "
            "that more than the whole excess can be removed."
        )
    fallen = {
        name: sum(count for status, count in entry["status"].items() if status not in ("ok", "clipped_gain"))
        for name, entry in metrics["methods"].items()
    }
    if any(fallen.values()):
        named = ", ".join(f"{NAMES.get(name, name)} {count}" for name, count in fallen.items() if count)
        told.append(f"Images that a method could not measure, and gave back as they were or nearly so: {named}.")
    compared = {name for entry in metrics["methods"].values() for name in entry[part] if name.endswith("_angle")}
    # Of a run whose images could not be measured at all there is no figure.
    measured = [metrics[part].get(name, {}).get("cases", 0) for name in compared]
    unmeasured = metrics["cases"] - min(measured, default=metrics["cases"])
    if unmeasured:
        told.append(
            f"Stain vectors could not be measured in {unmeasured} images, which the angles leave out: "
            "too little tissue, or one stain alone."
        )
    return told + common_cautions(sources)
