"""Paints a car: its body, then what is fixed to it."""

import dataclasses
import functools
import math
from typing import NamedTuple

import numpy as np

from pipeline.drawing.bodies import PAINTS, Body, Point
from pipeline.drawing.canvas import Canvas
from pipeline.drawing.optics import Light
from pipeline.drawing.surface import TOP, Floats, Mesh, loft, on_surface

# Albedos, linear light.
GLASS = np.array([0.015, 0.018, 0.02])
PLASTIC = np.array([0.035, 0.035, 0.037])
RUBBER = np.array([0.012, 0.012, 0.013])
CHROME = np.array([0.45, 0.46, 0.48])
PLATE = np.array([0.60, 0.60, 0.55])
HEADLIGHT = np.array([0.75, 0.80, 0.86])
TAIL_LAMP = np.array([0.42, 0.02, 0.02])
LEATHERS = np.array([(0.25, 0.14, 0.06), (0.03, 0.03, 0.03), (0.30, 0.03, 0.03)])
GLOSS = np.array([0.07, 0.16, 0.02, 0.0])  # of PAINT, GLASS, TRIM, INTERIOR


@functools.cache
def _unit_circle(count: int, axis: int) -> Floats:
    """Returns a circle (count, 3) of radius 1 around the origin and around an axis."""
    angle = np.arange(count) * (2 * math.pi / count)
    circle = np.zeros((count, 3))
    circle[:, 1 - axis], circle[:, 2] = np.cos(angle), np.sin(angle)
    circle.setflags(write=False)
    return circle


def _circle(center: Floats, radius: float, count: int = 24, axis: int = 1) -> Floats:
    """Returns a circle (count, 3) around `center`, turned around the x (0) or y (1) axis."""
    circle: Floats = center + radius * _unit_circle(count, axis)
    return circle


@dataclasses.dataclass(frozen=True)
class Wheel:
    """Wheels of one car.

    Attributes:
        radius: in metres.
        spokes: their number.
        turn: angle of the first spoke.
        metal: (3,) colour of the rim.
    """

    radius: float
    spokes: int
    turn: float
    metal: Floats

    def paint(self, canvas: Canvas, center: Floats, sky: Floats) -> None:
        """Paints the wheel as seen from +y: tread, side wall, rim, spokes, hub."""
        for inset in (0.22, 0.15, 0.08):
            canvas.flat(_circle(center - (0, inset, 0), self.radius), 0.6 * RUBBER)
        shine = 0.5 + 0.5 * _unit_circle(24, 1)[:, 2:]
        canvas.shaded(_circle(center, self.radius), RUBBER + 0.03 * shine * sky)
        canvas.shaded(_circle(center, 0.70 * self.radius), self.metal * (0.35 + 0.75 * shine) * sky)
        step = 2 * math.pi / self.spokes
        reach = np.array([0.16, 0.60, 0.60, 0.24]) * self.radius
        angle = self.turn + step * (
            np.arange(self.spokes)[:, None] + np.array([0.25, 0.22, 0.78, 0.75])
        )
        gaps = np.stack(
            [reach * np.cos(angle), np.zeros_like(angle), reach * np.sin(angle)], axis=-1
        )
        canvas.faces(center + gaps, np.broadcast_to(RUBBER, (self.spokes, 1, 3)))
        canvas.flat(_circle(center, 0.09 * self.radius, 8), 0.5 * self.metal)


@dataclasses.dataclass(frozen=True)
class Finish:
    """What differs between two cars of one shape.

    Attributes:
        paint: (3,) albedo, linear light.
        metal: (3,) colour of the rims.
        leather: (3,) colour of the seats.
        spokes: number of spokes of a wheel.
        turn: angle of the first spoke, in radians.
        chrome_bars: number of bright bars on the grille.
    """

    paint: Floats
    metal: Floats
    leather: Floats
    spokes: int
    turn: float
    chrome_bars: int


def random_finish(rng: np.random.Generator, body: Body) -> Finish:
    """Draws a finish; four of five cars have a usual paint of their class, the others any."""
    names = body.paints if rng.random() < 0.8 else tuple(PAINTS)
    srgb = np.array(PAINTS[names[rng.integers(len(names))]]) / 255
    srgb = srgb * rng.uniform(0.88, 1.1) + rng.uniform(-0.02, 0.02, 3)
    return Finish(
        paint=np.square(np.clip(srgb, 0.05, 1)),
        metal=CHROME * rng.uniform(0.35, 1.3),
        leather=LEATHERS[rng.integers(len(LEATHERS))],
        spokes=body.spokes + int(rng.integers(2)),
        turn=rng.uniform(0, math.pi),
        chrome_bars=int(rng.integers(4)),
    )


def paint_car(canvas: Canvas, light: Light, body: Body, mesh: Mesh, finish: Finish) -> None:
    """Paints all of a car: what is behind the body, the body, what is fixed to its near sides."""
    nose_seen = canvas.camera.eye[0] < 0
    _far_wheels(canvas, body)
    _hull(canvas, light, body, mesh, finish)
    if body.cockpit:
        _open_cabin(canvas, light, body, finish, screen_last=bool(nose_seen))
    _side(canvas, light, body, finish)
    if nose_seen:
        _nose(canvas, light, mesh, finish)
    if canvas.camera.eye[0] > body.length:
        _tail(canvas, light, body, mesh)
    _near_wheels(canvas, light, body, finish)
    _mirror(canvas, light, body, finish)


def _far_wheels(canvas: Canvas, body: Body) -> None:
    for axle in body.axles:
        for y in (0.04, 0.24):
            hub = np.array([axle, y - body.width / 2, body.wheel])
            canvas.flat(_circle(hub, body.wheel), 0.6 * RUBBER)


def _hull(canvas: Canvas, light: Light, body: Body, mesh: Mesh, finish: Finish) -> None:
    """Paints the faces of the body that are turned to the camera, far ones first."""
    eye = canvas.camera.eye
    inside = 0.5 * finish.leather if body.cockpit else 1.5 * PLASTIC
    albedo = np.array([finish.paint, GLASS, PLASTIC, inside])
    toward = eye - mesh.centers
    seen = np.flatnonzero((mesh.outward * toward).sum(-1) > 0)
    distance = np.linalg.norm(toward[seen], axis=1)
    seen = seen[np.argsort(-distance, kind="stable")]
    corners = mesh.points[mesh.quads[seen]]
    material = np.repeat(mesh.material[seen], 4)
    colors = light.shade(
        corners.reshape(-1, 3),
        mesh.point_normals[mesh.quads[seen]].reshape(-1, 3),
        eye,
        albedo[material],
        GLOSS[material],
    )
    canvas.faces(corners, colors.reshape(corners.shape))


@functools.cache
def _panes(body: Body) -> tuple[tuple[Floats, Floats], ...]:
    """Returns points and normals (K, 3) of each pane of the near side."""
    mesh = loft(body)
    panes = []
    for start, stop in body.side_windows:
        x = np.linspace(start, stop, 9)
        low, _ = on_surface(mesh, x, np.full(9, 4.0))
        high, _ = on_surface(mesh, x, np.full(9, 5.0))
        x = x[(high - low)[:, 2] > 0.10]  # not where the windscreen's pillar comes down
        ring = np.concatenate([np.full(len(x), 4.08), np.full(len(x), 4.90)])
        panes.append(on_surface(mesh, np.concatenate([x, x[::-1]]), ring))
    return tuple(panes)


class Lines(NamedTuple):
    """Lines on the near side, each (K, 3)."""

    seams: tuple[Floats, ...]
    handles: tuple[Floats, ...]
    rails: tuple[Floats, ...]


@functools.cache
def _lines(body: Body) -> Lines:
    mesh = loft(body)
    ends = np.array([-0.26, -0.08])
    seams = [on_surface(mesh, np.full(6, x), np.linspace(4.0, 0.6, 6))[0] for x in body.doors]
    handles = [on_surface(mesh, x + ends, np.full(2, 3.35))[0] for x in body.doors[1:3]]
    rails = []
    if body.rails:
        stop = body.rear_glass[0] if body.rear_glass else body.length
        along = np.linspace(body.windscreen[1] + 0.25, stop - 0.15, 6)
        rails.append(on_surface(mesh, along, np.full(6, 5.4))[0] + np.array([0, 0, 0.05]))
    return Lines(tuple(seams), tuple(handles), tuple(rails))


def _side(canvas: Canvas, light: Light, body: Body, finish: Finish) -> None:
    """Paints the panes, door seams, door handles and roof rails of the near side."""
    eye = canvas.camera.eye
    for pane, normals in _panes(body):
        canvas.shaded(pane, light.shade(pane, normals, eye, GLASS, np.array(0.10)))
        canvas.line(pane[: len(pane) // 2], RUBBER, 0.02)
    lines = _lines(body)
    for seam in lines.seams:
        canvas.line(seam, 0.12 * finish.paint, 0.018)
    for handle in lines.handles:
        canvas.line(handle, 0.25 * finish.paint + 0.02, 0.035)
    for rail in lines.rails:
        canvas.line(rail, 0.4 * CHROME, 0.045)


def _upright(x: float, *corners: Point) -> Floats:
    """Returns a polygon (K, 3) across the car at `x`, from its (y, z) corners."""
    return np.array([(x, y, z) for y, z in corners])


def _bar(x: float, low: float, high: float, below: float, above: float) -> Floats:
    """Returns a trapezoid (4, 3) across the car: half widths `below` and `above`."""
    return _upright(x, (-below, low), (below, low), (above, high), (-above, high))


def _nose(canvas: Canvas, light: Light, mesh: Mesh, finish: Finish) -> None:
    """Paints grille, air intake, plate and headlights."""
    half = float(mesh.grid[0, :, 1].max())
    low, high = float(mesh.grid[0, 0, 2]), float(mesh.grid[0, TOP, 2])
    x = -0.01

    def z(share: float) -> float:
        return low + share * (high - low)

    canvas.flat(_bar(x, z(0.08), z(0.32), 0.60 * half, 0.72 * half), 0.4 * PLASTIC)
    canvas.flat(_bar(x, z(0.60), z(0.92), 0.40 * half, 0.47 * half), 0.4 * PLASTIC)
    for bar in range(finish.chrome_bars):
        at = 0.64 + 0.24 * (bar + 0.5) / finish.chrome_bars
        canvas.flat(_bar(x, z(at), z(at + 0.03), 0.43 * half, 0.43 * half), CHROME * light.horizon)
    canvas.flat(_bar(x, z(0.36), z(0.36) + 0.10, 0.23, 0.23), PLATE)
    wrap, _ = on_surface(mesh, np.array([0.26, 0.20]), np.array([3.9, 3.0]))
    glow = HEADLIGHT * light.horizon
    for side in (-1, 1):
        lamp = [(side * 0.58 * half, z(0.68)), (side * 0.99 * half, z(0.62))]
        lamp += [(side * 0.98 * half, z(0.97)), (side * 0.62 * half, z(0.92))]
        polygon = _upright(x, *lamp)
        if side > 0:  # the near one reaches around the corner
            polygon = np.concatenate([polygon[:2], wrap[::-1], polygon[2:]])
        canvas.shaded(polygon, np.linspace(0.55, 1.1, len(polygon))[:, None] * glow)
        bulb = np.array([x - 0.005, side * 0.82 * half, z(0.80)])
        canvas.flat(_circle(bulb, 0.12 * (high - low), 10, axis=0), 0.35 * glow)
        canvas.flat(_circle(bulb, 0.06 * (high - low), 8, axis=0), 1.6 * glow)


def _tail(canvas: Canvas, light: Light, body: Body, mesh: Mesh) -> None:
    """Paints tail lamps, plate, bumper, and the window or the spare wheel of an upright tail."""
    half = float(mesh.grid[-1, :, 1].max())
    low = float(mesh.grid[-1, 0, 2])
    high = min(float(mesh.grid[-1, TOP, 2]) - 0.04, body.belt[1] + 0.05)
    x = body.length + 0.01

    def z(share: float) -> float:
        return low + share * (high - low)

    red = TAIL_LAMP * (0.4 + 0.6 * light.horizon)
    wrap, _ = on_surface(mesh, np.full(2, body.length - 0.22), np.array([3.9, 3.2]))
    for side in (-1, 1):
        lamp = [(side * 0.66 * half, z(0.62)), (side * 0.98 * half, z(0.62))]
        lamp += [(side * 0.97 * half, z(0.95)), (side * 0.68 * half, z(0.95))]
        polygon = _upright(x, *lamp)
        if side > 0:
            polygon = np.concatenate([polygon[:2], wrap[::-1], polygon[2:]])
        canvas.flat(polygon, red)
        bulb = np.array([x + 0.005, side * 0.82 * half, z(0.785)])
        canvas.flat(_circle(bulb, 0.066 * (high - low), 8, axis=0), 1.8 * red)
    seam = z(0.42)
    canvas.line(_upright(x, (-0.95 * half, seam), (0.95 * half, seam)), 0.5 * PLASTIC, 0.02)
    canvas.flat(_bar(x, seam + 0.06, seam + 0.17, 0.24, 0.24), PLATE)
    canvas.flat(_bar(x, low, z(0.16), 0.6 * half, 0.6 * half), 0.5 * PLASTIC)
    if body.tail_glass:
        bottom, top = body.tail_glass
        glass = (GLASS + 0.12 * light.horizon) * np.array([[0.5], [0.5], [1.2], [1.2]])
        reach = 0.8 * half * body.roof_width
        for left, right in ((-reach, -0.04), (0.04, reach)):
            canvas.shaded(
                _upright(x, (left, bottom), (right, bottom), (right, top), (left, top)), glass
            )
    if body.spare:
        hub = np.array([x, 0.1, 1.06])
        for out in (-0.14, -0.07, 0.0):
            canvas.flat(
                _circle(hub + np.array([out, 0, 0]), 0.40, 20, axis=0), (1.3 + out) * RUBBER
            )
        canvas.flat(_circle(hub + np.array([0.005, 0, 0]), 0.24, 16, axis=0), 0.4 * CHROME)


def _open_cabin(
    canvas: Canvas, light: Light, body: Body, finish: Finish, screen_last: bool
) -> None:
    """Paints the seats and the windscreen of an open car."""
    if not screen_last:
        _open_screen(canvas, light, body)
    for y in (-0.36, 0.36):
        for x, low, high, wide in ((2.62, 0.80, 1.06, 0.24), (2.68, 1.04, 1.20, 0.12)):
            face = np.array([
                (x, y - wide, low), (x, y + wide, low),
                (x + 0.06, y + 0.85 * wide, high), (x + 0.06, y - 0.85 * wide, high),
            ])  # fmt: skip
            depth = np.array([0.13, 0, -0.01])
            side = np.stack([face[1], face[1] + depth, face[2] + depth, face[2]])
            leather = finish.leather * np.array([[0.5], [0.6], [1.1], [1.0]])
            for part, tone in ((face + depth, 0.6), (side, 0.8), (face, 1.0)):
                canvas.shaded(part, tone * leather)
    if screen_last:
        _open_screen(canvas, light, body)


def _open_screen(canvas: Canvas, light: Light, body: Body) -> None:
    (x0, x1), half = body.windscreen, body.width / 2
    low, high = body.belt[0] - 0.01, body.belt[0] + 0.36
    frame = np.array([
        (x0, -0.86 * half, low), (x0, 0.86 * half, low),
        (x1, 0.70 * half, high), (x1, -0.70 * half, high),
    ])  # fmt: skip
    glass = (GLASS + 0.22 * light.horizon) * np.array([[0.6], [0.6], [1.3], [1.3]])
    canvas.shaded(frame, glass)
    canvas.line(np.concatenate([frame, frame[:1]]), PLASTIC, 0.05)


def _near_wheels(canvas: Canvas, light: Light, body: Body, finish: Finish) -> None:
    """Paints the wheels of the near side in their arches."""
    wheel = Wheel(body.wheel, finish.spokes, finish.turn, finish.metal)
    rings = [(1.24, PLASTIC), (1.12, 0.3 * RUBBER)] if body.cladding else [(1.15, 0.35 * RUBBER)]
    for axle in body.axles:
        hub = np.array([axle, body.width / 2 + 0.004, body.wheel])
        for reach, color in rings:
            arch = _circle(hub, reach * body.wheel, 32)
            arch[:, 2] = np.maximum(arch[:, 2], body.clearance)
            canvas.flat(arch, color)
        wheel.paint(canvas, hub - (0, 0.03, 0), light.horizon)


def _mirror(canvas: Canvas, light: Light, body: Body, finish: Finish) -> None:
    hub = np.array([body.windscreen[0] + 0.42, body.width / 2 + 0.06, body.belt[0] + 0.09])
    shape = _unit_circle(10, 1) * (0.10, 0, 0.07)
    tone = 0.78 + 4 * shape[:, 2:]
    canvas.shaded(hub + shape, finish.paint * light.horizon * tone)
