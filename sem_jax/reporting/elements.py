"""HTML and SVG as trees of the standard library, which escapes every text and attribute when it writes them."""

from __future__ import annotations

import re
from typing import TypeAlias
from xml.etree import ElementTree

Node: TypeAlias = ElementTree.Element
# Control characters and halves of surrogate pairs, which no HTML may hold.
_FORBIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


def element(tag: str, *children: Node | str | None, **attributes: object) -> Node:
    """An element with children in their order; None is no child.

    >>> to_text(element("p", "1 < 2", element("br"), class_="note", data_x='"'))
    '<p class="note" data-x="&quot;">1 &lt; 2<br></p>'

    Args:
      tag: such as "p".
      children: elements and texts.
      attributes: "class_" is written as class, "data_x" as data-x; one that is None is left out.
    """
    written = {name.rstrip("_").replace("_", "-"): value for name, value in attributes.items() if value is not None}
    node = ElementTree.Element(tag, {name: clean(str(value)) for name, value in written.items()})
    for child in children:
        if isinstance(child, str):
            _append_text(node, clean(child))
        elif child is not None:
            node.append(child)
    return node


def clean(text: str) -> str:
    """The text with a replacement character for each one that HTML may not hold."""
    return _FORBIDDEN.sub("\ufffd", text)


def to_text(node: Node) -> str:
    """The element as HTML, without its tail."""
    return ElementTree.tostring(node, encoding="unicode", method="html")


def _append_text(node: Node, text: str) -> None:
    if len(node):
        node[-1].tail = (node[-1].tail or "") + text
    else:
        node.text = (node.text or "") + text
