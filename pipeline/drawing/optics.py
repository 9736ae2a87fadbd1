"""Light and camera of one picture. Colours are linear light."""

import dataclasses
import math

import numpy as np

from pipeline.drawing.bodies import Body
from pipeline.drawing.surface import Floats, Mesh, unit


@dataclasses.dataclass(frozen=True)
class Light:
    """Sun, sky and ground of one picture; colours are linear light.

    Attributes:
        sun: (3,) unit vector towards the sun.
        sun_color: (3,) its strength.
        zenith: (3,) colour of the sky overhead.
        horizon: (3,) colour of the sky at the horizon.
        ground: (3,) colour of the ground.
    """

    sun: Floats
    sun_color: Floats
    zenith: Floats
    horizon: Floats
    ground: Floats

    def shade(
        self, points: Floats, normals: Floats, eye: Floats, albedo: Floats, gloss: Floats
    ) -> Floats:
        """Returns the colours seen from `eye`.

        Args:
            points: (N, 3).
            normals: (N, 3), outward, unit.
            eye: (3,).
            albedo: (N, 3) or (3,).
            gloss: (N,) or scalar, reflectance at normal incidence (Schlick's approximation).
        """
        view = unit(eye - points)
        facing = np.clip((normals * view).sum(-1), 0, 1)[:, None]
        up = normals[:, 2:]
        sunlit = np.clip(normals @ self.sun, 0, 1)[:, None] * self.sun_color
        sky = (0.62 * self.zenith + 0.38 * self.horizon) * (0.5 + 0.5 * up)
        diffuse = albedo * (sunlit + sky + 0.5 * self.ground * (0.5 - 0.5 * up))
        mirrored = 2 * facing * normals - view
        height = mirrored[:, 2:]
        above = np.clip((height + 0.06) / 0.16, 0, 1)
        fade = np.sqrt(np.clip(height, 0, 1))
        around = (1 - above) * 0.4 * self.ground + above * (
            self.horizon + (self.zenith - self.horizon) * fade
        )
        gloss = np.asarray(gloss, np.float64).reshape(-1, 1)
        fresnel = gloss + (1 - gloss) * (1 - facing) ** 5 * (gloss > 0)
        glint = np.clip(mirrored @ self.sun, 0, 1)[:, None] ** 48 * self.sun_color * 6 * gloss
        shaded: Floats = diffuse * (1 - fresnel) + around * fresnel + glint
        return shaded


@dataclasses.dataclass(frozen=True)
class Camera:
    """A level camera with a shifted lens: verticals stay vertical, the horizon is a row.

    Attributes:
        eye: (3,), in metres.
        right: (3,) unit vector to the right of the picture.
        forward: (3,) unit vector into the picture, level.
        scale: pixels per unit of tangent; negative `mirror` flips left and right.
        mirror: 1 or -1.
        center_x: column of the principal point.
        horizon_y: row of the horizon.
    """

    eye: Floats
    right: Floats
    forward: Floats
    scale: float = 1.0
    mirror: float = 1.0
    center_x: float = 0.0
    horizon_y: float = 0.0

    def project(self, points: Floats) -> Floats:
        """Returns (N, 2) columns and rows, in pixels, of points (N, 3)."""
        offset = points - self.eye
        depth = np.maximum(offset @ self.forward, 0.1)
        column = self.mirror * (offset @ self.right) / depth
        row = -offset[..., 2] / depth
        return np.stack(
            [self.center_x + self.scale * column, self.horizon_y + self.scale * row], axis=-1
        )


def random_light(rng: np.random.Generator, azimuth: float) -> Light:
    """Draws a time of day and a weather; the sun is mostly on the camera's side."""
    sun_azimuth = azimuth + rng.uniform(-1.7, 1.7)
    elevation = rng.uniform(0.4, 1.15)
    sun = np.array(
        [
            math.sin(sun_azimuth) * math.cos(elevation),
            math.cos(sun_azimuth) * math.cos(elevation),
            math.sin(elevation),
        ]
    )
    clear = rng.uniform(0.05, 1.0)
    warmth = rng.uniform(-0.1, 0.25)
    sun_color = 1.05 * clear * np.array([1 + warmth, 1.0, 1 - warmth])
    blue = np.array([0.28, 0.46, 0.82])
    cloud = np.array([0.72, 0.75, 0.80])
    zenith = cloud + (blue - cloud) * clear
    horizon = 0.85 * cloud + 0.15 * np.array([1.0, 0.9 - 0.5 * max(warmth, 0), 0.8 - warmth])
    return Light(sun, sun_color, zenith, horizon, np.full(3, 0.2))


def random_camera(
    rng: np.random.Generator, mesh: Mesh, body: Body, width: int, height: int
) -> tuple[Camera, float]:
    """Draws a viewpoint that shows a side and an end, and frames the car.

    Returns:
        The camera and its azimuth, in radians from the side; negative shows the nose.
    """
    azimuth = float(rng.choice([-1.0, 1.0], p=[0.85, 0.15]) * rng.uniform(0.18, 0.62))
    distance = rng.uniform(7.5, 12.0) * max(1.0, body.length / 4.7)
    middle = np.array([body.length / 2, 0, 0])
    toward = np.array([math.sin(azimuth), math.cos(azimuth), 0])
    camera = Camera(
        eye=middle + distance * toward + np.array([0, 0, rng.uniform(1.2, 1.9)]),
        right=np.array([-math.cos(azimuth), math.sin(azimuth), 0]),
        forward=-toward,
        mirror=float(rng.choice([-1.0, 1.0])),
    )
    seen = camera.project(np.concatenate([mesh.points, mesh.points * (1, 1, 0)]))
    low, high = seen.min(0), seen.max(0)
    share = rng.uniform(0.84, 0.96)
    scale = min(share * width / (high[0] - low[0]), 0.80 * height / (high[1] - low[1]))
    room_x = width - scale * (high[0] - low[0])
    room_y = height - scale * (high[1] - low[1])
    return (
        dataclasses.replace(
            camera,
            scale=scale,
            center_x=room_x * rng.uniform(0.25, 0.75) - scale * low[0],
            horizon_y=room_y * rng.uniform(0.4, 0.7) - scale * low[1],
        ),
        azimuth,
    )
