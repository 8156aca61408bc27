from __future__ import annotations

from pathlib import Path

import pytest

from shards.errors import ConfigError
from trainer.config import STAGES, Config, flat, load_config, presets, stages_to_toml

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.toml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
@pytest.mark.parametrize("stage", STAGES)
def test_every_preset_loads_and_survives_its_own_printout(path, stage, tmp_path):
    assert path.stem in presets()
    configs = {name: load_config(path.stem, stage=name) for name in STAGES}
    (tmp_path / "printed.toml").write_text(stages_to_toml(configs))
    assert load_config(str(tmp_path / "printed.toml"), stage=stage) == configs[stage]


def test_the_default_preset_carries_the_papers_numbers():
    for stage in STAGES:
        settings = flat(load_config("usrgan", stage=stage))
        papers = {
            "epochs": 200, "epoch_patches": 2368, "batch_size": 32, "optim.lr": 1e-4,
            "loss.pixel": 1.0, "loss.content": 1.0, "loss.adversarial": 0.005,
            "generator.blocks": 23, "generator.features": 64, "generator.growth": 32,
            "generator.upsampler": "pixelshuffle", "generator.norm": "batch",
            "content.features": "vgg19", "ema.halflife_patches": 0.0,
        }  # fmt: skip
        assert {name: settings[name] for name in papers} == papers
        assert load_config("usrgan", stage=stage).iterations_per_epoch == 74


@pytest.mark.parametrize(
    ("override", "name", "value"),
    [
        ("optim.lr=2e-4", "optim.lr", 2e-4),
        ("epochs=7", "epochs", 7),
        ("generator.norm=none", "generator.norm", "none"),
        ("generator.norm='none'", "generator.norm", "none"),
        ("data.augment=false", "data.augment", False),
        ("optim.lr=1", "optim.lr", 1.0),
    ],
)
def test_set_overrides_one_setting(override, name, value):
    settings = flat(load_config("usrgan", stage="psnr", overrides=[override]))
    assert settings[name] == value
    assert type(settings[name]) is type(value)


def test_a_stages_own_table_wins_and_set_wins_over_it(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("epochs = 3\n[gan]\nepochs = 5\n[gan.optim]\nlr = 1e-5\n")
    assert load_config(str(path), stage="psnr").epochs == 3
    assert load_config(str(path), stage="gan").epochs == 5
    assert load_config(str(path), stage="gan").optim.lr == 1e-5
    assert load_config(str(path), stage="gan", overrides=["epochs=9"]).epochs == 9


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "[loss]\nadverserial = 1.0",
            "unknown key loss.adverserial; did you mean loss.adversarial?",
        ),
        ("lr = 1.0", "unknown key lr; did you mean optim.lr?"),
        ("epochs = 'many'", "epochs: Expected `int`"),
        ("epochs = 0", "epochs = 0: must be more than 0"),
        ("[optim]\nlr = -1.0", "must not be negative"),
        ("[optim]\nlr = inf", "must be finite"),
        ("[optim]\nlr = nan", "must not be negative"),
        ("[optim]\nbeta1 = 1.0", "must be below 1"),
        ("batch_size = 64\nepoch_patches = 32", "an epoch needs one step"),
        ("[generator]\nnorm = 'layer'", "generator.norm"),
        ("optim = 3", "optim is a table"),
        ("[gan.loss]\npixle = 1.0", "did you mean loss.pixel?"),
        ("epochs = ", "is not valid TOML"),
    ],
)
@pytest.mark.parametrize("stage", STAGES)
def test_what_cannot_be_is_refused_in_the_users_words(tmp_path, text, words, stage):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(str(path), stage=stage)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("override", "words"),
    [("epochs", "write key=value"), ("epoch=3", "did you mean epochs?"), ("optim=3", "optim is a table")],
)  # fmt: skip
def test_a_wrong_set_is_named(override, words):
    with pytest.raises(ConfigError, match="--set") as caught:
        load_config("tiny", stage="psnr", overrides=[override])
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("source", "words"), [("tniy", "did you mean tiny"), ("no.toml", "no such file")]
)
def test_a_missing_preset_is_named(source, words):
    with pytest.raises(ConfigError, match=words):
        load_config(source, stage="psnr")


def test_progress_is_counted_in_whole_batches():
    config = Config(epochs=3, epoch_patches=100, batch_size=32)
    assert config.iterations_per_epoch == 3
    assert config.total_patches == 288
