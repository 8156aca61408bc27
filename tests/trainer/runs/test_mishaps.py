"""User mistakes with runs and folders: nothing is lost or overwritten, and one line names the fix."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from click.testing import CliRunner

from shards.format import png
from shards.format.manifest import Split, load_manifest
from shards.writer import publish
from tests.trainer.perceptual.support import random_weights
from tests.trainer.support import train, weights
from trainer.cli import eval_main, train_main, upscale_main
from trainer.networks.feature_extractors import VGGFeatures
from trainer.reporting.run_folder import append_metrics, read_metrics
from trainer.weights.safetensors_io import load_tensors

LAST = "checkpoints/last"
BEST = "checkpoints/best-psnr_y/psnr.safetensors"
ONE_EPOCH = ["--set", "epochs=1"]


def run(command, *arguments: object, code: int):
    result = CliRunner().invoke(command, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result


@pytest.fixture
def without_val(tiny_shards, tmp_path) -> Path:
    folder = Path(shutil.copytree(tiny_shards, tmp_path / "noval"))
    manifest = load_manifest(folder)
    splits = manifest.splits | {"val": Split(0, ())}
    publish(folder, msgspec.structs.replace(manifest, splits=splits))
    return folder


@pytest.fixture(scope="module")
def finished(tiny_shards, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("finished") / "run"
    train(tiny_shards, out, "--stage", "psnr")
    return out


@pytest.fixture
def copied(finished, tmp_path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


# weights without validation


def test_both_stages_train_without_held_out_patches(without_val, tmp_path):
    told = json.loads(train(without_val, tmp_path / "run", *ONE_EPOCH, "--json").stdout)
    assert told["weights"] == str(tmp_path / "run/checkpoints/final/gan.safetensors")
    _, metadata = load_tensors(Path(told["weights"]))
    assert metadata["stage"] == "gan"
    assert not (tmp_path / "run" / BEST).exists()


def test_stage_gan_starts_from_final_weights_where_nothing_was_validated(tiny_shards, tmp_path):
    never = [*ONE_EPOCH, "--set", "validation.every_epochs=0"]
    told = train(tiny_shards, tmp_path / "run", "--stage", "psnr", *never)
    assert "checkpoints/final/psnr.safetensors" in told.stdout
    told = train(tiny_shards, tmp_path / "run", "--stage", "gan", *never)
    assert "starting from" in told.stderr
    assert "final/psnr.safetensors" in told.stderr


def test_final_weights_are_the_generator_of_the_last_checkpoint(finished):
    final, _ = load_tensors(finished / "checkpoints/final/psnr.safetensors")
    last, _ = load_tensors(max((finished / LAST).glob("psnr-*")))
    for name, value in final.items():
        assert value.equal(last[f"average.{name}"]), name


def test_final_weights_that_are_gone_come_back(finished, copied, tiny_shards):
    (copied / "checkpoints/final/psnr.safetensors").unlink()
    train(tiny_shards, copied, "--stage", "psnr")
    name = "checkpoints/final/psnr.safetensors"
    assert (copied / name).read_bytes() == (finished / name).read_bytes()


@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_best_weights_that_are_lost_are_told_and_the_final_ones_used(copied, tiny_shards, damage):
    if damage == "missing":
        (copied / BEST).unlink()
    else:
        os.truncate(copied / BEST, 900)
    told = train(tiny_shards, copied, "--stage", "gan", *ONE_EPOCH)
    assert "final/psnr.safetensors" in told.stderr
    assert (damage == "cut") == ("is damaged" in told.stderr)


def test_a_best_that_is_lost_in_the_middle_is_kept_again(tiny_shards, tmp_path):
    out = tmp_path / "run"
    train(tiny_shards, out, "--stage", "psnr", "--set", "optim.schedule=constant")
    (out / BEST).unlink()
    more = ["--set", "optim.schedule=constant", "--set", "epochs=4"]
    told = train(tiny_shards, out, "--stage", "psnr", *more)
    assert "the next validation becomes the best" in told.stderr
    assert load_tensors(out / BEST)[1]["patches_seen"] == "64"


def test_a_run_without_its_checkpoints_starts_anew_and_says_so(copied, finished, tiny_shards):
    shutil.rmtree(copied / LAST)
    told = train(tiny_shards, copied, "--stage", "psnr")
    assert "no checkpoint to resume from; stage psnr starts over" in told.stderr
    assert weights(copied) == weights(finished)
    assert len(read_metrics(copied)) == len(read_metrics(finished))


# the log


def test_odd_lines_of_the_log_are_left_out(copied, finished, tiny_shards):
    path = copied / "metrics.jsonl"
    whole = path.read_bytes()
    path.write_bytes(b'\xff\xfe\n[1]\n{"stage": "psnr"}\nnull\n' + whole + b'{"stage": "ps')
    assert read_metrics(copied) == read_metrics(finished)
    told = run(train_main, "--report", copied, code=0)
    assert told.stdout.strip() == str(copied / "report.html")


def test_a_line_after_a_cut_one_is_not_glued_to_it(copied, tiny_shards):
    before = read_metrics(copied)
    with (copied / "metrics.jsonl").open("ab") as stream:
        stream.write(b'{"stage": "ps')
    train(tiny_shards, copied, "--stage", "psnr")
    append_metrics(copied, before[0])
    assert read_metrics(copied) == [*before, before[0]]


# names


@pytest.mark.skipif(os.name != "posix", reason="file names are bytes")
def test_names_that_are_not_utf8_train_and_report(tiny_shards, tmp_path):
    preset = os.fsdecode(b"h\xe4usle.toml")
    shutil.copy("configs/tiny.toml", tmp_path / preset)
    out = tmp_path / os.fsdecode(b"l\xe4uf")
    train(tiny_shards, out, "--stage", "psnr", "--config", str(tmp_path / preset), *ONE_EPOCH)
    assert b"h\\xe4usle" in (out / "report.html").read_bytes()


# folders and files in the way


def test_a_run_folder_that_is_a_file_is_refused_in_a_dry_run_too(tiny_shards, tmp_path):
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file/run"):
        told = train(tiny_shards, out, "--dry-run", code=2)
        assert f"{tmp_path / 'file'} is a file; name a folder" in told.stderr
    assert (tmp_path / "file").read_text() == "mine"


@pytest.fixture
def pictures(tmp_path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(3):
        noise = np.random.default_rng(number).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        (folder / f"{number}.png").write_bytes(png.encode_rgb(noise))
    return folder


def test_strips_never_lie_among_the_pictures_that_are_scored(pictures):
    for strips in (pictures, pictures / "below"):
        told = run(eval_main, "--hr", pictures, "--strips", strips, code=2)
        assert "whose images are scored" in told.stderr
    assert len(list(pictures.iterdir())) == 3
    told = run(eval_main, "--hr", pictures, "--strips", pictures / "0.png", code=2)
    assert "is a file" in told.stderr


@pytest.mark.parametrize("report", ["pictures/0.png", "model", "out.txt", "pictures"])
def test_a_report_replaces_no_picture_and_no_weights(pictures, finished, tmp_path, report):
    model = finished / BEST
    before = model.read_bytes()
    path = model if report == "model" else tmp_path / report
    options = ["--model", model, "-o", tmp_path / "out", "--device", "cpu", "--report", path]
    told = run(upscale_main, pictures, *options, code=2)
    assert "is not a .json file; name one" in told.stderr
    assert model.read_bytes() == before
    assert not (tmp_path / "out").exists()


def test_a_picture_of_another_format_is_no_folder(pictures, finished, tmp_path):
    told = run(
        upscale_main, pictures / "0.png", "--model", finished / BEST, "-o", tmp_path / "x.gif", code=2
    )  # fmt: skip
    assert "write .png, .jpg or .webp" in told.stderr


def test_a_full_disk_ends_the_run_at_once(pictures, finished, tmp_path, monkeypatch):
    monkeypatch.setenv("USRGAN_FAULT", "enospc@1")
    monkeypatch.setattr("shards.io.atomic._operations", iter(range(1, 100)))
    options = ["--model", finished / BEST, "-o", tmp_path / "out", "--device", "cpu"]
    told = run(upscale_main, pictures, *options, code=1)
    assert "the disk is full" in told.stderr.splitlines()[-1]
    assert list(tmp_path.glob("out/*")) == []


def test_when_every_picture_fails_there_is_no_rest(finished, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.png").write_bytes(b"no picture")
    options = ["--model", finished / BEST, "-o", tmp_path / "out", "--device", "cpu"]
    told = run(upscale_main, tmp_path / "in", *options, code=1)
    assert told.stderr.splitlines()[-1].endswith("for the reasons above")


def test_out_of_memory_is_one_line(pictures, finished, tmp_path, monkeypatch):
    def full(*_: object, **__: object) -> None:
        raise RuntimeError(
            "[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"
        )

    monkeypatch.setattr("trainer.upscaling.upscale.upscale_tiled", full)
    options = ["--model", finished / BEST, "-o", tmp_path / "out", "--device", "cpu"]
    told = run(upscale_main, pictures / "0.png", *options, code=1)
    assert "needs more memory than the device has; use a smaller --tile" in told.stderr


def test_training_out_of_memory_is_one_line(tiny_shards, tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB")

    monkeypatch.setattr("trainer.runs.train.train_stage", full)
    told = train(tiny_shards, tmp_path / "run", "--stage", "psnr", code=1)
    assert "use a smaller batch_size" in told.stderr


def test_a_text_file_is_no_vgg(tiny_shards, tmp_path):
    (tmp_path / "vgg.txt").write_text("hello")
    options = ["--stage", "gan", "--vgg", tmp_path / "vgg.txt", "--set", "content.features=vgg19"]
    told = train(tiny_shards, tmp_path / "run", *map(str, options), code=2)
    assert "is not a readable PyTorch file" in told.stderr
    assert not (tmp_path / "run").exists()


def test_a_run_tells_which_vgg_it_compared_with(tiny_shards, finished, tmp_path):
    network = VGGFeatures(layers=["conv1_2"], activation="before", input_range="imagenet")
    torch.save(network.state_dict(), tmp_path / "mine.pth")
    options = ["--stage", "gan", "--init", finished / BEST, "--vgg", tmp_path / "mine.pth"]
    options += [*ONE_EPOCH, "--set", "content.features=vgg19"]
    told = train(tiny_shards, tmp_path / "run", *map(str, options))
    assert told.stderr.count("is not torchvision's vgg19-dcbb9e9d.pth") == 1
    _, metadata = load_tensors(tmp_path / "run/checkpoints/final/gan.safetensors")
    digest = hashlib.sha256((tmp_path / "mine.pth").read_bytes()).hexdigest()
    assert (metadata["content_features"], metadata["content_sha256"]) == ("vgg19", digest)
    _, metadata = load_tensors(finished / BEST)
    assert (metadata["content_features"], metadata["content_sha256"]) == ("none", "")


@pytest.mark.parametrize("stage", ["gan", "both"])
def test_patches_too_small_for_stage_gan_are_told_before_anything_is_trained(
    tiny_shards, tmp_path, stage
):
    """They are told by the manifest alone, so it is made to say so."""
    folder = Path(shutil.copytree(tiny_shards, tmp_path / "shards"))
    publish(folder, msgspec.structs.replace(load_manifest(folder), crop_size=16))
    told = train(folder, tmp_path / "run", "--stage", stage, code=2)
    assert "discriminator.architecture = vgg: needs patches of 32 pixels" in told.stderr
    assert f"those of {folder} have 16" in told.stderr
    unet = ["--set", "discriminator.architecture=unet"]
    train(folder, tmp_path / "run", "--stage", "both", *unet, "--dry-run")
    deep = [*unet, "--set", "content.layer=conv5_4"]
    publish(folder, msgspec.structs.replace(load_manifest(folder), crop_size=8))
    told = train(folder, tmp_path / "run", "--stage", "both", *deep, code=2)
    assert "content.layer = conv5_4: needs patches of 16 pixels" in told.stderr
    assert not (tmp_path / "run").exists()


def test_held_out_patches_too_small_for_lpips_are_told_before_anything_is_trained(
    tiny_shards, tmp_path
):
    folder = Path(shutil.copytree(tiny_shards, tmp_path / "shards"))
    publish(folder, msgspec.structs.replace(load_manifest(folder), hr_size=28))
    torch.save(random_weights("alexnet"), tmp_path / "alex.pth")
    options = ["--stage", "psnr", "--lpips", str(tmp_path / "alex.pth")]
    told = train(folder, tmp_path / "run", *options, code=2)
    assert f"--lpips {tmp_path / 'alex.pth'}: needs patches of 31 pixels" in told.stderr
