"""Configurations: presets load, mistakes are named, what is written reads back as it was."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import msgspec
import pytest

from shards.errors import ConfigError
from shards.read.dataset import open_dataset
from shards.version import __version__
from trainer.config.load import find_config, list_presets, load_config, presets_folder
from trainer.config.paper import describe_patches, list_deviations, list_patch_deviations
from trainer.config.schema import STAGES, Config
from trainer.config.settings import SETTINGS, differences, flatten, may_change_on_resume
from trainer.config.write import config_to_toml

FOLDER = Path(__file__).resolve().parents[3] / "configs"
PRESETS = sorted(path.stem for path in FOLDER.glob("*.toml"))


def write(folder: Path, text: str) -> str:
    path = folder / "mine.toml"
    path.write_text(text)
    return str(path)


def refusal(source: str, *overrides: str, stage="psnr") -> str:
    with pytest.raises(ConfigError) as refused:
        load_config(source, stage=stage, overrides=overrides)
    message = str(refused.value)
    assert "\n" not in message
    return message


# presets


def test_the_presets_are_those_of_the_checkout():
    named = {"usrgan", "esrgan", "realesrgan", "srresnet", "srcnn", "best", "small", "tiny"}
    assert named <= set(PRESETS)
    assert list_presets() == PRESETS
    assert presets_folder() == FOLDER


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_loads_by_name_and_by_path(preset, stage):
    config = load_config(preset, stage=stage)
    assert config == load_config(str(FOLDER / f"{preset}.toml"), stage=stage)
    assert config.total_patches > 0


@pytest.mark.parametrize("stage", STAGES)
def test_the_structs_defaults_are_the_papers_preset(stage):
    assert differences(load_config("usrgan", stage=stage), Config()) == {}


def test_usrgan_writes_every_setting_out():
    table = tomllib.loads((FOLDER / "usrgan.toml").read_text())
    written = {
        f"{name}.{key}" if isinstance(value, dict) else name
        for name, value in table.items()
        for key in (value if isinstance(value, dict) else [""])
    }
    assert written == flatten(Config()).keys()


# tables of one stage


def test_a_stages_table_overrides_the_shared_settings_for_that_stage_alone(tmp_path):
    source = write(
        tmp_path,
        "epochs = 7\n[optim]\nlr = 1e-3\nbeta1 = 0.5\n[gan]\nepochs = 3\n[gan.optim]\nlr = 2e-5\n",
    )
    psnr, gan = (load_config(source, stage=stage) for stage in STAGES)
    assert (psnr.epochs, psnr.optim.lr, psnr.optim.beta1) == (7, 1e-3, 0.5)
    assert (gan.epochs, gan.optim.lr, gan.optim.beta1) == (3, 2e-5, 0.5)


def test_set_overrides_the_stages_table_too(tmp_path):
    source = write(tmp_path, "[gan.optim]\nlr = 2e-5\nbeta1 = 0.3\n")
    config = load_config(source, stage="gan", overrides=["optim.lr=3e-4"])
    assert (config.optim.lr, config.optim.beta1) == (3e-4, 0.3)


def test_a_mistake_in_the_other_stages_table_is_found_now(tmp_path):
    source = write(tmp_path, "[gan.optim]\nlrate = 1e-3\n")
    assert "unknown key optim.lrate" in refusal(source, stage="psnr")


def test_a_stage_that_is_no_table_is_refused(tmp_path):
    assert "gan must be a table" in refusal(write(tmp_path, "gan = 3\n"))


# --set


@pytest.mark.parametrize(
    ("override", "name", "value"),
    [
        ("epochs=3", "epochs", 3),
        ("optim.lr=2e-4", "optim.lr", 2e-4),
        ("optim.lr = 1", "optim.lr", 1.0),
        ("data.augment=false", "data.augment", False),
        ("generator.norm=none", "generator.norm", "none"),
        ("generator.norm='none'", "generator.norm", "none"),
        ('generator.norm="none"', "generator.norm", "none"),
        ("content.layer=conv1_2", "content.layer", "conv1_2"),
        (" batch_size =16", "batch_size", 16),
        ("checkpoint.every_patches=1_000", "checkpoint.every_patches", 1000),
    ],
)
def test_set_reads_values_of_every_type(override, name, value):
    held = flatten(load_config("usrgan", stage="psnr", overrides=[override]))
    assert held[name] == value
    assert type(held[name]) is type(value)
    assert differences(
        load_config("usrgan", stage="psnr", overrides=[override]), Config()
    ).keys() == {name}


def test_a_set_for_one_stage_leaves_the_other_alone():
    overrides = ["optim.lr=1e-3", "gan.optim.lr=2e-4"]
    assert load_config("usrgan", stage="psnr", overrides=overrides).optim.lr == 1e-3
    assert load_config("usrgan", stage="gan", overrides=overrides).optim.lr == 2e-4
    for stage in STAGES:
        with pytest.raises(ConfigError, match=r"did you mean optim\.lr"):
            load_config("usrgan", stage=stage, overrides=["psnr.optim.lrr=1"])


def test_the_last_set_counts():
    config = load_config("usrgan", stage="psnr", overrides=["epochs=3", "seed=1", "epochs=4"])
    assert (config.epochs, config.seed) == (4, 1)


@pytest.mark.parametrize("override", ["epochs", "=3", "", " = 3"])
def test_a_set_without_key_or_value_is_refused(override):
    message = refusal("usrgan", override)
    assert message.startswith(f"--set {override}: ")
    assert "key=value" in message


# mistakes


@pytest.mark.parametrize(
    ("mistake", "nearest"),
    [
        ("generator.fetures=8", "generator.features"),
        ("batchsize=8", "batch_size"),
        ("lr=1e-3", "optim.lr"),
        ("loss.adverserial=1", "loss.adversarial"),
        ("optim.epochs=1", "epochs"),
        ("data.num_workers=1", "data.workers"),
    ],
)
def test_an_unknown_key_is_refused_and_the_nearest_one_named(mistake, nearest, tmp_path):
    name, value = mistake.split("=")
    hint = f"unknown key {name}; did you mean {nearest}?"
    assert refusal("usrgan", mistake) == f"--set {mistake}: {hint}"
    source = write(tmp_path, f"{name} = {value}\n")
    version = f"(this is usrgan {__version__}, the file may be of another version)"
    assert refusal(source) == f"{source}: {hint} {version}"


def test_an_unknown_key_like_no_other_points_at_the_list_of_keys(tmp_path):
    assert "--print-config" in refusal("usrgan", "xyzzy=1")
    source = write(tmp_path, "xyzzy = 1\n")
    assert f"see --print-config for all keys (this is usrgan {__version__}" in refusal(source)


@pytest.mark.parametrize("text", ["[optimm]\n", "[gan.optimm]\n", "[generator.norm]\n"])
def test_an_empty_table_that_is_no_table_is_refused(text, tmp_path):
    source = write(tmp_path, text)
    assert str(source) in refusal(source, stage="gan")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("generator=8", "generator is a table, not 8; write generator.KEY"),
        ("epochs=many", "epochs: Expected `int`, got `str`"),
        ("epochs=2.5", "epochs: Expected `int`"),
        ("epochs=true", "epochs: Expected `int`, got `bool`"),
        (
            "generator.norm=layer",
            "--set generator.norm=layer: generator.norm: Invalid enum value 'layer'; choose one of batch, none",
        ),
        ("precision=fp8", "precision: Invalid enum value 'fp8'"),
        (
            "adversarial.kind=wgan",
            "choose one of non-saturating, saturating, relativistic, hinge, least",
        ),
        ("adversarial.r1_every=0", "adversarial.r1_every = 0: must be more than 0"),
        (
            "optim.milestones=[0.5]",
            "optim.milestones: has no effect with optim.schedule = constant; use multistep",
        ),
        ("optim.schedule=multistep", "optim.schedule = multistep: needs optim.milestones"),
        ("optim.milestones=0.5", "optim.milestones: Expected `array`"),
        ("generator.architecture=swinir", "generator.architecture: Invalid"),
        ("epochs=2020-01-01", "epochs: Expected `int`"),
        ("epochs=[1]", "epochs: Expected `int`, got `array`"),
        ("epochs=0", "--set epochs=0: epochs = 0: must be more than 0"),
        ("psnr=3", "--set psnr=3: write key=value"),
        ("batch_size=0", "batch_size = 0: must be more than 0"),
        ("generator.blocks=0", "generator.blocks = 0: must be more than 0"),
        ("generator.growth=0", "generator.growth = 0: must be more than 0"),
        ("discriminator.dense=0", "discriminator.dense = 0: must be more than 0"),
        ("optim.lr=0", "optim.lr = 0: must be more than 0"),
        ("optim.lr=-1", "optim.lr = -1: must be more than 0"),
        ("seed=-1", "seed = -1: must not be negative"),
        ("optim.lr=nan", "optim.lr = nan"),
        ("loss.content=inf", "loss.content = inf: must be finite"),
        ("optim.beta2=1", "--set optim.beta2=1: optim.beta2 = 1: must be below 1"),
        (
            "seed=9223372036854775808",
            "seed = 9223372036854775808: must be at most 9223372036854775807",
        ),
        ("generator.features=2", "generator.features = 2: must be at least 3"),
        ("generator.features=1000000", "generator.features = 1000000: must be at most 4096"),
        ("generator.blocks=9223372036854775807", "must be at most 1024"),
        ("loss.pixel=nan", "loss.pixel = nan: must not be negative"),
        ("validation.psnr_drop=inf", "validation.psnr_drop = inf: must be finite"),
        ("discriminator.architecture=resnet", "choose one of vgg, unet, patch"),
        ("batch_size=4096", "batch_size = 4096: must not exceed epoch_patches = 2368"),
    ],
)
def test_a_value_that_cannot_be_is_refused_in_the_users_words(override, words):
    assert words in refusal("usrgan", override)


def test_milestones_are_parts_of_the_stage():
    overrides = ["optim.schedule=multistep", "optim.milestones=[0.5, 5e4]"]
    assert "must be fractions of the stage, between 0 and 1" in refusal("usrgan", *overrides)


def test_milestones_read_back_as_they_were(tmp_path):
    overrides = ["optim.schedule=multistep", "optim.milestones=[0.125, 0.5]"]
    config = load_config("usrgan", stage="gan", overrides=overrides)
    assert config.optim.milestones == (0.125, 0.5)
    assert flatten(config)["optim.milestones"] == [0.125, 0.5]
    assert load_config(write(tmp_path, config_to_toml({"gan": config})), stage="gan") == config
    both = config_to_toml({"psnr": load_config("usrgan", stage="psnr"), "gan": config})
    assert load_config(write(tmp_path, both), stage="gan") == config


def test_srcnn_needs_a_colour_each_in_half_as_many_features():
    overrides = ["generator.architecture=srcnn", "generator.features=5"]
    assert "must be at least 6 for srcnn" in refusal("usrgan", *overrides)


def test_settings_that_fit_only_together_are_checked_after_all_overrides():
    overrides = ["batch_size=4096", "epoch_patches=8192"]
    assert load_config("usrgan", stage="psnr", overrides=overrides).iterations_per_epoch == 2


def test_progress_is_counted_in_whole_batches():
    config = Config(epochs=3, epoch_patches=100, batch_size=32)
    assert config.iterations_per_epoch == 3
    assert config.total_patches == 288


def test_a_missing_preset_names_the_nearest():
    assert "did you mean tiny?" in refusal("tinny")
    assert "usrgan" in refusal("zzz")
    assert "no such file" in refusal("nowhere/mine.toml")


def test_a_file_that_is_no_toml_is_refused_by_line(tmp_path):
    message = refusal(write(tmp_path, "epochs = 1\nseed = = 2\n"))
    assert "not valid TOML" in message
    assert "line 2" in message
    path = tmp_path / "latin.toml"
    path.write_bytes(b"# \xe9\n")
    assert "not valid TOML" in refusal(str(path))


def test_a_byte_order_mark_is_no_part_of_a_file(tmp_path):
    path = tmp_path / "windows.toml"
    path.write_bytes(b"\xef\xbb\xbfepochs = 5\r\n[optim]\r\nlr = 1e-3\r\n")
    config = load_config(str(path), stage="psnr")
    assert (config.epochs, config.optim.lr) == (5, 1e-3)


def test_a_path_is_taken_as_it_is(tmp_path):
    path = tmp_path / "tiny.toml"
    path.write_text("epochs = 5\n")
    assert find_config(str(path)) == path
    assert load_config(str(path), stage="psnr") == msgspec.structs.replace(Config(), epochs=5)


# policies


def test_every_setting_has_a_description_and_a_default_within_its_bounds():
    assert SETTINGS.keys() == flatten(Config()).keys()
    for setting in SETTINGS.values():
        assert (setting.meta.description or "").endswith("."), setting.name
    msgspec.convert(msgspec.to_builtins(Config()), Config)


def test_a_resumed_run_may_change_what_changes_no_weight():
    config = load_config("usrgan", stage="gan")
    allowed = {name for name in SETTINGS if may_change_on_resume(name, config)}
    tables = {name.split(".")[0] for name in allowed if "." in name}
    assert tables == {"data", "validation", "checkpoint", "speed", "guard", "telemetry"}
    assert "data.augment" not in allowed
    assert {"epochs", "data.workers", "speed.graph"} <= allowed
    assert not {"accumulate", "seed", "batch_size", "optim.lr", "precision"} & allowed
    cosine = load_config("usrgan", stage="gan", overrides=["optim.schedule=cosine"])
    assert not may_change_on_resume("epochs", cosine)
    plain = load_config("usrgan", stage="gan", overrides=["generator.norm=none"])
    assert may_change_on_resume("accumulate", plain)


def test_ranks_may_differ_in_threads_caches_and_acceleration_alone():
    own = {name for name, setting in SETTINGS.items() if setting.policy.per_rank}
    assert own == {name for name in SETTINGS if name.startswith(("speed.", "data."))} - {
        "data.augment"
    }


def test_the_configuration_needs_no_torch():
    modules = "trainer, trainer.config.load, trainer.config.write, trainer.config.paper"
    code = f"import sys, {modules}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


# what is written


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("preset", PRESETS)
def test_the_resolved_configuration_reads_back_as_it_was(preset, stage, tmp_path):
    config = load_config(
        preset, stage=stage, overrides=["optim.lr=1.5e-7", "data.augment=false", "loss.pixel=1e22"]
    )
    assert load_config(write(tmp_path, config_to_toml({stage: config})), stage=stage) == config


@pytest.mark.parametrize("preset", PRESETS)
def test_both_stages_in_one_file_read_back_as_they_were(preset, tmp_path):
    configs = {stage: load_config(preset, stage=stage) for stage in STAGES}
    source = write(tmp_path, config_to_toml(configs))
    assert {stage: load_config(source, stage=stage) for stage in STAGES} == configs


def test_one_file_holds_each_setting_once_unless_the_stages_differ():
    configs = {stage: load_config("tiny", stage=stage) for stage in STAGES}
    text = config_to_toml(configs)
    assert text.splitlines()[0] == f"# usrgan {__version__}"
    table = tomllib.loads(text)
    psnr, gan = table.pop("psnr"), table.pop("gan")
    apart = differences(configs["psnr"], configs["gan"])
    assert psnr.keys() == gan.keys() == {name.split(".")[0] for name in apart}
    assert gan["epochs"] == configs["gan"].epochs
    assert "epochs" not in table
    assert table["batch_size"] == configs["gan"].batch_size


@pytest.mark.parametrize(
    "text", ['a "b" \\c', "a\nb", "tab\tand\x00\x1f\x7f", "Größe µ", "'''", "line\r\n# no comment"]
)
def test_any_text_reads_back(text, tmp_path):
    odd = msgspec.structs.replace(
        Config(), data=msgspec.structs.replace(Config().data, cache_dir=text)
    )
    assert tomllib.loads(config_to_toml({"psnr": odd}))["data"]["cache_dir"] == text
    assert load_config(write(tmp_path, config_to_toml({"psnr": odd})), stage="psnr") == odd


def test_only_what_a_stage_trains_with_deviates_from_the_paper():
    ours, papers = (load_config(name, stage="psnr") for name in ("best", "usrgan"))
    ours = msgspec.structs.replace(ours, seed=3)
    apart = differences(ours, papers).keys()
    assert {"seed", "discriminator.architecture", "content.layer", "loss.adversarial"} <= apart
    assert list_deviations(ours, papers, stage="gan").keys() == apart - {"seed"} | {"data.augment"}
    left = {"generator.norm", "generator.upsampler", "epoch_patches", "ema.halflife_patches"}
    psnr = list_deviations(ours, papers, stage="psnr").keys()
    assert left <= psnr
    assert not any(
        name.startswith(("discriminator", "content", "loss", "adversarial")) for name in psnr
    )


@pytest.mark.parametrize("stage", STAGES)
def test_the_papers_preset_deviates_in_what_it_cannot_say(stage):
    papers = load_config("usrgan", stage=stage)
    told = {"data.augment": ("all eight flips and turns", "random crops, horizontal flips")}
    assert list_deviations(papers, papers, stage=stage) == told


def test_nothing_is_called_the_papers_that_it_does_not_say():
    papers = load_config("usrgan", stage="gan")

    def told(*overrides):
        ours = load_config("usrgan", stage="gan", overrides=overrides)
        return list_deviations(ours, papers, stage="gan") | {"data.augment": None}

    assert told("precision=bf16") == {"data.augment": None}
    assert told("precision=fp32")["precision"] == ("fp32", "bf16")
    found = told("discriminator.dense=9", "content.layer=conv2_2", "optim.lr=1e-3")
    assert found["discriminator.dense"] == (9, "does not say; usrgan.toml: 100")
    assert found["content.layer"] == ("conv2_2", "a high-level layer; usrgan.toml: conv5_4")
    assert found["optim.lr"] == (1e-3, 1e-4)


def test_patches_of_another_kind_deviate_from_the_paper(tiny_shards):
    manifest = open_dataset(tiny_shards).manifest
    like_papers = msgspec.structs.replace(manifest, hr_size=128, crop_size=0, scale=4)
    assert list_patch_deviations(describe_patches(like_papers)) == {}
    others = msgspec.structs.replace(
        manifest, scale=2, hr_size=160, crop_size=96, options={"degrade": "realesrgan"}
    )
    assert list_patch_deviations(describe_patches(others)) == {
        "prep-shards --scale": (2, 4),
        "prep-shards --hr-size": (96, 128),
        "prep-shards --degrade": ("realesrgan", "bicubic"),
    }


def test_how_a_step_is_made_is_no_deviation():
    papers = load_config("usrgan", stage="gan")
    overrides = ["speed.graph=step", "speed.dense=plain", "data.workers=7"]
    ours = load_config("usrgan", stage="gan", overrides=overrides)
    assert list_deviations(ours, papers, stage="gan").keys() == {"data.augment"}


@pytest.mark.parametrize(
    ("overrides", "seen"),
    [
        (["generator.norm=batch"], True),
        (["generator.norm=none"], False),
        (["generator.norm=none", "adversarial.kind=relativistic"], True),
        (["generator.architecture=srcnn"], False),
        (["generator.architecture=srresnet"], True),
    ],
)
def test_micro_batches_deviate_where_something_looks_at_a_batch_as_a_whole(overrides, seen):
    papers = load_config("usrgan", stage="gan")
    ours = load_config("usrgan", stage="gan", overrides=[*overrides, "accumulate=4"])
    assert ("accumulate" in list_deviations(ours, papers, stage="gan")) is seen


def test_differences_name_ours_then_theirs():
    ours = load_config("usrgan", stage="psnr", overrides=["optim.lr=1e-3"])
    assert differences(ours, Config()) == {"optim.lr": (1e-3, 1e-4)}
