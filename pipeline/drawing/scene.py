"""What is around a car: sky, houses, trees, ground, its shadow, and things in front of it."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from pipeline.drawing.bodies import Point
from pipeline.drawing.optics import Camera, Light
from pipeline.drawing.surface import Floats, Mesh


def _noise(rng: np.random.Generator, height: int, width: int, cell: Point) -> Floats:
    """Returns smooth noise (height, width) in about [0, 1], of grain `cell` (x, y) in pixels."""
    size = (max(2, round(height / cell[1]) + 1), max(2, round(width / cell[0]) + 1))
    coarse = Image.fromarray(rng.random(size, dtype=np.float32))
    return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.float32)


def _mix(low: Floats, high: Floats, share: Floats) -> Floats:
    """Blends two colours (3,) by a share of any shape (...), into float32 (..., 3)."""
    low, high = np.asarray(low, np.float32), np.asarray(high, np.float32)
    return low + (high - low) * np.asarray(share, np.float32)[..., None]


def _polygon_mask(size: Point, polygons: Sequence[Floats]) -> Floats:
    """Returns coverage (H, W) in [0, 1] of polygons (K, 2) on a picture of `size` (W, H)."""
    mask = Image.new("L", (int(size[0]) * 2, int(size[1]) * 2))
    draw = ImageDraw.Draw(mask)
    for polygon in polygons:
        draw.polygon((polygon * 2).ravel().tolist(), fill=255)
    return np.asarray(mask.reduce(2), np.float32) / 255


def _hull(points: Floats) -> Floats:
    """Returns the convex hull of (N, 2) as its support points in 32 directions."""
    angle = np.arange(32) * (2 * math.pi / 32)
    directions = np.stack([np.cos(angle), np.sin(angle)])
    hull: Floats = points[(points @ directions).argmax(0)]
    return hull


def _sky(rng: np.random.Generator, light: Light, rows: Floats, height: int, width: int) -> Floats:
    """Returns sky (height, width, 3): a gradient with clouds. `rows` is 0 at the horizon, 1 up."""
    up = np.clip(rows, 0, 1)
    base = _mix(light.horizon, light.zenith, np.sqrt(up))[:, None]
    octaves = 0.6 * _noise(rng, height, width, (width / 3, height / 6))
    octaves += 0.4 * _noise(rng, height, width, (width / 9, height / 16))
    cloud = np.clip((octaves - rng.uniform(0.35, 0.7)) * 4, 0, 1) * rng.uniform(0.3, 1.0)
    return _mix(np.broadcast_to(base, (height, width, 3)), np.full(3, 0.95), cloud)


def _trees(rng: np.random.Generator, light: Light, scene: Floats, horizon: int) -> None:
    """Puts a line of trees or hedges behind the horizon."""
    height, width = scene.shape[:2]
    tall = rng.uniform(0.15, 0.6) * horizon
    line = _noise(rng, 1, width, (width / 7, 1))[0] + 0.35 * _noise(rng, 1, width, (6, 1))[0]
    crown = horizon - tall * (0.4 + 0.7 * line)
    rows = np.arange(height)[:, None]
    leaf = np.array([0.10, 0.17, 0.05]) * rng.uniform(0.5, 1.3) * (0.35 + 0.9 * light.sun[2])
    leaf = leaf + rng.uniform(0, 0.05, 3)
    clumps = 0.45 + 0.8 * _noise(rng, height, width, (7, 6)) * _noise(rng, height, width, (2, 2))
    inside = (rows > crown) & (rows <= horizon)
    scene[inside] = (leaf * clumps[..., None])[inside]


def _buildings(rng: np.random.Generator, light: Light, scene: Floats, horizon: int) -> None:
    """Puts a row of house fronts with windows behind the horizon."""
    width = scene.shape[1]
    left = -int(rng.integers(0, width // 4))
    while left < width:
        wide = int(rng.integers(max(6, width // 8), max(8, width // 3)))
        top = max(0, int(horizon * rng.uniform(-0.2, 0.65)))
        a, b = max(left, 0), min(left + wide, width)
        left += wide
        if b <= a or horizon - top < 3:
            continue
        wall = rng.uniform(0.12, 0.6) * np.array([1.0, *rng.uniform(0.72, 1.0, 2)])
        block = scene[top:horizon, a:b]
        shade = rng.uniform(0.5, 1.0) * light.horizon
        block[:] = wall * shade * np.linspace(1.05, 0.8, horizon - top)[:, None, None]
        pitch_y, pitch_x = int(rng.integers(8, 16)), int(rng.integers(6, 14))
        rows = (np.arange(horizon - top) % pitch_y) > pitch_y * 0.45
        columns = (np.arange(b - a) % pitch_x) > pitch_x * rng.uniform(0.35, 0.6)
        pane = np.array([0.10, 0.13, 0.17]) * rng.uniform(0.4, 2.2)
        block[np.ix_(rows, columns)] = pane


def backdrop(
    rng: np.random.Generator, camera: Camera, light: Light, width: int, height: int
) -> tuple[Floats, Light]:
    """Draws what is behind and below the car, at half the resolution (the focus is on the car).

    Returns:
        The scene (3, height, width), and the light with the ground's colour in it.
    """
    w, h = (width + 1) // 2, (height + 1) // 2
    horizon = int(np.clip(round(camera.horizon_y / 2), 4, h - 4))
    rows = (horizon - np.arange(h)) / max(horizon, 1)
    kind = rng.choice(["street", "park", "open", "studio"], p=[0.34, 0.34, 0.2, 0.12])
    if kind == "studio":
        tone = rng.uniform(0.15, 0.8) * rng.uniform(0.85, 1.0, 3)
        wall = tone * np.interp(np.arange(h), (0, horizon, h), (1.1, 0.75, 0.95))[:, None, None]
        scene: Floats = np.broadcast_to(wall, (h, w, 3)).copy()
        ground: Floats = tone * 0.8
    else:
        scene = _sky(rng, light, rows, h, w)
        if kind == "street":
            _buildings(rng, light, scene, horizon)
        if kind == "park" or rng.random() < 0.3:
            _trees(rng, light, scene, horizon)
        albedos = np.array([(0.17, 0.17, 0.175), (0.10, 0.17, 0.06), (0.34, 0.27, 0.19)])
        albedo: Floats = albedos[rng.choice(3, p=[0.68, 0.16, 0.16])]  # asphalt, grass, earth
        ground = albedo * rng.uniform(0.6, 1.6) * (0.45 + 0.6 * light.sun_color.mean())
        below = np.clip(-rows, 0, None)[horizon:]
        far = _mix(ground * 1.15 + 0.04, ground * 0.85, np.clip(below * 1.5, 0, 1))
        grain = 0.8 + 0.4 * _noise(rng, h - horizon, w, (w / 5, h / 18))
        grain *= 0.85 + 0.3 * _noise(rng, h - horizon, w, (3, 1.5))
        scene[horizon:] = far[:, None] * grain[..., None]
        if kind != "open" and rng.random() < 0.75:
            _strips(rng, camera, scene)
    light = dataclasses.replace(light, ground=ground)
    small = Image.fromarray(to_uint8(scene))
    large = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))
    channels = np.ascontiguousarray(large.transpose(2, 0, 1)).astype(np.float32)
    return np.square(channels / 255), light


def _strips(rng: np.random.Generator, camera: Camera, scene: Floats) -> None:
    """Puts a verge, a kerb and painted lines on the ground, in perspective."""
    height, width = scene.shape[:2]

    def mask(rectangles: Sequence[tuple[float, float, float, float]]) -> Floats:
        polygons = []
        for x0, x1, y0, y1 in rectangles:
            x = np.linspace(x0, x1, 12)
            near = np.stack([x, np.full(12, y0), np.zeros(12)], axis=1)
            far = np.stack([x[::-1], np.full(12, y1), np.zeros(12)], axis=1)
            ground = np.concatenate([near, far])
            ahead = (ground - camera.eye) @ camera.forward > 0.5
            if ahead.sum() >= 3:
                polygons.append(camera.project(ground[ahead]) / 2)
        return _polygon_mask((width, height), polygons)

    far_edge = -rng.uniform(1.6, 4.5)
    green = np.array([0.08, 0.14, 0.04]) * rng.uniform(0.6, 1.4)
    pavement = np.full(3, rng.uniform(0.2, 0.4))
    verge = green if rng.random() < 0.6 else pavement
    texture = 0.75 + 0.5 * _noise(rng, height, width, (3, 2))
    for area, color in (
        (mask([(-80, 80, far_edge, -60)]), verge),
        (mask([(-80, 80, far_edge, far_edge - 0.3)]), pavement * 1.3),
    ):
        blend = area[..., None]
        scene += (color * texture[..., None] - scene) * blend
    white = np.full(3, rng.uniform(0.5, 0.85))
    if rng.random() < 0.5:
        y = rng.uniform(1.5, 3.0)
        lines = [(-80, 80, y, y + 0.14)]
    else:
        lines = [(x, x + 0.13, far_edge, 4.0) for x in np.arange(-9, 15, 2.9) + rng.uniform(0, 3)]
    scene += (white - scene) * (0.8 * mask(lines))[..., None]


def shadow(camera: Camera, light: Light, mesh: Mesh, width: int, height: int) -> Floats:
    """Returns how much light reaches the ground (height, width), 1 where there is no shadow."""
    w, h = max(8, width // 4), max(8, height // 4)
    low = mesh.points * (1, 1, 0)
    cast = mesh.points[:, :2] - mesh.points[:, 2:] * light.sun[:2] / light.sun[2]

    def mask(hull: Floats) -> Floats:
        ground = np.concatenate([hull, np.zeros((len(hull), 1))], axis=1)
        return _polygon_mask((w, h), [camera.project(ground) * (w / width, h / height)])

    under = mask(_hull(low[:, :2]))
    sunny = float(light.sun_color.mean() / (light.sun_color.mean() + 0.7))
    dark = 1 - (1 - 0.62 * under) * (1 - sunny * mask(_hull(np.concatenate([low[:, :2], cast]))))
    image = Image.fromarray(dark.astype(np.float32))
    soft = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC), np.float32)
    return 1 - np.clip(soft, 0, 0.92)


def occlude(
    rng: np.random.Generator, light: Light, picture: Floats, box: tuple[int, int, int, int]
) -> None:
    """Puts a pole, a bush or a traffic cone in front of the car."""
    height, width = picture.shape[:2]
    x1, _, x2, y2 = box
    kind = rng.choice(["pole", "bush", "cone"])
    columns = np.arange(width)
    place = rng.uniform(x1, x2)
    if kind == "pole":
        thick = rng.uniform(0.012, 0.03) * width
        round_ = (columns - place) / thick
        inside = np.abs(round_) < 1
        tone = rng.uniform(0.05, 0.4) * light.horizon
        shade = np.sqrt(np.clip(1 - np.square(round_[inside]), 0, 1))[:, None]
        foot = min(height, y2 + int(rng.integers(2, 14)))
        picture[:foot, inside] = tone * (0.35 + 0.65 * shade)
    elif kind == "cone":
        tall = rng.uniform(0.14, 0.24) * height
        foot = min(height, y2 + 6.0)
        wide = 0.34 * tall
        corners = [(place - wide, foot), (place + wide, foot), (place, foot - tall)]
        mask = _polygon_mask((width, height), [np.array(corners)])
        band = (np.arange(height)[:, None] - (foot - tall)) / tall
        white = ((band > 0.35) & (band < 0.6))[..., None]
        color = np.where(white, (0.75, 0.75, 0.75), (0.75, 0.16, 0.02)) * light.horizon
        picture += (color - picture) * mask[..., None]
    else:
        edge = rng.choice([x1, x2]) + rng.uniform(-0.03, 0.03) * width
        crown = rng.uniform(0.10, 0.22) * height
        spread = rng.uniform(0.08, 0.16) * width
        outline = crown * np.clip(1 - np.square((columns - edge) / spread), 0, None)
        outline *= 0.6 + 0.8 * _noise(rng, 1, width, (5, 1))[0]
        rows = np.arange(height)[:, None]
        inside = (rows > y2 + 8 - outline) & (rows < y2 + 8) & (outline > 1)
        leaf = np.array([0.07, 0.15, 0.03]) * rng.uniform(0.6, 1.6)
        clump = 0.3 + 1.4 * _noise(rng, height, width, (3, 3))
        picture[inside] = (leaf * clump[..., None])[inside]


def to_uint8(linear: Floats) -> NDArray[np.uint8]:
    """Encodes linear light for display with gamma 2."""
    display = np.sqrt(np.clip(linear, 0, 1)) * 255 + 0.5
    return display.astype(np.uint8)
