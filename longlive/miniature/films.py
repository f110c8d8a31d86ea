"""Random films of the world, counted and not drawn: film number n of a seed is always the same film."""

import random

from .grammar import Background, Colour, Motion, Scene, Shape
from .world import Film, Sky


def numbered(seed: str, number: int) -> random.Random:
    """The random numbers of one film or one step of training."""
    return random.Random(f"{seed} {number}")  # noqa: S311 (counted, no secret)


def random_scene(draw: random.Random, *, anywhere: bool = True) -> Scene:
    start = (draw.randrange(-1, 2), draw.randrange(-1, 2)) if anywhere else (0, 0)
    return Scene(
        draw.choice(list(Colour)),
        draw.choice(list(Shape)),
        draw.choice(list(Motion)),
        draw.choice(list(Background)),
        start,
    )


def random_sky(draw: random.Random) -> Sky:
    one, two, three, four = (draw.random() for _ in range(4))
    return Sky((one, two, three, four), draw.random())


def random_film(draw: random.Random, switches: tuple[int, ...] = ()) -> Film:
    """A film whose scene changes at the pixel frames `switches`."""
    scenes = [(begin, random_scene(draw, anywhere=begin == 0)) for begin in (0, *switches)]
    return Film(tuple(scenes), random_sky(draw))
