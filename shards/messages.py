"""Counts and durations as messages show them."""

from __future__ import annotations


def format_count(number: int, noun: str) -> str:
    """Return a number with its noun, `1 shard` or `1,200 shards`."""
    return f"{number:,} {noun if number == 1 else noun + 's'}"


def format_duration(seconds: float) -> str:
    """Return a duration in its two largest units: `45 s`, `3 min`, `4 h 10 min`, `2 d 4 h`."""
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    days, hours = divmod(round(hours + minutes / 60), 24)
    return f"{days} d {hours} h" if hours else f"{days} d"
