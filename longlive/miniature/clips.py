"""Random clips of the world; each is a function of its seed and number."""

import random

from .grammar import Background, Colour, Motion, Scene, Shape
from .world import FRAME_STEP, SIZE, Clip, Sky


def seed_random(seed: str, number: int) -> random.Random:
    """Seed the random numbers of one clip or one step of training."""
    return random.Random(f"{seed} {number}")  # noqa: S311 (for reproducibility, not for secrets)


def choose_scene(draw: random.Random, *, anywhere: bool = True) -> Scene:
    """Choose a scene; it starts in the middle unless `anywhere`."""
    start = (draw.randrange(-1, 2), draw.randrange(-1, 2)) if anywhere else (0, 0)
    return Scene(
        draw.choice(list(Colour)),
        draw.choice(list(Shape)),
        draw.choice(list(Motion)),
        draw.choice(list(Background)),
        start,
    )


def choose_sky(draw: random.Random) -> Sky:
    one, two, three, four = (draw.random() for _ in range(4))
    return Sky((one, two, three, four), draw.random())


def choose_clip(draw: random.Random, switches: tuple[int, ...] = (), *, roam: bool = False) -> Clip:
    """Choose a clip whose scene changes at the pixel frames `switches`.

    If it may `roam`, the thing starts where a moving one can be when a latent begins, not where its prompt says.
    """
    scenes = [(begin, choose_scene(draw, anywhere=begin == 0)) for begin in (0, *switches)]
    sky = choose_sky(draw)
    places = SIZE // FRAME_STEP
    shift = (FRAME_STEP * draw.randrange(places), FRAME_STEP * draw.randrange(places)) if roam else (0, 0)
    return Clip(tuple(scenes), sky, shift)
