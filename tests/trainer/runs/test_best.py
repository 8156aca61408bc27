"""Which weights count as the best: each rule against validations told by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.trainer.perceptual.support import random_weights
from tests.trainer.support import logged, train
from trainer.networks.feature_extractors import BackboneKind
from trainer.runs.best import deliverable_metrics, find_improvements, forget_metric
from trainer.weights.safetensors_io import load_tensors, save_tensors


def follow(*validations: dict[str, float], best_by="auto", start=0.0) -> list[set[str]]:
    """Return the metrics that improve at each of several consecutive validations."""
    best: dict[str, float] = {}
    steps = []
    for found in validations:
        won = find_improvements(found, best, best_by=best_by, psnr_drop=3.0, start_psnr_y=start)
        for values in won.values():
            best |= values
        steps.append(set(won))
    return steps


def scores(psnr: float, ssim: float, **more: float) -> dict[str, float]:
    return {"psnr_y": psnr, "ssim_y": ssim, **more}


def test_psnr_and_ssim_are_each_their_own_best():
    steps = follow(scores(28, 0.8), scores(29, 0.7), scores(28.5, 0.81), scores(29, 0.81))
    assert steps == [{"psnr_y", "ssim_y"}, {"psnr_y"}, {"ssim_y"}, set()]


def test_the_papers_rule_wants_both_to_improve_on_the_last_that_it_chose():
    validations = (scores(28, 0.80), scores(29, 0.79), scores(28.5, 0.81), scores(28.6, 0.82))
    steps = follow(*validations, best_by="both")
    assert ["both" in step for step in steps] == [True, False, True, True]
    assert not any("both" in step for step in follow(*validations))


def test_lpips_counts_down_and_only_above_its_psnr_floor():
    steps = follow(
        scores(30, 0.9, lpips=0.30),
        scores(28, 0.8, lpips=0.20),
        scores(26.9, 0.8, lpips=0.10),  # 3.1 dB below the first
        scores(27.0, 0.8, lpips=0.15),
        scores(29, 0.8, lpips=0.16),
    )
    assert ["lpips" in step for step in steps] == [True, True, False, True, False]


def test_the_floor_moves_with_the_best_psnr_and_what_is_below_it_stands_no_more():
    steps = follow(
        scores(20, 0.5, lpips=0.4),
        scores(30, 0.9, lpips=0.5),  # the first is 10 dB below
        scores(26, 0.8, lpips=0.1),
        scores(32, 0.9, lpips=0.6),  # 30 is still within 3 dB
        scores(33.1, 0.9, lpips=0.7),
    )
    assert ["lpips" in step for step in steps] == [True, True, False, False, True]


def test_the_floor_is_that_of_the_weights_that_the_stage_began_with():
    validations = scores(29.9, 0.9, lpips=0.1), scores(30, 0.9, lpips=0.2)
    assert ["lpips" in step for step in follow(*validations, start=33.0)] == [False, True]
    assert ["lpips" in step for step in follow(*validations)] == [True, False]


def test_each_stage_hands_on_what_it_is_for():
    assert deliverable_metrics("auto", "psnr") == ("psnr_y",)
    assert deliverable_metrics("auto", "gan") == ("lpips",)
    assert deliverable_metrics("both", "gan") == ("both",)
    assert deliverable_metrics("final", "psnr") == ()


def test_forgetting_a_metric_forgets_all_of_it_and_nothing_else():
    best = {"both": 28.0, "both.ssim_y": 0.8, "psnr_y": 29.0}
    forget_metric(best, "both")
    assert best == {"psnr_y": 29.0}


def test_a_run_hands_on_what_its_rule_says(tiny_shards, tmp_path):
    handed = {}
    for rule in ("auto", "both"):
        run = tmp_path / rule
        more = ["--set", f"validation.best_by={rule}", "--set", "epochs=1", "--json"]
        result = json.loads(train(tiny_shards, run, *more).stdout)
        handed[rule] = Path(result["weights"]).relative_to(run / "checkpoints").as_posix()
        assert (run / "checkpoints/best-both/gan.safetensors").exists() == (rule == "both")
    assert handed == {
        "auto": "final/gan.safetensors",
        "both": "best-both/gan.safetensors",
    }


def test_values_of_other_held_out_patches_are_not_to_be_beaten(tiny_shards, tmp_path):
    run, more = tmp_path / "run", ["--stage", "psnr", "--json"]
    train(tiny_shards, run, *more)
    max((run / "checkpoints/last").glob("psnr-*")).unlink()
    more += ["--set", "validation.patches=1"]
    again = train(tiny_shards, run, *more)
    assert "validation.patches: was 4 and is 1" in again.stderr.replace("\n", " ")
    best = json.loads(again.stdout)["stages"][0]["best"]
    assert best["psnr_y"] == logged(run)[-1]["val_psnr_y"]
    _, metadata = load_tensors(run / "checkpoints/best-psnr_y/psnr.safetensors")
    assert float(metadata["val_psnr_y"]) == pytest.approx(best["psnr_y"], abs=1e-4)

    # a stage that has ended keeps what it has
    done = train(tiny_shards, run, *more, "--set", "validation.patches=2")
    assert json.loads(done.stdout)["stages"][0]["best"] == best


def test_final_weights_tell_what_they_score_and_so_does_a_stage_that_begins_with_them(
    tiny_shards, tmp_path
):
    run = tmp_path / "run"
    train(tiny_shards, run, "--stage", "psnr")
    final = run / "checkpoints/final/psnr.safetensors"
    _, metadata = load_tensors(final)
    last = logged(run)[-1]
    for name in ("val_psnr_y", "val_ssim_y", "val_psnr_rgb", "val_ssim_rgb"):
        assert float(metadata[name]) == pytest.approx(last[name], abs=1e-4)
    content = final.read_bytes()
    final.unlink()
    train(tiny_shards, run, "--stage", "psnr")  # writes them anew
    assert final.read_bytes() == content
    train(tiny_shards, tmp_path / "gan", "--stage", "gan", "--init", str(final))
    assert start_of(tmp_path / "gan") == pytest.approx(last["val_psnr_y"], abs=1e-4)


def test_damaged_best_weights_give_way_to_the_final_ones(tiny_shards, tmp_path):
    settings = [
        "--set",
        "validation.best_by=both",
        "--set",
        "epochs=1",
        "--stage",
        "psnr",
        "--json",
    ]
    train(tiny_shards, tmp_path / "run", *settings)
    path = tmp_path / "run/checkpoints/best-both/psnr.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    again = train(tiny_shards, tmp_path / "run", *settings)
    assert "using the final weights of stage psnr" in again.stderr.replace("\n", " ")
    assert json.loads(again.stdout)["weights"].endswith("final/psnr.safetensors")


def start_of(run: Path) -> float:
    _, metadata = load_tensors(max((run / "checkpoints/last").glob("gan-*")))
    return json.loads(metadata["position"])["start_psnr_y"]


def test_with_lpips_stage_gan_hands_on_its_lowest(tiny_shards, tmp_path):
    network = tmp_path / "alexnet.safetensors"
    save_tensors(network, random_weights("alexnet"), {})
    run, more = tmp_path / "run", ["--lpips", str(network), "--set", "epochs=2", "--json"]
    result = json.loads(train(tiny_shards, run, *more).stdout)
    measured = [row["val_lpips"] for row in logged(run) if row["stage"] == "gan"]
    assert result["stages"][1]["best"]["lpips"] == pytest.approx(min(measured))
    assert result["weights"] == str(run / "checkpoints/best-lpips/gan.safetensors")

    # the PSNR of the start is known, after a resume too
    wanted = pytest.approx(result["stages"][0]["best"]["psnr_y"], abs=1e-4)
    assert start_of(run) == wanted
    max((run / "checkpoints/last").glob("gan-*")).unlink()
    train(tiny_shards, run, *more)
    assert start_of(run) == wanted
    assert logged(run)[-1]["val_lpips"] == measured[-1]


def test_an_lpips_of_another_network_is_not_to_be_beaten(tiny_shards, tmp_path):
    kinds: tuple[BackboneKind, ...] = ("alexnet", "vgg16")
    networks = {kind: tmp_path / f"{kind}.safetensors" for kind in kinds}
    for kind, path in networks.items():
        save_tensors(path, random_weights(kind), {})
    run, more = tmp_path / "run", ["--stage", "psnr", "--json"]
    train(tiny_shards, run, *more, "--lpips", str(networks["alexnet"]))
    max((run / "checkpoints/last").glob("psnr-*")).unlink()
    again = train(tiny_shards, run, *more, "--lpips", str(networks["vgg16"]))
    told = again.stderr.replace("\n", " ")
    assert "perceptual metric: LPIPS v0.1 VGG-16" in told
    assert "their values do not compare" in told
    found = json.loads(again.stdout)["stages"][0]["best"]["lpips"]
    assert found == logged(run)[-1]["val_lpips"]
    _, metadata = load_tensors(run / "checkpoints/best-lpips/psnr.safetensors")
    assert metadata["lpips"].startswith("LPIPS v0.1 VGG-16")


def test_a_rule_that_nothing_can_measure_is_refused(tiny_shards, tmp_path):
    refused = train(tiny_shards, tmp_path / "run", "--set", "validation.best_by=lpips", code=2)
    assert "--lpips FILE" in refused.stderr
    assert not (tmp_path / "run").exists()
