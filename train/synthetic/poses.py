"""Poses: bone rotations of people walking, standing, or with an arm bent, in the axes of the upright person."""

from __future__ import annotations

import numpy as np

from dpm_edge.train.synthetic.person import Person


def turn(axis: str, angle: float) -> np.ndarray:
    """(3,3) rotation by angle (radians) about x, y or z."""
    c, s = np.cos(angle), np.sin(angle)
    return np.array({"x": [[1, 0, 0], [0, c, -s], [0, s, c]], "y": [[c, 0, s], [0, 1, 0], [-s, 0, c]],
                     "z": [[c, -s, 0], [s, c, 0], [0, 0, 1]]}[axis])  # fmt: skip


def draw_pose(rng: np.random.Generator, person: Person) -> dict[str, np.ndarray]:
    """A random pose: a moment of the walking cycle (70 %), standing, or with a bent arm."""
    kind = rng.choice(["walk", "stand", "bent"], p=[0.7, 0.16, 0.14])
    swing = person.stride * (1.0 if kind == "walk" else 0.12) * rng.uniform(0.75, 1.1)
    phase = rng.uniform(0, 2 * np.pi)
    pose = {
        "spine03": turn("x", person.slouch) @ turn("z", 0.1 * swing * np.sin(phase)),
        "neck01": turn("x", rng.normal(0.03, 0.08)) @ turn("z", rng.normal(0, 0.22)),
    }
    for side, sign, offset in (("L", 1.0, 0.0), ("R", -1.0, np.pi)):
        wave = np.sin(phase + offset)
        pose[f"upperleg01.{side}"] = turn("y", 0.09 * sign) @ turn("x", swing * wave)
        flex = 0.06 + 0.9 * swing * max(0.0, np.cos(phase + offset)) ** 1.5
        pose[f"lowerleg01.{side}"] = turn("x", -flex)
        pose[f"foot.{side}"] = turn("x", 0.25 * swing * wave)
        bent = kind == "bent" and (sign > 0) == bool(rng.random() < 0.5)
        drop = rng.uniform(0.5, 0.66)
        pose[f"upperarm01.{side}"] = turn("x", -0.75 * swing * wave) @ turn("y", sign * drop)
        elbow = rng.uniform(1.3, 2.1) if bent else rng.uniform(0.0, 0.35)
        pose[f"lowerarm01.{side}"] = turn("x", elbow)
    return pose


def walking(person: Person, phase: float) -> dict[str, np.ndarray]:
    """The pose of a person at one moment of the walking cycle, `phase` in radians."""
    swing = person.stride
    pose = {
        "spine03": turn("x", person.slouch) @ turn("z", 0.1 * swing * np.sin(phase)),
        "neck01": turn("x", 0.03),
    }
    for side, sign, offset in (("L", 1.0, 0.0), ("R", -1.0, np.pi)):
        wave = np.sin(phase + offset)
        pose[f"upperleg01.{side}"] = turn("y", 0.09 * sign) @ turn("x", swing * wave)
        pose[f"lowerleg01.{side}"] = turn("x", -0.06 - 0.9 * swing * max(0.0, np.cos(phase + offset)) ** 1.5)
        pose[f"foot.{side}"] = turn("x", 0.25 * swing * wave)
        pose[f"upperarm01.{side}"] = turn("x", -0.75 * swing * wave) @ turn("y", sign * 0.6)
        pose[f"lowerarm01.{side}"] = turn("x", 0.2)
    return pose
