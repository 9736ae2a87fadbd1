"""Draws one picture of a car: a lofted body under a sun and a sky, in a scene, through a camera.

A body is lofted from its side outline: at each station along the length a cross-section of fixed
topology is laid, and the grid of all sections is the surface. A camera of random place projects
it; colours are computed at the vertices (diffuse sun and sky, Fresnel reflection of a simple
environment) and are affine inside a face, as in Gouraud shading. Faces are painted far to near
into an index buffer at twice the resolution, looked up, and averaged over the scene.

Units are metres; x runs from nose to tail, y to the side that faces the camera, z up from the
ground. Colours are linear light until the last step, which takes the square root (gamma 2).
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.drawing import scene
from pipeline.drawing.bodies import Body
from pipeline.drawing.canvas import Canvas
from pipeline.drawing.car import paint_car, random_finish
from pipeline.drawing.optics import random_camera, random_light
from pipeline.drawing.surface import Floats, loft

OCCLUDED = 0.10  # share of pictures with something in front of the car


class Drawing(NamedTuple):
    """A picture and what is known about it.

    Attributes:
        pixels: uint8 (H, W, 3), RGB.
        mask: bool (H, W), where the car covers at least half of a pixel, occluders ignored.
    """

    pixels: NDArray[np.uint8]
    mask: NDArray[np.bool_]

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Box of the mask: x1, y1, x2, y2 in 1-based pixels, ends inclusive."""
        return box_of(self.mask)


def box_of(mask: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """Returns the smallest box around a mask (H, W) that is not empty."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(columns[0]) + 1, int(rows[0]) + 1, int(columns[-1]) + 1, int(rows[-1]) + 1


def draw_car(body: Body, rng: np.random.Generator, width: int, height: int) -> Drawing:
    """Draws a car of a class in a random paint, scene, light and view.

    Args:
        body: shape of the car.
        rng: all randomness comes from here; the same state draws the same picture.
        width: of the picture, in pixels.
        height: likewise.

    Returns:
        The picture and the car's mask.
    """
    mesh = loft(body)
    camera, azimuth = random_camera(rng, mesh, body, width, height)
    light = random_light(rng, azimuth)
    background, light = scene.backdrop(rng, camera, light, width, height)
    canvas = Canvas(camera, width, height)
    paint_car(canvas, light, body, mesh, random_finish(rng, body))
    color, cover = canvas.resolve()
    lit = scene.shadow(camera, light, mesh, width, height)
    picture = background * (lit * (1 - cover)) + color

    mask = cover >= 0.5
    if rng.random() < OCCLUDED:
        scene.occlude(rng, light, picture.transpose(1, 2, 0), box_of(mask))
    return Drawing(_develop(rng, picture), mask)


def _develop(rng: np.random.Generator, picture: Floats) -> NDArray[np.uint8]:
    """Takes the photograph (3, H, W): exposure, white balance, vignette, gamma, sensor noise."""
    height, width = picture.shape[1:]
    gain = (rng.uniform(0.8, 1.3) * rng.uniform(0.95, 1.05, 3)).astype(np.float32)
    x = np.linspace(-1, 1, width, dtype=np.float32)
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    dim = np.float32(rng.uniform(0, 0.15))
    vignette = 1 - dim * (np.square(x) + np.square(y))
    noise = rng.standard_normal((height, width), dtype=np.float32)
    display = np.sqrt(np.clip(picture * vignette * gain[:, None, None], 0, 1)) * 255
    display += noise * np.float32(rng.uniform(1, 4)) + 0.5
    channels = np.clip(display, 0, 255).astype(np.uint8)
    return np.ascontiguousarray(channels.transpose(1, 2, 0))
