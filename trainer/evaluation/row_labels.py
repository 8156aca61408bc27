"""What models are called in a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path


def make_row_labels(
    models: Sequence[Path], told: Sequence[Mapping[str, str]], *, taken: Sequence[str]
) -> list[str]:
    """A name of its own for each row, as short as that allows.

    Args:
        models: weights files, all different.
        told: the metadata of each.
        taken: names of other rows.
    """
    choices = [_choices(path, about) for path, about in zip(models, told, strict=True)]
    by_length = [[*taken, *level] for level in zip(*choices, strict=True)]
    return [
        next(
            label for label, all_of in zip(own, by_length, strict=True) if all_of.count(label) == 1
        )
        for own in choices
    ]


def _choices(path: Path, about: Mapping[str, str]) -> tuple[str, str, str, str]:
    """PRESET/STAGE as the file says, RUN/STAGE and RUN/CHECKPOINT/STAGE by its folders; then the path."""
    parts = path.resolve().parts
    near = within = path.stem
    if "checkpoints" in parts[:-1]:
        at = len(parts) - 1 - parts[::-1].index("checkpoints")
        run, stage = parts[at - 1], path.stem.split("-")[0]
        near, within = f"{run}/{stage}", "/".join((run, *parts[at + 1 : -1], stage))
    known = about.get("preset") and about.get("stage")
    first = f"{Path(about['preset']).stem}/{about['stage']}" if known else near
    return first, near, within, str(path)
