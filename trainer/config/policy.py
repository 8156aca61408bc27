"""Rules that a setting carries in its annotation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trainer.config.schema import Config


@dataclass(frozen=True)
class Condition:
    """A condition on a configuration, with its words for the documentation."""

    text: str
    holds: Callable[[Config], bool]


@dataclass(frozen=True)
class Policy:
    """Rules for one setting, or for all settings of a table."""

    may_change: bool | Condition = False
    """Whether a resumed run may have another value."""
    per_rank: bool = False
    """Whether the ranks of a job may have different values."""
    recipe: bool = True
    """Whether the setting belongs to the training recipe, which is compared with the paper's."""
    gan_only: bool = False
    """Whether stage psnr ignores it."""
    paper: str = ""
    """Place in the paper that gives the value."""
    unsaid: str = ""
    """The paper's words where it gives no value."""


HARMLESS = Policy(may_change=True, recipe=False)
"""Policy of settings that change no weight."""


def join(outer: Policy, own: Policy) -> Policy:
    """Return the rules of a setting within a table that has rules, too."""
    return Policy(
        may_change=own.may_change or outer.may_change,
        per_rank=own.per_rank or outer.per_rank,
        recipe=own.recipe and outer.recipe,
        gan_only=own.gan_only or outer.gan_only,
        paper=own.paper,
        unsaid=own.unsaid,
    )
