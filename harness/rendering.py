"""Films of trained policies, with reward and cost as they run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from harness import simulators
from harness.algorithm import Policy
from harness.errors import UserError
from harness.evaluation import CHUNK, Episode, episode_seeds, lockstep
from harness.files import replacing
from harness.guard import guard
from harness.plan import Cell
from harness.simulators import Picture
from harness.tasks import within

if TYPE_CHECKING:
    from PIL.ImageDraw import ImageDraw

FRAMES_A_SECOND = 20
ENDINGS = (".gif", ".mp4")
CAPTION = 44  # pixels of height under a picture


def film(
    cell: Cell, policy: Policy, episode: int, cost_limit: float, title: str, every: int
) -> tuple[list[Picture], Episode]:
    """Roll out one of a cell's last evaluation episodes again, among those it was evaluated with, and draw it.

    Args:
        cell: whose policy it is.
        policy: what acts.
        episode: which of the cell's final episodes, from 0 on.
        cost_limit: the limit that the cost is shown against, and that the policy acts on if it acts on one.
        title: what stands over every picture's caption.
        every: a picture for so many steps; the first and the last step are always drawn.

    Returns:
        Pictures (height, width, 3), all of one size, and how the episode went.
    """
    task = cell.definition
    together = 1 if simulators.lives_alone(task) else CHUNK
    first, index = episode // together * together, episode % together
    seeds = episode_seeds(task, cell.seed, cell.evaluation.final)[first : first + together]
    whose = f"the environment {task.environment!r}"
    with guard(whose, "make"):
        environments = [simulators.make(task, drawn=place == index) for place in range(len(seeds))]
    shown = environments[index]
    pictures: list[Picture] = []

    def draw(step: int, returns: NDArray[np.float64], costs: NDArray[np.float64]) -> None:
        if step % every == 0:
            with guard(whose, "render"):
                picture = shown.draw()
            pictures.append(_captioned(picture, title, step, returns[index], costs[index], cost_limit))

    try:
        went = lockstep(task, environments, policy, seeds, cost_limit if cell.told_limit else None, draw)[index]
        # The others may have gone on for longer; this one has stayed where it ended.
        del pictures[(went.length - 1) // every + 1 :]
        with guard(whose, "render"):
            picture = shown.draw()
        pictures.append(_captioned(picture, title, went.length, went.episode_return, went.cost, cost_limit))
    finally:
        with guard(whose, "close"):
            for environment in environments:
                environment.close()
    return pictures, went


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
    _write(
        draw, (place, top + 22), f"cost {cost:.2f} of {cost_limit:g}", "black" if within(cost, cost_limit) else "red"
    )
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
            raise UserError("an MP4 needs the package imageio-ffmpeg: pip install imageio-ffmpeg, or write a .gif")
