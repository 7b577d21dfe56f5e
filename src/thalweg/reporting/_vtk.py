"""VTK XML files, written without VTK: structured grids and poly data.

Format: "VTK XML Formats", Kitware, the chapter of the VTK User's Guide on file formats.
Every file is one piece, little-endian, not compressed.
"""

import xml.etree.ElementTree as ET
from base64 import b64encode
from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

__all__ = ["Encoding", "poly_data", "structured_grid"]

Encoding: TypeAlias = Literal["base64", "ascii"]

# Bits of the array `vtkGhostType`, vtkDataSetAttributes::HIDDENPOINT.
HIDDEN_POINT = 2
_TYPES = {"f": "Float", "i": "Int", "u": "UInt"}


def structured_grid(
    points: Float[np.ndarray, "n0 n1 n2 3"],
    arrays: Mapping[str, Shaped[np.ndarray, "n0 n1 n2"]],
    hidden: Bool[np.ndarray, "n0 n1 n2"],
    notes: Mapping[str, str],
    encoding: Encoding,
) -> bytes:
    """Return a .vts file: points in space, and arrays on them, of a grid.

    Args:
        points: Position of each grid point, finite.
        arrays: Numbers at the points, by name.
        hidden: Points that are blanked, and with them the cells around them.
        notes: Texts kept in the file as field data.
        encoding: "base64", or "ascii" for arrays whose numbers are all finite.
    """
    n0, n1, n2 = hidden.shape
    extent = f"0 {n0 - 1} 0 {n1 - 1} 0 {n2 - 1}"
    root, grid = _document("StructuredGrid", notes, WholeExtent=extent)
    piece = ET.SubElement(grid, "Piece", Extent=extent)
    # The first axis varies fastest.
    flat = {name: array.ravel(order="F") for name, array in arrays.items()}
    if hidden.any():
        flat["vtkGhostType"] = np.uint8(HIDDEN_POINT) * hidden.ravel(order="F")
    _point_data(piece, flat, encoding)
    _points(piece, points.reshape(-1, 3, order="F"), encoding)
    return _bytes(root)


def poly_data(
    points: Float[np.ndarray, "n 3"],
    arrays: Mapping[str, Shaped[np.ndarray, " n"]],
    vertices: Int[np.ndarray, " vertices"],
    lines: Sequence[Int[np.ndarray, " _"]],
    notes: Mapping[str, str],
    encoding: Encoding,
) -> bytes:
    """Return a .vtp file: points in space with arrays on them, vertices and lines.

    Args:
        points: Position of each point, finite.
        arrays: Numbers at the points, by name.
        vertices: Indices of the points that are drawn as such.
        lines: Indices of the points along each line, in order.
        notes: Texts kept in the file as field data.
        encoding: As in `structured_grid`.
    """
    root, data = _document("PolyData", notes)
    piece = ET.SubElement(
        data,
        "Piece",
        NumberOfPoints=str(len(points)),
        NumberOfVerts=str(len(vertices)),
        NumberOfLines=str(len(lines)),
        NumberOfStrips="0",
        NumberOfPolys="0",
    )
    _point_data(piece, arrays, encoding)
    _points(piece, points, encoding)
    _cells(
        piece, "Verts", [vertices[i : i + 1] for i in range(len(vertices))], encoding
    )
    _cells(piece, "Lines", lines, encoding)
    return _bytes(root)


def _document(
    kind: str, notes: Mapping[str, str], **attributes: str
) -> tuple[ET.Element, ET.Element]:
    root = ET.Element(
        "VTKFile",
        type=kind,
        version="1.0",
        byte_order="LittleEndian",
        header_type="UInt64",
    )
    data = ET.SubElement(root, kind, attributes)
    field = ET.SubElement(data, "FieldData")
    for name, text in notes.items():
        array = ET.SubElement(
            field, "Array", type="String", Name=name, NumberOfTuples="1", format="ascii"
        )
        array.text = " ".join(str(byte) for byte in [*text.encode(), 0])
    return root, data


def _point_data(
    piece: ET.Element, arrays: Mapping[str, np.ndarray], encoding: Encoding
) -> None:
    first = {"Scalars": next(iter(arrays))} if arrays else {}
    parent = ET.SubElement(piece, "PointData", first)
    for name, values in arrays.items():
        _array(parent, name, values, encoding)


def _points(piece: ET.Element, points: np.ndarray, encoding: Encoding) -> None:
    parent = ET.SubElement(piece, "Points")
    _array(parent, "Points", points, encoding)


def _cells(
    piece: ET.Element, kind: str, cells: Sequence[np.ndarray], encoding: Encoding
) -> None:
    parent = ET.SubElement(piece, kind)
    ends = np.cumsum([len(cell) for cell in cells], dtype=np.int64)
    flat = np.concatenate([np.empty(0, np.int64), *cells])
    _array(parent, "connectivity", flat, encoding)
    _array(parent, "offsets", ends, encoding)


def _array(
    parent: ET.Element, name: str, values: np.ndarray, encoding: Encoding
) -> None:
    values = values.astype(np.uint8) if values.dtype == bool else values
    # VTK's reader takes -inf in a text for inf, and stumbles over NaN.
    as_text = encoding == "ascii" and bool(np.isfinite(values).all())
    element = ET.SubElement(
        parent,
        "DataArray",
        type=f"{_TYPES[values.dtype.kind]}{8 * values.dtype.itemsize}",
        Name=name,
        format="ascii" if as_text else "binary",
    )
    if values.ndim == 2:
        element.set("NumberOfComponents", str(values.shape[1]))
    if as_text:
        element.text = " ".join(map(repr, values.ravel().tolist()))
        return
    content = values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes()
    size = len(content).to_bytes(8, "little")
    element.text = b64encode(size + content).decode()


def _bytes(root: ET.Element) -> bytes:
    ET.indent(root)
    return ET.tostring(root, encoding="utf-8", xml_declaration=True) + b"\n"
