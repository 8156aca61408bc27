"""Names of the rows of `eval-sr`."""

from __future__ import annotations

import json

import pytest

from tests.trainer.evaluation.support import picture, run_eval, weights


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        (["run/checkpoints/best-psnr_y/gan"], ["run/gan"]),
        (["run/checkpoints/last/psnr", "run/checkpoints/last/gan"], ["run/psnr", "run/gan"]),
        (
            ["run/checkpoints/best-psnr_y/gan", "run/checkpoints/best-ssim_y/gan"],
            ["run/best-psnr_y/gan", "run/best-ssim_y/gan"],
        ),
        (
            ["run/checkpoints/last/gan-000000000064", "run/checkpoints/last/gan-000000000128"],
            [f"run/checkpoints/last/gan-000000000{n}.safetensors" for n in ("064", "128")],
        ),
        (["a/gan", "b/gan", "c/psnr"], ["a/gan.safetensors", "b/gan.safetensors", "psnr"]),
        (["bicubic"], ["bicubic.safetensors"]),
    ],
)
def test_rows_of_two_models_never_have_one_name(names, labels):
    picture("Mine/HR/p.png")
    options = [f"--model={weights(f'{name}.safetensors')}" for name in names]
    rows = json.loads(run_eval("--hr", "Mine/HR", *options, "--json").stdout)["rows"]
    assert [row["model"] for row in rows] == ["bicubic", *labels]


@pytest.mark.parametrize(
    ("presets", "options", "labels"),
    [
        (["usrgan", "srcnn"], [], ["usrgan/psnr", "srcnn/psnr"]),
        (["my/own.toml", "usrgan"], [], ["own/psnr", "usrgan/psnr"]),
        (["usrgan", "usrgan"], [], ["a", "b"]),
        (["usrgan", "srcnn"], ["--name=one", "--name=two"], ["one", "two"]),
    ],
)
def test_rows_are_called_what_their_files_say_or_the_options(presets, options, labels):
    picture("Mine/HR/p.png")
    paths = [
        weights(f"{name}.safetensors", preset=preset, stage="psnr")
        for name, preset in zip("ab", presets, strict=True)
    ]
    models = [f"--model={path}" for path in paths]
    rows = json.loads(run_eval("--hr", "Mine/HR", *models, *options, "--json").stdout)["rows"]
    assert [row["model"] for row in rows] == ["bicubic", *labels]


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["one"], "--name: 1 given for 2 --model"),
        (["one", "one"], "--name one: row labels must be unique"),
        (["one", "bicubic"], "--name bicubic: row labels must"),
        (["one", " "], "row labels must be unique and not blank"),
    ],
)
def test_names_that_do_not_fit_are_refused(names, words):
    models = [f"--model={weights(f'{name}.safetensors')}" for name in "ab"]
    failed = run_eval("--hr", "x", *models, *(f"--name={name}" for name in names), code=2)
    assert words in failed.stderr.splitlines()[-1]


def test_the_table_tells_long_names_apart():
    picture("Mine/HR/p.png")
    folders = [f"a/rather/long/path/to/weights/{which}" for which in ("first", "second")]
    options = [f"--model={weights(f'{folder}/gan.safetensors')}" for folder in folders]
    shown = run_eval("--hr", "Mine/HR", *options).stdout
    assert "…" not in shown
    assert "first" in shown
    assert "second" in shown


def test_a_model_given_twice_is_refused():
    picture("Mine/HR/p.png")
    path = weights("m.safetensors")
    failed = run_eval("--hr", "Mine/HR", "--model", path, "--model", path, code=2)
    assert "--model m.safetensors: is given twice" in failed.stderr
