"""The surface of a car: cross-sections of fixed topology, lofted along its outline."""

import functools
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.drawing.bodies import Body

Floats = NDArray[np.floating]

RING = 15  # points of a cross-section: seven a side, and the middle of the top
TOP = RING // 2
PAINT, GLASS, TRIM, INTERIOR = range(4)  # materials


class Mesh(NamedTuple):
    """The lofted surface. Shared between drawings: never write to it.

    Attributes:
        stations: float64 (S,), x of each section.
        grid: float64 (S, RING, 3), points; ring 0 is the near sill, TOP the middle of the roof.
        normals: float64 (S, RING, 3), outward unit normals.
        quads: int64 (F, 4), corners of each face, into `points`.
        points: float64 (P, 3), the grid flattened, then the corners of nose and tail.
        point_normals: float64 (P, 3).
        centers: float64 (F, 3), middle of each face.
        outward: float64 (F, 3), direction each face is turned to.
        material: int64 (F,), PAINT, GLASS, TRIM or INTERIOR.
    """

    stations: Floats
    grid: Floats
    normals: Floats
    quads: NDArray[np.int64]
    points: Floats
    point_normals: Floats
    centers: Floats
    outward: Floats
    material: NDArray[np.int64]


def _cut_corners(line: Floats, times: int) -> Floats:
    """Rounds a polyline (N, 2) by Chaikin's corner cutting; its ends stay."""
    for _ in range(times):
        first, second = line[:-1], line[1:]
        cut = np.stack([0.75 * first + 0.25 * second, 0.25 * first + 0.75 * second], axis=1)
        line = np.concatenate([line[:1], cut.reshape(-1, 2), line[-1:]])
    return line


def unit(vectors: Floats) -> Floats:
    """Returns vectors (..., 3) at length 1."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-9)


@functools.cache
def loft(body: Body) -> Mesh:
    """Lays a cross-section at every station of the outline and joins them."""
    line = _cut_corners(np.array(body.outline, np.float64), body.rounding)
    spans = (body.windscreen, body.rear_glass, body.bed, body.cockpit)
    seams = [x for span in spans if span for x in span]
    stations = np.unique(np.round(np.concatenate([line[:, 0], seams]), 3))
    length = body.length
    top = np.interp(stations, line[:, 0], line[:, 1])
    belt = np.interp(stations, (body.windscreen[0], length), body.belt)
    shoulder = np.minimum(belt, top - 0.03)
    cabin = np.clip((top - shoulder) / (line[:, 1].max() - max(body.belt) + 0.03), 0, 1)
    end = np.clip(np.minimum(stations, length - stations) / 0.7, 0, 1)
    half = body.width / 2 * (1 - body.taper * (1 - end) ** 2.5)
    rail = half * (0.90 + (body.roof_width - 0.90) * cabin)
    sill = body.clearance + 0.04 * (1 - end) ** 2
    height = shoulder - sill
    section = [  # (y, z), from the sill up
        (0.90 * half, sill),
        (0.985 * half, sill + 0.16 * height),
        (half, sill + 0.50 * height),
        (0.985 * half, sill + 0.86 * height),
        (0.945 * half, shoulder),
        (rail, top - 0.045 * (0.3 + 0.7 * cabin)),
        (0.86 * rail, top - 0.008),
        (0.0 * rail, top + 0.02),
    ]
    side = np.array(section).transpose(2, 0, 1)  # (S, 8, 2)
    ring = np.concatenate([side, side[:, -2::-1] * (-1, 1)], axis=1)
    grid = np.concatenate([np.broadcast_to(stations[:, None, None], (*ring.shape[:2], 1)), ring], 2)
    normals = unit(np.cross(np.gradient(grid, axis=1), np.gradient(grid, axis=0)))

    station = np.repeat(np.arange(len(stations) - 1), RING - 1)
    place = np.tile(np.arange(RING - 1), len(stations) - 1)
    corner = station * RING + place
    quads = np.stack([corner, corner + 1, corner + RING + 1, corner + RING], axis=1)
    middle = ((stations[:-1] + stations[1:]) / 2)[station]
    lid = (place == TOP - 1) | (place == TOP)
    material = np.zeros(len(quads), np.int64)
    for span, kind in zip(spans, (GLASS, GLASS, INTERIOR, INTERIOR), strict=True):
        if span and not (kind == GLASS and body.cockpit):
            material[lid & (middle > span[0]) & (middle < span[1])] = kind
    material[(place == 0) | (place == RING - 2)] = TRIM
    if body.cladding:
        material[(place == 1) | (place == RING - 3)] = TRIM

    points, point_normals = [grid.reshape(-1, 3)], [normals.reshape(-1, 3)]
    all_quads, all_material = [quads], [material]
    low = np.arange(TOP)
    cap = np.stack([low, low + 1, RING - 2 - low, RING - 1 - low], axis=1)
    for at, sign in ((0, -1.0), (len(stations) - 1, 1.0)):
        all_quads.append(cap + sum(len(p) for p in points))
        ends = grid[at]
        points.append(ends)
        bulge = np.stack(
            [np.full(RING, sign), 0.35 * ends[:, 1] / half[at], ends[:, 2] / 4 - 0.15], axis=1
        )
        point_normals.append(unit(bulge))
        all_material.append(np.where(low == 0, TRIM, PAINT))
    faces, all_points = np.concatenate(all_quads), np.concatenate(points)
    all_normals = np.concatenate(point_normals)
    corners = all_points[faces]
    # The diagonals' cross product is normal to a face even where two of its corners coincide.
    across = np.cross(corners[:, 2] - corners[:, 0], corners[:, 3] - corners[:, 1])
    inward = (across * all_normals[faces].mean(1)).sum(-1, keepdims=True) < 0
    return Mesh(
        stations=stations,
        grid=grid,
        normals=normals,
        quads=faces,
        points=all_points,
        point_normals=all_normals,
        centers=corners.mean(1),
        outward=np.where(inward, -across, across),
        material=np.concatenate(all_material),
    )


def on_surface(mesh: Mesh, x: Floats, ring: Floats) -> tuple[Floats, Floats]:
    """Returns points and normals (N, 3) of the surface at x and at fractional ring places."""
    s = np.interp(x, mesh.stations, np.arange(len(mesh.stations)))
    s0 = np.minimum(s.astype(int), len(mesh.stations) - 2)
    r0 = np.minimum(ring.astype(int), RING - 2)
    a, b = (s - s0)[:, None], (ring - r0)[:, None]

    def mix(field: Floats) -> Floats:
        near = field[s0, r0] * (1 - b) + field[s0, r0 + 1] * b
        far = field[s0 + 1, r0] * (1 - b) + field[s0 + 1, r0 + 1] * b
        return near * (1 - a) + far * a

    return mix(mesh.grid), unit(mix(mesh.normals))
