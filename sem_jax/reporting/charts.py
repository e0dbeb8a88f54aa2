"""A chart as a figure of HTML and SVG.

Curves are SVG that is stretched to the width of the page; whatever is text is HTML beside it, so that it keeps its size
on a phone. Strokes keep their width, too (`vector-effect` in style.css), and a dot is a stroke without length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from sem_jax.reporting.axes import Axis, Scale, position_axis, short_number, value_axis
from sem_jax.reporting.elements import Node, element
from sem_jax.reporting.thinning import thinned

WIDTH, HEIGHT = 1000, 200  # of the drawing; style.css shows it in as many pixels of height
_COLUMNS = 4000  # of all curves of a chart together, which bounds the file
_NEAR = 0.25  # of a limit
_LINE_HEIGHT = 15  # pixels between the labels at the ends of curves
_LETTER, _LONGEST_LABEL = 7, 12  # pixels, letters
_MOST_DOTS = 60
_MOST_NUMBERS = 20  # that stand above marks
_NAMED_IN_A_MARK = 4
_MOST_WHOLE_MARKS, _SHORT_MARK = 24, 10


@dataclass(frozen=True)
class Line:
    """A curve; its points ascend in x, and NaN is a gap."""

    name: str
    x: np.ndarray
    y: np.ndarray
    colour: str  # classes of style.css
    depth: float | None = None  # of a layer, 0 to 1: mixes the colour
    dots: bool = False
    label: bool = True  # whether its name stands at its end


@dataclass(frozen=True)
class Mark:
    """Something that happened at one place."""

    x: float
    text: str
    number: int | None = None  # of its row in a table beside the chart


@dataclass(frozen=True)
class Chart:
    """What is drawn: curves over one axis of positions."""

    title: str
    unit: str
    position: str  # what x counts
    lines: Sequence[Line]
    marks: Sequence[Mark] = ()
    scale: Scale = "linear"
    include: Sequence[float] = ()  # values that the axis must reach
    limit: float | None = None  # from where on there are warnings
    classes: Sequence[str] = field(default=())


def draw(chart: Chart, why_empty: str) -> Node:
    """The chart as a `figure`.

    Args:
      chart: what to draw; where no value of it is finite, the figure says so.
      why_empty: words in place of curves without a point.
    """
    limits = [chart.limit] if chart.limit is not None and _comes_near(chart.lines, chart.limit) else []
    across = position_axis(np.concatenate([np.zeros(0), *(line.x for line in chart.lines)]))
    up = value_axis(
        np.concatenate([np.zeros(0), *(line.y for line in chart.lines)]), chart.scale, [*chart.include, *limits]
    )
    if across is None:
        body = element("p", why_empty, class_="empty")
    elif up is None:
        body = element("p", "No value of it is a finite number.", class_="empty")
    else:
        body = _plot(chart, across, up)
    return element(
        "figure",
        element("figcaption", element("h3", chart.title), element("span", chart.unit, class_="unit")),
        body,
        None
        if chart.limit is None or body.tag == "p"
        else element("p", _limit_note(chart.limit, bool(limits)), class_="note"),
        class_=" ".join(["chart", *chart.classes]),
    )


def _comes_near(lines: Sequence[Line], limit: float) -> bool:
    """Whether the axis should reach a limit: where all is well below, it would only flatten the curves."""
    return any(bool(np.any(line.y[np.isfinite(line.y)] > limit * _NEAR)) for line in lines)


def _limit_note(limit: float, is_drawn: bool) -> str:
    return f"A run warns from {short_number(limit)} on{' (dashed)' if is_drawn else ', above this figure'}."


def _plot(chart: Chart, across: Axis, up: Axis) -> Node:
    labelled = [line for line in chart.lines if line.label and np.isfinite(line.y).any()]
    width = min(max((len(line.name) for line in labelled), default=0), _LONGEST_LABEL) * _LETTER + 12
    ends = element("div", *_end_labels(labelled, up), class_="ends", style=f"width:{width}px") if labelled else None
    return element(
        "div",
        element("div", *_numbers(chart.marks, across), class_="numbers"),
        element("div", *(_tick(text, top=_y(up, value)) for value, text in up.ticks()), class_="y"),
        element("div", _drawing(chart, across, up), class_="area"),
        ends,
        element("div", *(_tick(text, left=_x(across, value)) for value, text in across.ticks()), class_="x"),
        element("div", chart.position, class_="position"),
        class_="plot" if ends is None else "plot labelled",
    )


def _tick(text: str, left: float | None = None, top: float | None = None) -> Node:
    style = f"left:{left / WIDTH:.2%}" if left is not None else f"top:{top:.1f}px"
    return element("span", text, style=style)


def _x(axis: Axis, value: float) -> float:
    return float(axis.place(value)) * WIDTH


def _y(axis: Axis, value: float) -> float:
    return (1 - float(axis.place(value))) * HEIGHT


def _drawing(chart: Chart, across: Axis, up: Axis) -> Node:
    grid = [_horizontal(_y(up, value), "grid") for value, _ in up.ticks()]
    limit = [] if chart.limit is None or chart.limit > up.high else [_horizontal(_y(up, chart.limit), "limit")]
    columns = max(min(WIDTH, _COLUMNS // len(chart.lines)), 40)
    curves = [node for line in chart.lines for node in _curve(line, across, up, columns)]
    return element(
        "svg",
        *grid,
        *_marks(chart.marks, across),
        *curves,
        *limit,
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        preserveAspectRatio="none",
        role="img",
        aria_label=f"{chart.title}, {chart.unit}, against {chart.position}: {_in_words(chart.lines)}",
        data_x=f"{across.low!r} {across.high!r}",
        data_y=f"{up.low!r} {up.high!r}{' log' if up.log else ''}",
        data_position=chart.position,
    )


def _in_words(lines: Sequence[Line]) -> str:
    """For readers that cannot see it: where each curve begins and ends."""
    told = [(line.name, line.y[np.isfinite(line.y)]) for line in lines[:8]]
    return "; ".join(f"{name} from {short_number(y[0])} to {short_number(y[-1])}" for name, y in told if len(y))


def _horizontal(y: float, name: str) -> Node:
    return element("line", x1=0, x2=WIDTH, y1=f"{y:.1f}", y2=f"{y:.1f}", class_=name)


def _curve(line: Line, across: Axis, up: Axis, columns: int) -> list[Node]:
    x, y = thinned(line.x, line.y, columns)
    points = list(zip(across.place(x) * WIDTH, (1 - up.place(y)) * HEIGHT, strict=True))
    style = None if line.depth is None else f"--depth:{line.depth:.0%}"
    nodes = [element("path", d=_path(points), class_=f"curve {line.colour}", style=style, data_name=line.name)]
    if line.dots and len(points) <= _MOST_DOTS:
        dots = "".join(f"M{a:.1f} {b:.2f}h0" for a, b in points if b == b)
        nodes.append(element("path", d=dots, class_=f"dots {line.colour}", style=style))
    gaps = sorted({round(float(a)) for a, b in points if b != b})
    if gaps:
        title = element("title", f"{line.name}: not a finite number here")
        nodes.append(element("path", title, d="".join(f"M{a} 0v6" for a in gaps), class_="gaps"))
    return nodes


def _path(points: Sequence[tuple[float, float]]) -> str:
    """A line through the points; one between two gaps, or alone, is a dot."""
    path, pen = [], "M"
    for i, (x, y) in enumerate(points):
        if y != y:
            pen = "M"
            continue
        alone = pen == "M" and (i + 1 == len(points) or points[i + 1][1] != points[i + 1][1])
        path.append(f"{pen}{x:.1f} {y:.2f}" + ("h0" if alone else ""))
        pen = "L"
    return "".join(path)


def _marks(marks: Sequence[Mark], across: Axis) -> list[Node]:
    """One line for all marks that fall on one place of the drawing, a short one where they would hide the curves."""
    places: dict[str, list[str]] = {}
    for mark in marks:
        places.setdefault(f"{_x(across, mark.x):.1f}", []).append(mark.text)
    end = HEIGHT if len(places) <= _MOST_WHOLE_MARKS else _SHORT_MARK
    return [
        element("line", element("title", _together(texts)), x1=x, x2=x, y1=0, y2=end, class_="mark")
        for x, texts in places.items()
    ]


def _together(texts: Sequence[str]) -> str:
    more = len(texts) - _NAMED_IN_A_MARK
    return "\n".join([*texts[:_NAMED_IN_A_MARK], *([f"and {more} more"] if more > 0 else [])])


def _numbers(marks: Sequence[Mark], across: Axis) -> list[Node]:
    """The numbers of marks; neighbours that would touch share a label, such as "2–4"."""
    numbered = [(_x(across, mark.x), mark.number) for mark in marks if mark.number is not None]
    if len(numbered) > _MOST_WHOLE_MARKS:
        return []
    groups: list[list[tuple[float, int]]] = []
    for x, number in numbered:
        if groups and x - groups[-1][-1][0] < WIDTH / _MOST_NUMBERS:
            groups[-1].append((x, number))
        else:
            groups.append([(x, number)])
    return [
        _tick(str(first) if first == last else f"{first}–{last}", left=(start + end) / 2)
        for group in groups
        for (start, first), (end, last) in [(group[0], group[-1])]
    ]


def _end_labels(lines: Sequence[Line], up: Axis) -> list[Node]:
    """The name of each curve at the height of its end, moved apart where they would touch."""
    ends = sorted(((_y(up, float(line.y[np.isfinite(line.y)][-1])), line) for line in lines), key=lambda pair: pair[0])
    tops, free = [], float(_LINE_HEIGHT) / 2
    for top, _ in ends:
        tops.append(max(top, free))
        free = tops[-1] + _LINE_HEIGHT
    ceiling = float(HEIGHT)
    for i in reversed(range(len(tops))):
        tops[i] = min(tops[i], ceiling)
        ceiling = tops[i] - _LINE_HEIGHT
    return [
        element(
            "span",
            line.name,
            title=line.name,
            class_=line.colour,
            style=f"top:{top:.1f}px" + ("" if line.depth is None else f";--depth:{line.depth:.0%}"),
        )
        for top, (_, line) in zip(tops, ends, strict=True)
    ]
