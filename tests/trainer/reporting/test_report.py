"""The report page: what stands on it, offline, and what a run without this or that shows."""

from __future__ import annotations

import base64
import json
import re
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest
from click.testing import CliRunner

from shards.format import png
from tests.trainer.reporting.support import make_metrics
from tests.trainer.support import make_patch, train
from trainer.cli import train_main
from trainer.config.load import load_config
from trainer.config.write import config_to_toml
from trainer.evaluation.comparison import SheetColumn, build_comparison_sheet
from trainer.evaluation.test_sets import ImagePair
from trainer.reporting import charts, report
from trainer.reporting.report import LiveReport, write_report
from trainer.reporting.run_folder import read_metrics
from trainer.runs import train as training


def write_run(run: Path, rows: list[dict], preset: str = "usrgan") -> Path:
    (run / "samples").mkdir(parents=True)
    configs = {stage: load_config(preset, stage=stage) for stage in ("psnr", "gan")}
    (run / "config.toml").write_text(config_to_toml(configs))
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run


def add_sample(run: Path, stage: str, patches: int) -> list[np.ndarray]:
    columns = [np.concatenate([make_patch(10 * at + row) for row in range(4)]) for at in range(3)]
    sheet = np.ascontiguousarray(np.concatenate(columns, axis=1))
    (run / f"samples/{stage}-{patches:012d}.png").write_bytes(png.encode_rgb(sheet))
    return columns


def add_evaluation(run: Path, models: list[str]) -> np.ndarray:
    hr = make_patch(1)
    picture = ImagePair("a", hr, np.ascontiguousarray(hr[::4, ::4]))
    shown = [SheetColumn(model, hr // (number + 1), "0 dB") for number, model in enumerate(models)]
    (run / "strips").mkdir()
    (run / "strips/Mine-a.png").write_bytes(png.encode_rgb(build_comparison_sheet(picture, shown)))
    values = {
        "psnr_y": 28.431,
        "ssim_y": 0.81114,
        "psnr_rgb": 26.7,
        "ssim_rgb": 0.77,
        "lpips": 0.12345,
    }
    shared = {"set": "Mine", "images": 1, "per_image": [{"image": "a", **values}], **values}
    rows = [{"model": model, **shared} for model in models]
    (run / "evaluation.json").write_text(json.dumps({"protocol": "as <usual>", "rows": rows}))
    return hr


def pictures(text: str) -> dict[str, np.ndarray]:
    """Every `<img>` of a page by its alternative text."""
    found = {}
    for alt, data in re.findall(
        r'<img[^>]*alt="([^"]*)" src="data:image/webp;base64,([^"]*)"', text
    ):
        content = np.frombuffer(base64.b64decode(data), np.uint8)
        found[alt] = cv2.imdecode(content, cv2.IMREAD_COLOR)[..., ::-1]
    return found


def test_a_whole_run_shows_figures_numbers_and_settings(tmp_path):
    rows = make_metrics("psnr", 12) + make_metrics("gan", 12)
    run = write_run(tmp_path / "run", rows, "tiny")
    text = write_report(run).read_text()
    assert text.count("<svg") == len(list((run / "figures").glob("*.svg"))) >= 15
    assert {path.stem for path in (run / "figures").glob("*.png")} == {
        path.stem for path in (run / "figures").glob("*.svg")
    }
    best = max(row["val_psnr_y"] for row in rows[:12])
    assert f"{best:.2f} (epoch 12)" in text
    assert (
        "<td class=long>psnr and gan<td class=long>generator.blocks<td class=long>2<td class=long>23"
        in text
    )
    assert "<td class=long>gan<td class=long>discriminator.features" in text


def test_speed_and_wait_are_those_of_the_whole_stage(tmp_path):
    rows = make_metrics("psnr", 2)  # as many patches in 3 seconds and in 1
    rows[0] |= {"patches_per_s": 100.0, "data_wait": 0.4}
    rows[1] |= {"patches_per_s": 300.0, "data_wait": 0.0}
    text = write_report(write_run(tmp_path / "run", rows), figures=False).read_text()
    assert "<td class=n>150.0<td class=n>30.0%" in text


def test_the_lowest_lpips_is_the_best(tmp_path):
    rows = make_metrics("psnr", 3) + make_metrics("gan", 3)
    for row, value in zip(rows[3:], (0.3, 0.2, 0.25), strict=True):
        row["val_lpips"] = value
    text = write_report(write_run(tmp_path / "run", rows), figures=False).read_text()
    assert "<th class=n>best LPIPS<" in text
    assert "<td class=n>0.2000 (epoch 2)" in text
    assert "<td class=n>not measured" in text
    assert "LPIPS over epochs" in text


def test_a_run_that_was_not_validated_has_no_best(tmp_path):
    rows = make_metrics("psnr", 3, every=9)
    text = write_report(write_run(tmp_path / "run", rows), figures=False).read_text()
    assert (
        "best" not in text.partition("Deviations")[0].partition("<body")[0].partition("</style>")[2]
    )


def test_the_papers_own_settings_deviate_in_the_augmentation_alone(tmp_path):
    run = write_run(tmp_path / "run", make_metrics("psnr", 1))
    text = write_report(run, figures=False).read_text()
    deviating = text.partition("Deviations from the paper")[2].partition("<h2>")[0]
    assert "data.augment" in deviating
    assert deviating.count("<tr>") == 2, deviating


def test_patches_that_are_not_the_papers_deviate(tmp_path):
    run = write_run(tmp_path / "run", make_metrics("psnr", 1))
    patches = {"scale": 4, "hr-size": 256, "degrade": "bicubic"}
    (run / "run.json").write_text(json.dumps({"patches": patches}))
    text = write_report(run, figures=False).read_text()
    told = ("psnr", "prep-shards --hr-size", "256", "128")
    assert "".join(f"<td class=long>{cell}" for cell in told) in text
    assert "prep-shards --degrade" not in text


def test_settings_that_this_version_cannot_read_are_not_called_the_papers(tmp_path):
    run = write_run(tmp_path / "run", make_metrics("psnr", 1))
    path = run / "config.toml"
    path.write_text("feuds = 3\n" + path.read_text())
    text = write_report(run, figures=False).read_text()
    assert "every setting is the paper" not in text
    assert "this version of usrgan cannot read the settings" in text
    assert "unknown key feuds" in text


def test_only_stages_that_ran_deviate(tmp_path):
    text = write_report(write_run(tmp_path / "run", make_metrics("psnr", 1), "tiny"), figures=False)
    assert "<td class=long>psnr<td class=long>generator.blocks" in text.read_text()
    assert "discriminator.features<td" not in text.read_text()
    none = write_report(write_run(tmp_path / "none", [], "tiny"), figures=False).read_text()
    assert "No stage has ended an epoch yet." in none


def test_the_page_needs_no_network(tmp_path):
    run = write_run(tmp_path / "run", make_metrics("psnr", 5))
    add_sample(run, "psnr", 64)
    add_evaluation(run, ["bicubic", "gan"])
    text = write_report(run, figures=False).read_text()
    links = re.findall(r"""(?:src|href|url\()=?["'(]?([^"')\s>]+)""", text)
    assert all(link.startswith(("data:", "#")) for link in links if "w3.org" not in link), links
    assert not re.search(r"<(script|link|iframe|object)", text)


def test_tags_are_closed_in_order(tmp_path):
    run = write_run(tmp_path / "run", make_metrics("psnr", 5) + make_metrics("gan", 5))
    add_sample(run, "gan", 64)
    add_evaluation(run, ["bicubic", "gan"])
    open_tags: list[str] = []

    class Checker(HTMLParser):
        def handle_starttag(self, tag, attrs):
            if tag not in {"meta", "img", "input", "th", "td", "tr"}:  # these close by themselves
                open_tags.append(tag)

        def handle_endtag(self, tag):
            assert open_tags.pop() == tag

        def handle_startendtag(self, tag, attrs):
            pass

    Checker().feed(write_report(run, figures=False).read_text().removeprefix("<!doctype html>"))
    assert open_tags == []


def test_a_slider_uncovers_bicubic_or_the_newest_sample(tmp_path):
    run = write_run(tmp_path / "run", make_metrics("psnr", 1))
    add_sample(run, "psnr", 64)
    columns = add_sample(run, "psnr", 1234)
    text = write_report(run, figures=False).read_text()
    assert "Held-out patches after 1,234 patches of stage psnr" in text
    assert "type=range" in text
    found = pictures(text)
    for name, column in zip(("bicubic", "stage psnr", "HR"), columns, strict=True):
        folded = np.concatenate((column[:256], column[256:]), axis=1)
        np.testing.assert_array_equal(found[name], folded)


def test_photos_show_bicubic_against_the_last_model(tmp_path):
    run = write_run(tmp_path / "run", make_metrics("psnr", 1))
    hr = add_evaluation(run, ["bicubic", "psnr", "gan"])
    text = write_report(run, figures=False).read_text()
    found = pictures(text)
    np.testing.assert_array_equal(found["gan"], hr // 3)
    np.testing.assert_array_equal(found["HR"], hr)
    assert "psnr" not in found
    for shown in (
        "as &lt;usual&gt;",
        "<td class=n>28.43",
        "<td class=n>0.8111",
        "<td class=n>0.1235",
    ):
        assert shown in text
    (run / "evaluation.json").unlink()
    assert list(pictures(write_report(run, figures=False).read_text())) == ["Mine-a"]


def test_a_strip_of_another_evaluation_keeps_the_names_that_are_drawn_on_it(tmp_path):
    run = write_run(tmp_path / "run", make_metrics("gan", 1))
    add_evaluation(run, ["bicubic", "psnr", "gan"])
    (run / "strips/Mine-a.png").rename(run / "strips/Older-a.png")
    assert list(pictures(write_report(run, figures=False).read_text())) == ["Older-a"]


@pytest.mark.parametrize(
    "damage",
    [
        "[]",
        "{",
        '{"rows": []}',
        '{"protocol": "", "rows": [1]}',
        '{"rows": [{"set": "a"}]}',
        '{"protocol": "", "rows": [{"set": "a", "model": "m", "images": 1}]}',
        '{"protocol": "", "rows": [{"set": "a", "model": "m", "images": 1, "per_image": [0]}]}',
        '{"rows": [{"set": "a", "model": "m", "images": 1, "per_image": []}]}',
        '{"protocol": "", "rows": [{"model": "m"}]}',
        '{"protocol": "", "rows": [{"set": "a", "model": "m", "images": 1, "psnr_y": null}]}',
    ],
)
def test_what_others_left_in_the_folder_does_not_spoil_the_page(tmp_path, damage):
    run = write_run(tmp_path / "run", make_metrics("psnr", 1))
    (run / "evaluation.json").write_text(damage)
    (run / "run.json").write_text(damage)
    (run / "strips").mkdir()
    (run / "strips/broken.png").write_bytes(b"no picture")
    (run / "samples/psnr-x.png").write_bytes(png.encode_rgb(make_patch(1)))
    text = write_report(run, figures=False).read_text()
    assert "Whole images" not in text
    assert "<img" not in text


def test_a_run_without_an_epoch_says_so(tmp_path):
    text = write_report(write_run(tmp_path / "run", [])).read_text()
    assert "No epoch has ended yet." in text
    assert not (tmp_path / "run/figures").exists()


def test_without_the_extra_the_page_says_how_to_get_charts(tmp_path, monkeypatch):
    monkeypatch.setattr(charts, "is_available", lambda: False)
    run = write_run(tmp_path / "run", make_metrics("psnr", 5))
    text = write_report(run).read_text()
    assert "pip install &#39;usrgan[report]&#39;" in text
    assert "<svg" not in text
    assert not (run / "figures").exists()


def test_an_account_without_a_home_gets_a_page_without_charts(tmp_path):
    """As a container's bare user id, where altair cannot be imported."""
    pytest.importorskip("altair")
    code = (
        "import pathlib, sys\n"
        "def homeless(cls): raise RuntimeError('Could not determine home directory.')\n"
        "pathlib.Path.home = classmethod(homeless)\n"
        "from trainer.reporting.report import write_report\n"
        "print(write_report(pathlib.Path(sys.argv[1])).read_text())\n"
    )
    run = write_run(tmp_path / "run", make_metrics("psnr", 5))
    ran = subprocess.run([sys.executable, "-c", code, str(run)], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert "altair also needs $HOME" in ran.stdout


def test_the_command_makes_the_page_anew(tmp_path):
    run = write_run(tmp_path / "run", make_metrics("psnr", 1))
    done = CliRunner().invoke(train_main, ["--report", str(run), "--json"])
    assert json.loads(done.stdout) == {"report": str(run / "report.html")}
    refused = CliRunner().invoke(train_main, ["--report", str(tmp_path / "other")])
    assert refused.exit_code == 2
    assert "not a run folder" in refused.stderr


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Time that passes only where a test says so; a page takes two seconds."""
    now = [1000.0]

    def write(run, *, figures):
        assert not figures
        now[0] += 2
        written.append(now[0])

    written: list[float] = []
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(report, "write_report", write)
    return now


def test_a_page_on_the_way_takes_two_parts_in_a_hundred_of_the_time(clock, tmp_path):
    live = LiveReport(tmp_path, warn=pytest.fail)
    moments = []
    for epoch in range(400):
        clock[0] += 5
        before = clock[0]
        live.refresh()
        if clock[0] != before:
            moments.append(epoch)
    assert moments[0] == 9  # after 50 seconds: one second was the guess
    assert 0.015 < 2 * len(moments) / (clock[0] - 1000) <= 0.0205


def test_training_makes_the_page_anew_after_each_validation(tiny_shards, tmp_path, monkeypatch):
    seen = []

    def write(run, *, figures=True):
        seen.append((len(read_metrics(run)), figures))
        return run / "report.html"

    monkeypatch.setattr(report, "SHARE_OF_TIME", float("inf"))
    monkeypatch.setattr(report, "write_report", write)
    monkeypatch.setattr(training, "write_report", write)
    train(tiny_shards, tmp_path / "run", "--stage", "psnr")
    assert seen == [(1, False), (2, False), (3, False), (3, True)]


def test_a_page_that_cannot_be_written_is_one_warning(monkeypatch, tmp_path):
    told: list[str] = []
    started = time.monotonic()
    live = LiveReport(tmp_path, warn=told.append)
    monkeypatch.setattr(time, "monotonic", lambda: started + 1000)
    for _ in range(3):
        live.refresh()
    assert len(told) == 1
    assert "not a run folder" in told[0]
    assert "training continues" in told[0]
