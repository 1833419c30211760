"""Turns a chart of pygal into SVG that fits the console's pages."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

import pygal  # type: ignore[import-untyped] # it ships no types
from markupsafe import Markup
from pygal.etree import etree  # type: ignore[import-untyped] # the same

if TYPE_CHECKING:
    from collections.abc import Mapping

# pygal adds an importer for its maps that has only the old `find_module`: Python 3.11 warns of it at later imports. The
# console draws no maps.
sys.meta_path[:] = [each for each in sys.meta_path if not isinstance(each, pygal.PluginImportFixer)]

# Else pygal uses lxml wherever that is installed, whose elements are others.
etree.to_etree()

_DROPPED = {"defs", "desc", "title"}
"""Style sheets and scripts, which the pages' policy forbids; notes for that script; titles that repeat numbers."""
_DROPPED_CLASSES = {"overlay", "text-overlay", "tooltip-overlay", "titles", "legends"}


def to_svg(chart: Any, *, label: str, notes: Mapping[str, str]) -> Markup:  # noqa: ANN401 - pygal ships no types
    """Return the picture as an element of a page, with `label` as its text for screen readers.

    `notes` says what a bar shows on hover, by its text on the axis. All colours come from the page's style sheet.
    """
    root = chart.render_tree()
    _clean(root, notes)
    del root.attrib["id"]
    root.set("role", "img")
    root.set("aria-label", label)
    # The serializer escapes all text and attributes, so a name in the chart stays text.
    return Markup(ET.tostring(root, encoding="unicode"))  # noqa: S704


def _clean(element: ET.Element, notes: Mapping[str, str]) -> None:
    note = next((notes.get(each.text or "") for each in element if each.get("class") == "x_label"), None)
    for child in list(element):
        if not isinstance(child.tag, str) or child.tag in _DROPPED or _DROPPED_CLASSES & set(_classes(child)):
            element.remove(child)
        else:
            _clean(child, notes)
    element.attrib.pop("style", None)
    if note is not None:
        title = ET.Element("title")
        title.text = note
        element.insert(0, title)


def _classes(element: ET.Element) -> list[str]:
    return (element.get("class") or "").split()
