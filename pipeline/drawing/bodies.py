"""Ten shapes of cars, in metres, and the paints they are sold in."""

import dataclasses

Point = tuple[float, float]

# sRGB. A paint is never of one class alone: see `Body.paints`.
PAINTS = {
    "white": (236, 236, 232),
    "silver": (178, 182, 186),
    "gray": (98, 102, 108),
    "black": (30, 31, 34),
    "red": (178, 24, 30),
    "maroon": (98, 22, 34),
    "orange": (214, 98, 22),
    "yellow": (228, 182, 34),
    "green": (38, 96, 58),
    "teal": (32, 122, 128),
    "blue": (30, 76, 160),
    "navy": (26, 38, 82),
    "beige": (196, 180, 146),
}


@dataclasses.dataclass(frozen=True)
class Body:
    """The shape of a class of cars, and the paints it is mostly sold in.

    Attributes:
        outline: upper outline from nose to tail, (x, z) corners in metres; rounded by `rounding`.
        width: overall width.
        clearance: height of the sill above the ground.
        axles: x of the front and of the rear axle.
        wheel: radius of a wheel.
        belt: height of the lower window edge at the cowl and at the tail.
        windscreen: x where it begins and ends.
        side_windows: x ranges of the panes of one side.
        paints: the usual paints; four of five cars have one of them, the others any.
        rear_glass: x range of a sloping rear window, or None.
        tail_glass: z range of a window in an upright tail, or None.
        doors: x of the door seams.
        roof_width: width of the roof, as a fraction of the width.
        rounding: how often corners of the outline are cut (Chaikin).
        taper: how much nose and tail narrow in plan, as a fraction of the width.
        cladding: whether sills and arches are of dark plastic.
        spokes: number of spokes of a wheel.
        bed: x range of an open cargo bed, or None.
        cockpit: x range of an open cockpit, or None.
        rails: whether the roof carries rails.
        spare: whether a spare wheel hangs on the tail.
    """

    outline: tuple[Point, ...]
    width: float
    clearance: float
    axles: Point
    wheel: float
    belt: Point
    windscreen: Point
    side_windows: tuple[Point, ...]
    paints: tuple[str, ...]
    rear_glass: Point | None = None
    tail_glass: Point | None = None
    doors: tuple[float, ...] = ()
    roof_width: float = 0.70
    rounding: int = 2
    taper: float = 0.20
    cladding: bool = False
    spokes: int = 5
    bed: Point | None = None
    cockpit: Point | None = None
    rails: bool = False
    spare: bool = False

    @property
    def length(self) -> float:
        """Overall length in metres."""
        return self.outline[-1][0]


SEDAN = Body(
    outline=(
        (0, 0.66), (0.05, 0.78), (0.4, 0.89), (1.35, 1.02), (2.05, 1.47), (2.5, 1.53),
        (3.15, 1.49), (3.75, 1.12), (4.62, 1.09), (4.72, 0.92),
    ),
    width=1.82, clearance=0.21, axles=(0.93, 3.68), wheel=0.33, belt=(0.97, 1.04),
    windscreen=(1.37, 2.0), rear_glass=(3.2, 3.7), side_windows=((1.45, 2.45), (2.53, 3.45)),
    doors=(1.42, 2.54, 3.45), paints=("silver", "black", "navy"),
)  # fmt: skip
HATCHBACK = Body(
    outline=(
        (0, 0.70), (0.05, 0.84), (0.3, 0.94), (0.75, 1.06), (1.4, 1.50), (1.8, 1.58),
        (2.75, 1.53), (3.12, 1.10), (3.2, 0.86),
    ),
    width=1.64, clearance=0.20, axles=(0.62, 2.68), wheel=0.31, belt=(0.98, 1.06),
    windscreen=(0.78, 1.36), rear_glass=(2.8, 3.06), side_windows=((0.85, 1.75), (1.83, 2.8)),
    doors=(0.8, 1.79), paints=("teal", "yellow", "red"), taper=0.24,
)  # fmt: skip
COUPE = Body(
    outline=(
        (0, 0.50), (0.1, 0.60), (0.6, 0.71), (1.85, 0.84), (2.55, 1.14), (2.85, 1.18),
        (3.2, 1.13), (4.1, 0.92), (4.38, 0.94), (4.44, 0.76),
    ),
    width=1.90, clearance=0.13, axles=(0.92, 3.58), wheel=0.345, belt=(0.80, 0.91),
    windscreen=(1.87, 2.50), rear_glass=(3.22, 3.95), side_windows=((1.95, 2.9), (2.95, 3.4)),
    doors=(1.85, 3.05), paints=("red", "orange", "gray"), roof_width=0.62, taper=0.28,
    spokes=7,
)  # fmt: skip
CONVERTIBLE = Body(
    outline=(
        (0, 0.56), (0.1, 0.68), (0.5, 0.78), (1.5, 0.93), (3.2, 0.94), (3.95, 0.92), (4.1, 0.74),
    ),
    width=1.78, clearance=0.15, axles=(0.86, 3.24), wheel=0.325, belt=(0.92, 0.94),
    windscreen=(1.45, 1.98), side_windows=(), doors=(1.5, 2.72), cockpit=(1.6, 3.1),
    paints=("blue", "maroon", "silver"), taper=0.26, spokes=6,
)  # fmt: skip
SUV = Body(
    outline=(
        (0, 0.88), (0.05, 1.03), (0.4, 1.12), (1.3, 1.20), (1.9, 1.71), (2.35, 1.79),
        (4.2, 1.75), (4.56, 1.24), (4.66, 0.98),
    ),
    width=1.90, clearance=0.34, axles=(0.92, 3.66), wheel=0.40, belt=(1.13, 1.18),
    windscreen=(1.32, 1.87), rear_glass=(4.24, 4.52),
    side_windows=((1.42, 2.4), (2.48, 3.35), (3.42, 4.2)), doors=(1.32, 2.44, 3.4),
    paints=("gray", "green", "black"), roof_width=0.78, taper=0.12, cladding=True,
    rails=True,
)  # fmt: skip
PICKUP = Body(
    outline=(
        (0, 0.94), (0.04, 1.07), (0.4, 1.12), (1.45, 1.18), (2.05, 1.76), (2.5, 1.83),
        (3.35, 1.80), (3.5, 1.16), (3.6, 1.12), (5.5, 1.12), (5.58, 1.06),
    ),
    width=1.96, clearance=0.36, axles=(0.98, 4.45), wheel=0.40, belt=(1.12, 1.14),
    windscreen=(1.48, 2.02), rear_glass=(3.37, 3.48), side_windows=((1.58, 2.5), (2.58, 3.3)),
    doors=(1.5, 2.54, 3.38, 3.55), paints=("white", "blue", "maroon"), roof_width=0.74,
    taper=0.10, rounding=1, bed=(3.66, 5.46), spokes=6,
)  # fmt: skip
CARGO_VAN = Body(
    outline=(
        (0, 0.86), (0.06, 1.03), (0.75, 1.24), (1.55, 2.10), (1.95, 2.26), (5.1, 2.26),
        (5.24, 2.10),
    ),
    width=1.98, clearance=0.24, axles=(0.92, 4.1), wheel=0.345, belt=(1.18, 1.22),
    windscreen=(0.78, 1.5), side_windows=((1.05, 1.95),), tail_glass=(1.35, 1.95),
    doors=(0.95, 2.05, 3.25), paints=("white", "silver", "navy"), roof_width=0.86,
    taper=0.10, rounding=1, spokes=9,
)  # fmt: skip
MINIVAN = Body(
    outline=(
        (0, 0.72), (0.06, 0.88), (0.55, 1.04), (0.85, 1.13), (1.95, 1.72), (2.5, 1.82),
        (4.45, 1.80), (4.84, 1.25), (4.92, 0.92),
    ),
    width=1.95, clearance=0.18, axles=(0.95, 3.95), wheel=0.335, belt=(1.02, 1.06),
    windscreen=(0.88, 1.88), rear_glass=(4.5, 4.8),
    side_windows=((1.15, 2.25), (2.33, 3.45), (3.52, 4.45)), doors=(1.42, 2.34, 3.48),
    paints=("beige", "teal", "maroon"), roof_width=0.76,
)  # fmt: skip
BUS = Body(
    outline=(
        (0, 1.00), (0.05, 1.25), (0.12, 1.45), (0.42, 2.50), (0.6, 2.68), (6.5, 2.68), (6.6, 2.45),
    ),
    width=2.25, clearance=0.32, axles=(1.35, 5.0), wheel=0.44, belt=(1.32, 1.32),
    windscreen=(0.13, 0.42), tail_glass=(1.6, 2.3), doors=(0.55, 1.25),
    side_windows=((0.5, 1.25), (1.4, 2.45), (2.55, 3.6), (3.7, 4.75), (4.85, 6.1)),
    paints=("yellow", "white", "green"), roof_width=0.92, rounding=1, taper=0.04, spokes=8,
)  # fmt: skip
OFFROADER = Body(
    outline=(
        (0, 0.90), (0.03, 1.12), (0.3, 1.17), (1.5, 1.22), (1.72, 1.86), (1.85, 1.92),
        (4.5, 1.90), (4.58, 1.80),
    ),
    width=2.06, clearance=0.44, axles=(0.78, 3.7), wheel=0.46, belt=(1.20, 1.22),
    windscreen=(1.52, 1.71), side_windows=((1.72, 2.5), (2.6, 3.4), (3.5, 4.4)),
    tail_glass=(1.3, 1.75), doors=(1.6, 2.55, 3.45), paints=("beige", "orange", "yellow"),
    roof_width=0.90, rounding=1, taper=0.03, cladding=True, spokes=6, spare=True,
)  # fmt: skip
