"""Charts as SVG that belongs to the page: its colours, light or dark, its typeface, the same bytes each time."""

from __future__ import annotations

import io
import re
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, QUIET, LINE, ACCENT, SECOND = "#000001", "#000002", "#000003", "#000004", "#000005"
VARIABLES = {INK: "--ink", QUIET: "--quiet", LINE: "--line", ACCENT: "--accent", SECOND: "--second"}
"""Stand-ins that become the page's colours, so that a chart follows light and dark."""

DOTS = 300
"""Most dots in a row; of more cases every k-th in order of the score is drawn."""

LONGEST_LABEL = 24
COLOURS = ("#4d7fc4", "#d1722f", "#3a9a6a", "#b5528f", "#8d7bd1", "#a3892b", "#45a3b5", "#c0504d")
"""Of points on a map, each to be told from paper both light and dark; shapes tell apart what shares a colour."""
SHAPES = ("o", "^", "s", "D")
MOST_POINTS, LONGEST_LEGEND = 1500, 16

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "stainseg",
    "text.parse_math": False,
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "axes.edgecolor": LINE,
    "axes.labelcolor": QUIET,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9.5,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "text.color": INK,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": QUIET,
    "ytick.labelcolor": QUIET,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.6,
}


def draw_strata(
    title: str,
    rows: Sequence[tuple[str, Sequence[float], dict[str, Any]]],
    description: str,
    name: str,
    limits: tuple[float, float] | None = (-0.02, 1.02),
) -> str:
    """Draw one row a stratum or method: a dot a case, the mean, and its 95 % interval where there is one.

    rows: (label, scores of the cases, {mean, low, high}), top to bottom; limits: of the scale, by default for scores in
    [0, 1], None for what the values reach. Returns an inline <svg>.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(4.3, 0.6 + 0.38 * len(rows)), layout="constrained")
        axes = figure.subplots()
        for place, (_, scores, score) in enumerate(rows):
            shown = sorted(scores)[:: max(1, -(-len(scores) // DOTS))]
            # Fractional parts of multiples of the golden ratio keep neighbours apart without a random number.
            offsets = [((index * 0.618034 + 0.5) % 1.0 - 0.5) * 0.5 for index in range(len(shown))]
            axes.scatter(shown, [place + offset for offset in offsets], s=9, color=SECOND, alpha=0.45, linewidths=0)
            if score.get("low") is not None and score.get("high") is not None:
                axes.plot(
                    [score["low"], score["high"]], [place, place], color=ACCENT, linewidth=2.4, solid_capstyle="butt"
                )
            if score.get("mean") is not None:
                axes.plot([score["mean"]], [place], "o", color=ACCENT, markersize=6.5, markeredgewidth=0)
        axes.set(xlim=limits, ylim=(len(rows) - 0.45, -0.55), title=title)
        axes.set_yticks(range(len(rows)), [_short(label) for label, _, _ in rows])
        axes.tick_params(axis="y", length=0, labelcolor=INK)
        axes.spines["left"].set_visible(False)
        axes.grid(axis="x")
        axes.set_axisbelow(True)
        return _inline(figure, name, description)


def draw_curves(
    title: str,
    steps: Sequence[float],
    curves: Mapping[str, Sequence[float]],
    best: float | None,
    description: str,
    name: str,
) -> str:
    """Draw one or two curves over optimiser steps, the best step marked. Returns an inline <svg>."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(3.9, 2.3), layout="constrained")
        axes = figure.subplots()
        if best is not None:
            axes.axvline(best, color=QUIET, linewidth=0.9, linestyle=(0, (2, 2)))
        for (label, values), colour, dashes in zip(
            curves.items(), (ACCENT, SECOND), ("-", (0, (4, 1.5))), strict=False
        ):
            axes.plot(
                steps, values, color=colour, linestyle=dashes, label=label, marker="o" if len(values) < 3 else None
            )
        axes.set(title=title, xlabel="step")
        axes.grid(axis="y")
        axes.set_axisbelow(True)
        axes.margins(x=0.02)
        _plain_ticks(axes)
        if len(curves) > 1:
            axes.legend(frameon=False, fontsize=8.5, loc="lower right")
        return _inline(figure, name, description)


def draw_reliability(said: Sequence[float], seen: Sequence[float], description: str, name: str) -> str:
    """Draw the share of foreground seen over the mean probability said, one dot a bin, beside what was said itself.

    said, seen: in [0, 1], in the order of said. Returns an inline <svg>.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(4.6, 3.2), layout="constrained")
        axes = figure.subplots()
        axes.plot([0.0, 1.0], [0.0, 1.0], color=SECOND, linestyle=(0, (4, 1.5)), label="as said")
        axes.plot(said, seen, color=ACCENT, marker="o", markersize=4.5, markeredgewidth=0, label="seen")
        ticks = [0.0, 0.25, 0.5, 0.75, 1.0]
        axes.set(xlabel="probability said", ylabel="share of foreground seen", xticks=ticks, yticks=ticks)
        axes.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
        axes.grid()
        axes.set_axisbelow(True)
        axes.legend(frameon=False, fontsize=8.5, loc="upper left")
        return _inline(figure, name, description)


def draw_map(title: str, points: Sequence[tuple[float, float, str]], description: str, name: str) -> str:
    """Draw points of the plane, coloured and shaped by the name that each has. Returns an inline <svg>.

    points: (x, y, name). The commonest names get a colour and a shape each, the others are grey; of more than
    MOST_POINTS every k-th point is drawn.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    counts = Counter(label for _, _, label in points)
    kinds = len(COLOURS) * len(SHAPES)
    named = sorted(counts, key=lambda label: (-counts[label], label))[:kinds]
    drawn = points[:: max(1, -(-len(points) // MOST_POINTS))]
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(5.2, 3.6), layout="constrained")
        axes = figure.subplots()
        rest = [(x, y) for x, y, label in drawn if label not in named]
        if rest:
            across, along = zip(*rest, strict=True)
            axes.scatter(across, along, s=12, color=QUIET, alpha=0.5, linewidths=0, label="others")
        for number, label in enumerate(sorted(named)):
            own = [(x, y) for x, y, other in drawn if other == label]
            if own:
                across, along = zip(*own, strict=True)
                shape = SHAPES[number // len(COLOURS) % len(SHAPES)]
                axes.scatter(
                    across, along, s=16, alpha=0.8, linewidths=0, color=COLOURS[number % len(COLOURS)], marker=shape,
                    label=_short(label),
                )  # fmt: skip
        axes.set(title=title, xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        if len(named) <= LONGEST_LEGEND:
            figure.legend(loc="outside right upper", frameon=False, fontsize=8.5)
        return _inline(figure, name, description)


def _short(label: str) -> str:
    """Cut a long name, and replace what XML cannot hold."""
    shown = "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in label)
    return shown if len(shown) <= LONGEST_LABEL else shown[: LONGEST_LABEL - 1] + "…"


def _plain_ticks(axes: Axes) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _inline(figure: Figure, name: str, description: str) -> str:
    """Turn a figure into an <svg> that can stand inside HTML under a policy without inline styles.

    Style attributes become presentation attributes, stand-in colours the page's variables, ids unique in the page.
    """
    stream = io.BytesIO()
    nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
    with warnings.catch_warnings():
        # The reader's browser draws the words, with its own fonts.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure.savefig(stream, format="svg", transparent=True, metadata=nothing)
    text = stream.getvalue()
    used = {found.decode() for found in re.findall(rb"""(?:href="|url\()#([^")]+)""", text)}
    root = ElementTree.fromstring(text)
    for parent in root.iter():
        for child in list(parent):
            if child.tag.rsplit("}", 1)[-1] in ("metadata", "style"):
                parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.rsplit("}", 1)[-1]
        attributes = dict(element.attrib)
        element.attrib.clear()
        for key, value in attributes.items():
            if key != "id" or value in used:
                _take(element, key.rsplit("}", 1)[-1], value, f"{name}-")
    view = root.attrib["viewBox"]
    root.attrib.clear()
    root.attrib.update(
        {"viewBox": view, "class": "chart", "role": "img", "aria-label": description, "stroke-linejoin": "round"}
    )
    return ElementTree.tostring(root, encoding="unicode")


def _take(element: ElementTree.Element, key: str, value: str, prefix: str) -> None:
    if key == "style":
        for declaration in filter(None, (part.strip() for part in value.split(";"))):
            name, _, content = declaration.partition(":")
            _take(element, name.strip(), content.strip(), prefix)
    elif key == "font":
        # The family is the page's own; only size and weight are the chart's.
        size = re.search(r"([\d.]+)px", value)
        if size:
            element.set("font-size", size[1])
    elif key == "id":
        element.set("id", prefix + value)
    elif key == "href":
        element.set("href", value.replace("#", "#" + prefix, 1))
    else:
        value = re.sub(r"url\(#", "url(#" + prefix, value)
        variable = VARIABLES.get(value)
        element.set(key, f"var({variable})" if variable else value)
