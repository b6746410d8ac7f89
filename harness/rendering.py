"""Films of trained policies, with reward and cost as they run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from harness import registry, simulators
from harness.algorithm import Policy
from harness.errors import UserError
from harness.evaluation import Episode, lockstep
from harness.files import replacing
from harness.plan import Cell
from harness.simulators import Picture
from harness.store import Store

if TYPE_CHECKING:
    from PIL.ImageDraw import ImageDraw

FRAMES_A_SECOND = 20
ENDINGS = (".gif", ".mp4")
CAPTION = 44  # pixels of height under a picture


def restore_policy(store: Store, cell: Cell, name: str) -> Policy:
    """A policy of a finished cell, as its last checkpoint left it.

    Raises:
        KeyError: the cell has no such policy.
    """
    replica = replace(cell.replica, statistics=store.statistics(cell))
    policy = registry.load(cell.algorithm)(cell.config, cell.definition, [replica]).policies(0)[name]
    policy.load_state_dict(store.policies(cell)[name])
    return policy


def film(
    cell: Cell, policy: Policy, seed: int, cost_limit: float, told: float | None, title: str, every: int
) -> tuple[list[Picture], Episode]:
    """Roll out one episode and draw it.

    Args:
        cell: whose policy it is.
        policy: what acts.
        seed: of the episode.
        cost_limit: the limit that the cost is shown against.
        told: the limit that the policy acts on, if it acts on one.
        title: what stands over every picture's caption.
        every: a picture for so many steps; the first and the last step are always drawn.

    Returns:
        Pictures (height, width, 3), all of one size, and how the episode went.
    """
    task = cell.definition
    environment = simulators.make(task, drawn=True)
    pictures: list[Picture] = []
    last = 0

    def draw(step: int, returns: NDArray[np.float64], costs: NDArray[np.float64]) -> None:
        nonlocal last
        last = step
        if step % every == 0:
            pictures.append(_captioned(environment.draw(), title, step, returns[0], costs[0], cost_limit))

    try:
        (episode,) = lockstep(task, [environment], policy, [seed], told, draw)
        if last % every:
            reward, cost = episode.episode_return, episode.cost
            pictures.append(_captioned(environment.draw(), title, last, reward, cost, cost_limit))
    finally:
        environment.close()
    return pictures, episode


def _captioned(picture: Picture, title: str, step: int, reward: float, cost: float, cost_limit: float) -> Picture:
    """The picture with two lines under it; the cost is red once it is over the limit."""
    from PIL import Image, ImageDraw

    height, width, _ = picture.shape
    width += width % 2  # as films want it
    image = Image.new("RGB", (width, height + height % 2 + CAPTION), "white")
    image.paste(Image.fromarray(np.ascontiguousarray(picture)), (0, 0))
    draw = ImageDraw.Draw(image)
    top = height + height % 2
    _write(draw, (8, top + 3), title, "black")
    place = _write(draw, (8, top + 22), f"step {step:4d}   reward {reward:8.2f}   ", "black")
    _write(draw, (place, top + 22), f"cost {cost:.2f} of {cost_limit:g}", "black" if cost <= cost_limit else "red")
    return np.asarray(image)


def _write(draw: ImageDraw, place: tuple[float, float], text: str, colour: str) -> float:
    """Write a line; where it ends."""
    from PIL import ImageFont

    font: Any = ImageFont.load_default(13)
    draw.text(place, text, fill=colour, font=font)
    return place[0] + float(draw.textlength(text, font=font))


def save(path: Path, pictures: Sequence[Picture]) -> None:
    """Write a GIF or an MP4, as the path's ending says.

    Raises:
        UserError: another ending, or what writes MP4 is not installed.
    """
    require_ending(path)
    with replacing(path) as temporary:
        if path.suffix == ".gif":
            from PIL import Image

            first, *others = [Image.fromarray(picture) for picture in pictures]
            first.save(temporary, "GIF", save_all=True, append_images=others, duration=1000 // FRAMES_A_SECOND, loop=0)
            return
        from imageio_ffmpeg import write_frames

        height, width, _ = pictures[0].shape
        writer = write_frames(
            str(temporary), (width, height), fps=FRAMES_A_SECOND, macro_block_size=2, output_params=["-f", "mp4"]
        )
        writer.send(None)  # begin
        for picture in pictures:
            writer.send(np.ascontiguousarray(picture))
        writer.close()


def require_ending(path: Path) -> None:
    """Refuse what cannot be written.

    Raises:
        UserError: the path has another ending, or what writes MP4 is not installed.
    """
    if path.suffix not in ENDINGS:
        raise UserError(f"the film's name must end in {' or '.join(ENDINGS)}: {str(path)!r}")
    if path.suffix == ".mp4":
        from importlib.util import find_spec

        if find_spec("imageio_ffmpeg") is None:
            raise UserError("an MP4 wants the package imageio-ffmpeg: 'make install', or write a .gif")
