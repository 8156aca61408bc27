"""Wrong usage, unusual names and operating system errors of every command."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from click.testing import CliRunner

import pipeline.cli
import shards.cli
import trainer.cli

COMMANDS = [
    (pipeline.cli.main, ["--workers", "many"], "prep-shards"),
    (pipeline.cli.main, ["--nonsense"], "prep-shards"),
    (trainer.cli.train_main, ["--stage", "three"], "train-sr"),
    (trainer.cli.eval_main, ["--hr", ""], "eval-sr"),
    (trainer.cli.upscale_main, ["photo.png"], "upscale-sr"),
    (trainer.cli.upscale_main, ["photo.png", "-o", ""], "upscale-sr"),
]


@pytest.mark.parametrize(("command", "arguments", "name"), COMMANDS)
def test_wrong_usage_is_one_line_that_names_the_help(command, arguments, name):
    result = CliRunner().invoke(command, arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert result.stderr.endswith(f"; see {name} --help\n")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("arguments", [["sl"], ["--nonsense"], ["ls"], ["verify", "--depe", "x"]])
def test_wrong_usage_of_a_subcommand_is_one_line(arguments):
    result = CliRunner().invoke(shards.cli.main, arguments, prog_name="inspect-shards")
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert "; see inspect-shards" in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("command", "arguments", "option"),
    [
        (trainer.cli.upscale_main, ["photo.png", "-o", "s3://bucket/out"], "-o"),
        (trainer.cli.train_main, ["--out", "s3://bucket/run"], "--out"),
        (trainer.cli.eval_main, ["--shards", "s3://bucket/shards"], "--shards"),
    ],
)
def test_a_url_is_refused_where_a_local_path_is_expected(command, arguments, option):
    result = CliRunner().invoke(command, arguments)
    assert result.exit_code == 2
    assert option in result.stderr
    assert f"{arguments[-1]} is a URL; name a local path here" in result.stderr


def test_an_empty_path_is_not_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(pipeline.cli.main, ["--src", ".", "--out", ""])
    assert result.exit_code == 2
    assert "the path is empty" in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name != "posix", reason="file names are bytes")
def test_characters_unknown_to_the_terminal_are_escaped(tmp_path):
    folder = tmp_path / "Kätzchen-写真"
    code = "from pipeline.cli import main; main()"
    ended = subprocess.run(
        [sys.executable, "-c", code, "--src", str(folder), "--out", "x"],
        capture_output=True, check=False, env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )  # fmt: skip
    assert ended.returncode == 2
    assert b"K\\xe4tzchen-\\u5199\\u771f: does not exist" in ended.stderr


def test_an_operating_system_error_is_not_reported_as_a_bug(monkeypatch, tmp_path):
    def broken(*_: object) -> None:
        raise PermissionError(13, "Permission denied", str(tmp_path / "photos"))

    monkeypatch.setattr("pipeline.photos.scan._check_source", broken)
    result = CliRunner().invoke(
        pipeline.cli.main, ["--src", str(tmp_path), "--out", str(tmp_path / "out")]
    )
    assert result.exit_code == 1
    assert result.stderr == f"error: {tmp_path / 'photos'}: Permission denied\n"
