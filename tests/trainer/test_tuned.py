"""The fastest way of a step on this machine: found, kept, taken, and not in the middle of a run."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path

import msgspec
import pytest
import torch
from click.testing import CliRunner

from shards.errors import ConfigError
from tests.trainer.test_resume import SETTINGS, train, weights
from trainer import loop
from trainer.bench import tune
from trainer.cli import bench_main
from trainer.config.load import load_config
from trainer.config.schema import SpeedConfig
from trainer.tuned import Shape, Tuned, advice, look_up, remember, settle

CPU = torch.device("cpu")
SHAPE = Shape("psnr", scale=4, side=128)
CONFIG = load_config("tiny", stage="psnr", overrides=["precision=fp32"])
USUAL = settle(CONFIG, SHAPE, device=CPU)


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "usrgan"


def keep(config, shape, way="push", speedup=1.5, **settings):
    settings = msgspec.structs.asdict(USUAL) | settings
    return remember(config, shape, Tuned(way, settings, speedup, date(2026, 11, 26)), device=CPU)


def test_the_remembered_way_is_taken_by_such_steps_alone():
    assert USUAL.dense == "plain"
    keep(CONFIG, SHAPE, dense="push")
    assert settle(CONFIG, SHAPE, device=CPU) == msgspec.structs.replace(USUAL, dense="push")
    others = [
        (CONFIG, Shape("gan", scale=4, side=128)),
        (CONFIG, Shape("psnr", scale=2, side=128)),
        (CONFIG, Shape("psnr", scale=4, side=64)),
        (msgspec.structs.replace(CONFIG, batch_size=CONFIG.batch_size * 2), SHAPE),
        (load_config("tiny", stage="psnr", overrides=["generator.blocks=1"]), SHAPE),
    ]
    assert [settle(*other, device=CPU).dense for other in others] == ["plain"] * 5
    shared = msgspec.structs.replace(CONFIG, batch_size=CONFIG.batch_size * 4, accumulate=2)
    two = msgspec.structs.replace(SHAPE, world=2)
    assert settle(shared, two, device=CPU).dense == "push"


def test_what_was_asked_for_comes_first_and_then_what_a_run_began_with():
    keep(CONFIG, SHAPE, dense="push", allocator="system")
    began = msgspec.structs.asdict(USUAL)
    assert settle(CONFIG, SHAPE, device=CPU, before=began) == USUAL
    asked = msgspec.structs.replace(CONFIG, speed=SpeedConfig(dense="hybrid"))
    found = settle(asked, SHAPE, device=CPU, before=began)
    assert found == msgspec.structs.replace(USUAL, dense="hybrid")
    with pytest.raises(ConfigError, match=r"speed\.graph: a CUDA graph needs"):
        settle(msgspec.structs.replace(CONFIG, speed=SpeedConfig(graph="step")), SHAPE, device=CPU)


def test_what_cannot_be_here_is_left_out_and_the_rest_is_taken():
    keep(CONFIG, SHAPE, dense="push", graph="step")
    pushed = msgspec.structs.replace(USUAL, dense="push")
    assert settle(CONFIG, SHAPE, device=CPU) == pushed
    later = msgspec.structs.asdict(pushed) | {"dense": "folded", "fusion": "all"}
    assert settle(CONFIG, SHAPE, device=CPU, before=later) == USUAL
    keep(CONFIG, SHAPE, dense="folded", fusion="all")
    assert settle(CONFIG, SHAPE, device=CPU) == USUAL


def test_a_run_from_before_there_was_tuning_goes_on_by_default():
    keep(CONFIG, SHAPE, dense="push")
    assert settle(CONFIG, SHAPE, device=CPU, before={}) == USUAL


def test_what_is_damaged_or_has_no_place_counts_as_not_measured(monkeypatch):
    path = keep(CONFIG, SHAPE, dense="push")
    whole = path.read_bytes()
    for damaged in (whole[:40], whole.replace(b"push", b"pu\xffh"), b"[]"):
        path.write_bytes(damaged)
        assert look_up(CONFIG, SHAPE, device=CPU) is None
    assert settle(CONFIG, SHAPE, device=CPU) == USUAL

    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr("shards.io.cache_dir.Path.home", homeless)
    assert keep(CONFIG, SHAPE) is None
    assert settle(CONFIG, SHAPE, device=CPU) == USUAL


def test_a_run_keeps_the_way_that_it_began_with(tiny_shards, tmp_path):
    settings = [*SETTINGS, "optim.schedule=constant", "precision=fp32"]
    config = load_config("tiny", stage="psnr", overrides=settings)
    shape = Shape("psnr", scale=4, side=64)

    def run(name: str, epochs: int) -> str:
        out, chosen = tmp_path / name, ["--set", "optim.schedule=constant"]
        chosen += ["--set", "precision=fp32", "--set", f"epochs={epochs}"]
        told = train(tiny_shards, out, "--stage", "psnr", *chosen).output
        assert json.loads((out / "run.json").read_text())["speed"]["dense"] == "push"
        return told

    path = keep(config, shape, dense="push")
    assert "steps go the way push: 1.50 times as fast as the default" in run("whole", 2)
    run("halves", 1)
    path.unlink()
    run("halves", 2)
    assert weights(tmp_path / "halves") == weights(tmp_path / "whole")
    keep(config, shape, "hybrid", dense="hybrid")
    assert "hybrid was measured to be the fastest here" in run("halves", 3)


def test_on_a_gpu_where_nothing_was_measured_the_command_is_told(monkeypatch, tmp_path):
    monkeypatch.setattr("trainer.tuned.look_up", lambda *_, **__: None)
    gpu = torch.device("cuda")
    usual = msgspec.structs.asdict(USUAL)
    two = msgspec.structs.replace(SHAPE, world=2)
    said = advice(CONFIG, two, device=gpu, speed=usual, run=tmp_path)
    batch = CONFIG.batch_size // 2
    command = f"bench-sr train --config {tmp_path}/config.toml --stage psnr --batch {batch} --tune"
    assert command in said
    assert "'a run/config.toml'" in advice(
        CONFIG, SHAPE, device=gpu, speed=usual, run=Path("a run")
    )
    small = Shape("psnr", scale=2, side=64)  # for which nothing can be measured
    assert advice(CONFIG, small, device=gpu, speed=usual, run=tmp_path) == ""
    decided = msgspec.structs.replace(CONFIG, speed=USUAL)
    assert advice(decided, SHAPE, device=gpu, speed=usual, run=tmp_path) == ""
    assert advice(CONFIG, SHAPE, device=CPU, speed=usual, run=tmp_path) == ""


def test_several_processes_say_what_they_take_of_it(tmp_path):
    keep(CONFIG, SHAPE, "graph-push", dense="push", graph="step")
    two = msgspec.structs.replace(SHAPE, world=2)
    several = msgspec.structs.replace(CONFIG, batch_size=CONFIG.batch_size * 2)
    speed = msgspec.structs.asdict(settle(several, two, device=CPU))
    said = advice(several, two, device=CPU, speed=speed, run=tmp_path)
    assert said.startswith("steps go the way graph-push, as far as it can be: 1.50 times")


def test_a_run_that_rolls_back_to_its_start_keeps_its_way(tiny_shards, tmp_path, monkeypatch):
    settings = [*SETTINGS, "precision=fp32", "guard.patience=1", "checkpoint.every_patches=100000"]
    wanted = load_config("tiny", stage="psnr", overrides=settings)
    ways, began = [], loop.build_step

    def build(state, config, bf16, **given):
        step = began(state, config, bf16, **given)
        ways.append(given["speed"].dense)
        if len(ways) > 1:
            return step
        keep(wanted, Shape("psnr", scale=4, side=64), dense="push")  # while it runs

        def bad(lr, hr, stop):
            return step(lr * float("nan"), hr, stop)

        return bad

    monkeypatch.setattr(loop, "build_step", build)
    chosen = [part for each in settings[len(SETTINGS) :] for part in ("--set", each)]
    train(tiny_shards, tmp_path / "run", "--stage", "psnr", *chosen)
    assert ways == ["plain", "plain"]


SMALL = ["--config", "tiny", "--device", "cpu", "--stage", "psnr", "--batch", "2"]
for each in ("generator.features=8", "generator.blocks=1", "generator.growth=4", "precision=fp32"):
    SMALL += ["--set", each]


def bench(*options: str, code: int = 0):
    result = CliRunner().invoke(bench_main, ["train", "--tune", *SMALL, *options])
    assert result.exit_code == code, result.output
    return result


def test_the_fastest_way_is_found_and_kept(monkeypatch):
    speedups = {"plain": 0.9, "push": 1.4, "hybrid": None, "compile": 1.6}

    def tried(way, options):
        assert options[:4] == ["--stage", "psnr", "--batch", "2"]
        return tune.Tried(way, speedups[way], "hybrid does other work" if way == "hybrid" else "")

    monkeypatch.setattr(tune, "_try", tried)
    told = bench("--impl", ",".join(speedups)).output
    assert "hybrid                not taken: hybrid does other work" in told
    assert "train-sr takes compile for such steps on this machine" in told
    overrides = SMALL[9::2]
    config = load_config("tiny", stage="psnr", overrides=[*overrides, "batch_size=2"])
    found = look_up(config, SHAPE, device=CPU)
    assert (found.way, found.speedup, found.settings["compile"]) == ("compile", 1.6, "blocks")
    assert settle(config, SHAPE, device=CPU).compile == "blocks"
    speedups["compile"] = speedups["push"] = 1.02  # which may be noise
    assert json.loads(bench("--impl", "push,compile", "--json").stdout)[0]["best"] == "default"
    assert settle(config, SHAPE, device=CPU).compile == "none"


def test_a_way_is_timed_in_a_process_of_its_own_or_its_error_told():
    (found,) = json.loads(bench("--impl", "push", "--rounds", "1", "--json").stdout)
    (tried,) = found["tried"]
    assert tried["way"] == "push"
    assert 0.1 < tried["speedup"] < 10
    failed = tune._try("push", ["--config", "no-such-preset"])
    assert failed.speedup is None
    assert "no-such-preset" in failed.reason


def test_ways_that_cannot_be_here_are_wrong_usage():
    refused = bench("--impl", "graph", code=2).output
    assert "--impl graph: stage psnr has no such way beside the default" in refused
    assert "--tune: times real steps" in bench("--fake-step", "10ms", code=2).output
    assert "--tune: times steps alone" in bench("--shards", "x", code=2).output
