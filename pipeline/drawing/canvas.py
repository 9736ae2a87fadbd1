"""Paints polygons of space into a picture, in the order given, each in colours of its own."""

import numpy as np
from PIL import Image, ImageDraw

from pipeline.drawing.optics import Camera
from pipeline.drawing.surface import Floats

SUPERSAMPLING = 2
BRIGHTEST = 4.0  # of a sample, so that a glint does not outshine its whole pixel


def _affine(corners: Floats, colors: Floats) -> Floats:
    """Fits colours that are affine in the picture to polygons, by least squares.

    Args:
        corners: (F, K, 2) columns and rows.
        colors: (F, K, 3).

    Returns:
        (F, 3, 3): constant, slope by column and slope by row, each of three channels.
    """
    middle = corners.mean(1)
    offset = corners - middle[:, None]
    mean = colors.mean(1)
    change = offset.swapaxes(1, 2) @ (colors - mean[:, None])
    # Half a pixel of ridge keeps slivers, seen edge on, from running away.
    spread = offset.swapaxes(1, 2) @ offset + 0.5 * np.eye(2)
    slope = np.linalg.solve(spread, change)
    constant = mean - (middle[:, None] @ slope)[:, 0]
    return np.concatenate([constant[:, None], slope], axis=1)


class Canvas:
    """A list of polygons, painted at the end into a buffer that names the face at each sample.

    Collecting first lets all corners be projected in one call, and colours fitted in few.
    """

    def __init__(self, camera: Camera, width: int, height: int) -> None:
        self.camera = camera
        self._size = (height, width)
        # Batches of F polygons or lines of K points: points (F, K, 3), colours (F, K, 3) or
        # (F, 1, 3), and the width of lines in samples, 0 for polygons.
        self._batches: list[tuple[Floats, Floats, int]] = []

    def faces(self, points: Floats, colors: Floats) -> None:
        """Paints polygons (F, K, 3) with corner colours (F, K, 3), or of one colour (F, 1, 3)."""
        self._batches.append((points, colors, 0))

    def shaded(self, points: Floats, colors: Floats) -> None:
        """Paints one polygon (K, 3) with corner colours (K, 3)."""
        self.faces(points[None], colors[None])

    def flat(self, points: Floats, color: Floats) -> None:
        """Paints one polygon (K, 3) in one colour (3,)."""
        self.faces(points[None], color[None, None])

    def line(self, points: Floats, color: Floats, width: float) -> None:
        """Paints a polyline (K, 3) in one colour (3,), `width` in metres at its first point."""
        depth = float((points[0] - self.camera.eye) @ self.camera.forward)
        samples = max(1, round(width / depth * self.camera.scale * SUPERSAMPLING))
        self._batches.append((points[None], color[None, None], samples))

    def _paint(self) -> tuple[Image.Image, Floats]:
        """Returns the buffer of face numbers, 0 for none, and the colours of each face.

        Returns:
            A picture of mode `I`, and float32 (faces + 1, 3, 3): constant, slope by column and
            slope by row of each channel.
        """
        samples = self.camera.project(
            np.concatenate([points.reshape(-1, 3) for points, _, _ in self._batches])
        )
        samples = samples * SUPERSAMPLING - 0.5
        flat = samples.ravel().tolist()
        height, width = self._size
        buffer = Image.new("I", (width * SUPERSAMPLING, height * SUPERSAMPLING))
        draw = ImageDraw.Draw(buffer)
        table = np.zeros((1 + sum(len(points) for points, _, _ in self._batches), 3, 3))
        face, start = 1, 0
        for points, colors, line in self._batches:
            many, corners = points.shape[:2]
            rows = table[face : face + many]
            if colors.shape[1] == 1:
                rows[:, 0] = colors[:, 0]
            else:
                where = samples[start : start + many * corners].reshape(many, corners, 2)
                rows[:] = _affine(where, colors)
            for _ in range(many):
                polygon = flat[2 * start : 2 * (start + corners)]
                if line:
                    draw.line(polygon, fill=face, width=line)
                else:
                    draw.polygon(polygon, fill=face)
                face, start = face + 1, start + corners
        return buffer, table.astype(np.float32)

    def resolve(self) -> tuple[Floats, Floats]:
        """Returns premultiplied colours (3, H, W) and coverage (H, W), averaged over samples."""
        buffer, table = self._paint()
        box = np.array(buffer.getbbox() or (0, 0, 1, 1))
        left, top = (box[:2] // SUPERSAMPLING).tolist()
        right, bottom = (-(-box[2:] // SUPERSAMPLING)).tolist()
        first = (left * SUPERSAMPLING, top * SUPERSAMPLING)
        last = (right * SUPERSAMPLING, bottom * SUPERSAMPLING)
        face = np.asarray(buffer.crop((*first, *last))).astype(np.intp)
        columns = np.arange(first[0], last[0], dtype=np.float32)
        rows = np.arange(first[1], last[1], dtype=np.float32)[:, None]
        mean = np.zeros((4, *self._size), np.float32)
        for channel in range(3):
            constant, by_column, by_row = table[:, :, channel].T.copy()
            color = by_column.take(face)
            color *= columns
            color += by_row.take(face) * rows
            color += constant.take(face)
            np.clip(color, 0, BRIGHTEST, out=color)
            mean[channel, top:bottom, left:right] = _average(color)
        mean[3, top:bottom, left:right] = _average((face > 0).astype(np.float32))
        return mean[:3], mean[3]


def _average(samples: Floats) -> Floats:
    """Returns the mean (H, W) of the samples of each pixel."""
    step = SUPERSAMPLING
    parts = [samples[y::step, x::step] for y in range(step) for x in range(step)]
    mean: Floats = sum(parts[1:], parts[0]) / np.float32(step**2)
    return mean
