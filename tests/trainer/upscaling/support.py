"""Images and calls of `upscale-sr` that several tests share."""

from __future__ import annotations

from pathlib import Path

from click.testing import CliRunner, Result

from shards.format import png
from tests.trainer.support import make_patch
from trainer.cli import upscale_main

SMALL = make_patch(1)[:20, :24].copy()


def run_upscale(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(upscale_main, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result


def picture(name: str) -> Path:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png.encode_rgb(SMALL))
    return path
