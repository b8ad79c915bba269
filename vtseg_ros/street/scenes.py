# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The five scenes and six variations of the street, as data."""

from __future__ import annotations

from dataclasses import dataclass

Color = tuple[float, float, float]


@dataclass(frozen=True)
class Scene:
    """Appearance of a road. Lengths are in metres; spacings are mean distances along each side of the road.

    A spacing of 0 means that there are no such objects.
    """

    title: str
    lanes: int
    lane_width: float
    bend: float  # peak curvature, 1/m
    ground: str  # texture next to the road
    verge: str  # texture of the strip along the road
    verge_width: float
    building: str  # kind; see props.FACADES
    building_spacing: float
    building_offset: float  # from the verge
    building_height: tuple[float, float]
    tree_spacing: float
    conifers: float  # share of the trees
    bush_spacing: float
    hedge_spacing: float
    rail_share: float  # share of the road's length with a guardrail, per side
    lamp_spacing: float
    wooden_spacing: float
    bollard_spacing: float
    sign_spacing: float
    board_spacing: float
    light_spacing: float
    misc_spacing: float
    person_spacing: float
    parked_spacing: float
    hills: float  # height of the land far from the road
    speed: float  # m/s of the camera
    traffic_gap: float  # mean distance between oncoming vehicles
    kinds: tuple[float, float, float]  # share of cars, vans and trucks
    ground_tint: Color = (1.0, 1.0, 1.0)


SCENES: dict[int, Scene] = {
    1: Scene(
        "inner city",
        3,
        3.2,
        0.002,
        "paving",
        "paving",
        3.0,
        "city",
        13,
        1.0,
        (9, 26),
        18,
        0.0,
        30,
        60,
        0.18,
        24,
        0,
        9,
        17,
        90,
        42,
        14,
        15,
        15,
        0.0,
        8.0,
        32,
        (0.55, 0.28, 0.17),
    ),
    2: Scene(
        "suburb",
        2,
        3.1,
        0.010,
        "grass",
        "paving",
        2.0,
        "suburb",
        19,
        4.0,
        (4.5, 7),
        12,
        0.2,
        14,
        13,
        0.15,
        38,
        40,
        30,
        24,
        120,
        75,
        20,
        26,
        19,
        1.0,
        8.5,
        40,
        (0.55, 0.28, 0.17),
        (1.0, 1.0, 0.95),
    ),
    3: Scene(
        "motorway",
        4,
        3.5,
        0.003,
        "grass",
        "dirt",
        2.2,
        "hall",
        60,
        22.0,
        (7, 12),
        26,
        0.3,
        12,
        45,
        0.75,
        45,
        0,
        0,
        38,
        75,
        110,
        42,
        0,
        90,
        5.0,
        17.0,
        30,
        (0.40, 0.27, 0.33),
        (1.0, 0.96, 0.8),
    ),
    4: Scene(
        "country road",
        2,
        3.0,
        0.014,
        "grass",
        "grass",
        1.6,
        "suburb",
        62,
        9.0,
        (4.5, 6.5),
        7,
        0.45,
        8,
        28,
        0.30,
        75,
        26,
        28,
        30,
        110,
        100,
        34,
        60,
        48,
        4.0,
        11.5,
        42,
        (0.50, 0.27, 0.23),
        (0.92, 1.0, 0.78),
    ),
    5: Scene(
        "small town",
        2,
        3.4,
        0.007,
        "grass",
        "paving",
        2.6,
        "suburb",
        24,
        2.5,
        (5, 9.5),
        13,
        0.1,
        16,
        24,
        0.30,
        28,
        55,
        18,
        20,
        80,
        50,
        17,
        22,
        20,
        2.0,
        9.5,
        36,
        (0.52, 0.28, 0.20),
        (1.0, 0.97, 0.86),
    ),
}


@dataclass(frozen=True)
class Variation:
    """Weather, time of day and the camera's heading.

    Attributes:
        sun: direction to the sun as (azimuth from the road's heading, elevation), degrees.
        sun_color, ambient: light on lit faces, relative to full exposure.
        zenith, horizon: colours of the sky, 0..1.
        clouds: cloud cover, 0..1.
        fog: extinction, 1/m.
        shadow: darkness of cast shadows, 0..1.
        gain: colour gain of the camera.
        yaw: heading of the camera against the road's, degrees, positive to the left.
    """

    sun: tuple[float, float] = (-50.0, 48.0)
    sun_color: Color = (0.66, 0.63, 0.56)
    ambient: Color = (0.64, 0.66, 0.70)
    zenith: Color = (0.36, 0.56, 0.86)
    horizon: Color = (0.80, 0.87, 0.94)
    clouds: float = 0.45
    fog: float = 0.0012
    shadow: float = 0.50
    gain: Color = (1.0, 1.0, 1.0)
    yaw: float = 0.0


VARIATIONS: dict[str, Variation] = {
    "clone": Variation(),
    "overcast": Variation(
        sun_color=(0.12, 0.12, 0.12),
        ambient=(0.84, 0.85, 0.87),
        zenith=(0.66, 0.69, 0.73),
        horizon=(0.80, 0.81, 0.82),
        clouds=1.0,
        fog=0.003,
        shadow=0.18,
        gain=(0.92, 0.94, 0.96),
    ),
    "fog": Variation(
        sun_color=(0.10, 0.10, 0.10),
        ambient=(0.84, 0.85, 0.86),
        zenith=(0.76, 0.77, 0.78),
        horizon=(0.79, 0.80, 0.81),
        clouds=0.0,
        fog=0.022,
        shadow=0.12,
        gain=(0.96, 0.97, 0.98),
    ),
    "sunset": Variation(
        sun=(28.0, 11.0),
        sun_color=(0.80, 0.48, 0.24),
        ambient=(0.48, 0.43, 0.48),
        zenith=(0.38, 0.42, 0.62),
        horizon=(0.98, 0.70, 0.44),
        clouds=0.55,
        fog=0.002,
        shadow=0.55,
        gain=(1.04, 0.95, 0.84),
    ),
    "15-deg-left": Variation(yaw=15.0),
    "15-deg-right": Variation(yaw=-15.0),
}
