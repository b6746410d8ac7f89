"""What installed packages offer, where one of them may be broken.

``importlib.metadata.entry_points`` reads the entry points of every package, whoever asks for which: torch and gymnasium
do when they are imported. One malformed ``entry_points.txt`` of a package that nobody needs would end all commands.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import Distribution, EntryPoint, EntryPoints, distributions

_read = Distribution.entry_points.fget  # type: ignore[attr-defined]


def _readable(distribution: Distribution) -> EntryPoints:
    try:
        return _read(distribution)  # type: ignore[no-any-return]
    except Exception:
        return EntryPoints(())


def survive_broken_packages() -> None:
    """Let a package whose entry points cannot be read offer none, in this process."""
    Distribution.entry_points = property(_readable)  # type: ignore[method-assign, assignment]


def entry_points(group: str) -> Iterator[tuple[str, list[EntryPoint] | Exception]]:
    """What each package offers of a group, or what is wrong with it; of two of one name the first on the path.

    Packages whose entry points do not mention the group are passed over.

    Yields:
        ``package NAME VERSION``, and its entry points.
    """
    seen = set()
    for distribution in distributions():
        origin = "a package without a name"
        try:
            name = distribution.metadata["Name"]
            if name in seen:
                continue
            seen.add(name)
            origin = f"package {name} {distribution.version}" if name else origin
            if group in (distribution.read_text("entry_points.txt") or ""):
                yield origin, list(_read(distribution).select(group=group))
        except Exception as error:
            yield origin, error
