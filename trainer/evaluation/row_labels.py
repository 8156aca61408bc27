"""Row labels: short, unique names of models in a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path


def make_row_labels(
    models: Sequence[Path], metadata: Sequence[Mapping[str, str]], *, taken: Sequence[str]
) -> list[str]:
    """Return the shortest label of each model that no other row has.

    Args:
        models: weights files, all different.
        metadata: metadata of each file.
        taken: labels of other rows.
    """
    candidates = [_list_labels(path, fields) for path, fields in zip(models, metadata, strict=True)]
    by_length = [[*taken, *level] for level in zip(*candidates, strict=True)]
    return [
        next(
            label for label, rivals in zip(own, by_length, strict=True) if rivals.count(label) == 1
        )
        for own in candidates
    ]


def _list_labels(path: Path, metadata: Mapping[str, str]) -> tuple[str, str, str, str]:
    """Return PRESET/STAGE from the metadata, RUN/STAGE and RUN/CHECKPOINT/STAGE from the path, and the path."""
    parts = path.resolve().parts
    by_run = by_checkpoint = path.stem
    if "checkpoints" in parts[:-1]:
        at = len(parts) - 1 - parts[::-1].index("checkpoints")
        run, stage = parts[at - 1], path.stem.split("-")[0]
        by_run, by_checkpoint = f"{run}/{stage}", "/".join((run, *parts[at + 1 : -1], stage))
    preset, recorded = metadata.get("preset"), metadata.get("stage")
    by_preset = f"{Path(preset).stem}/{recorded}" if preset and recorded else by_run
    return by_preset, by_run, by_checkpoint, str(path)
