"""Prints the size of the code and every public name with more than one definition: `python -m tests.code_report`.

Exit code 1 if a module exceeds its limit. The limits of the trainer and of its lean core are goals that it prints.
"""

from __future__ import annotations

import ast
import sys
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[1]
TRAINER_LIMIT, CORE_LIMIT, MODULE_LIMIT = 12_000, 6_500, 300
CORE = (
    "config", "data", "networks", "losses", "training", "runs", "weights", "distributed", "models.py", "device.py",
)  # fmt: skip
"""The lean core of the trainer: what training needs without GPU kernels, evaluation, upscaling, reports."""
LONG_MODULES = {"trainer/config/schema.py": "one table of all settings"}
"""Modules that may exceed MODULE_LIMIT, with the reason."""
SHARED_NAMES = {
    "main": "entry point of a command",
    "Maps": "type alias of feature maps",
    "Images": "type alias of image batches",
    "Warn": "type alias of a callback",
    "Progress": "type alias of a callback",
}
"""Public names that several modules define on purpose, with the reason."""


def count_lines(path: Path) -> int:
    """Return the lines of a Python file, or of all Python files below a folder."""
    files = path.rglob("*.py") if path.is_dir() else [path]
    return sum(len(file.read_text().splitlines()) for file in files)


def list_modules() -> list[Path]:
    """Return all modules of the three packages."""
    packages = ("pipeline", "shards", "trainer")
    return sorted(path for package in packages for path in (ROOT / package).rglob("*.py"))


def find_repeated_names() -> dict[str, list[str]]:
    """Return every public module-level function, class and constant that several modules define."""
    places: dict[str, list[str]] = defaultdict(list)
    for path in list_modules():
        for node in ast.parse(path.read_text()).body:
            names: list[str] = []
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                names = [node.name]
            elif isinstance(node, ast.Assign):
                names = [target.id for target in node.targets if isinstance(target, ast.Name)]
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                names = [node.target.id]
            for name in names:
                if not name.startswith("_"):
                    places[name].append(path.relative_to(ROOT).as_posix())
    return {name: files for name, files in places.items() if len(files) > 1}


def main() -> int:
    """Print the report and return the exit code."""
    trainer = count_lines(ROOT / "trainer")
    core = sum(count_lines(ROOT / "trainer" / name) for name in CORE)
    too_long = {
        path.relative_to(ROOT).as_posix(): count_lines(path)
        for path in list_modules()
        if count_lines(path) > MODULE_LIMIT
    }
    lines = [
        *(f"{name}: {count_lines(ROOT / name):,} lines" for name in ("pipeline", "shards")),
        f"trainer: {trainer:,} lines (goal {TRAINER_LIMIT:,}), its lean core {core:,} (goal {CORE_LIMIT:,})",
        *(
            f"{path}: {count} lines, {LONG_MODULES.get(path, 'too long')}"
            for path, count in too_long.items()
        ),
    ]
    repeated = find_repeated_names()
    lines += [
        f"{name}: defined in {', '.join(files)} ({SHARED_NAMES.get(name, 'one meaning?')})"
        for name, files in sorted(repeated.items())
    ]
    sys.stdout.write("\n".join(lines) + "\n")
    return int(bool(too_long.keys() - LONG_MODULES))


if __name__ == "__main__":
    sys.exit(main())
