"""The documentation says what the code does."""

from __future__ import annotations

import ast
import hashlib
import json
import re
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from click.testing import CliRunner

from shards.format.manifest import Manifest, SampleInfo, dataset_digest, encode_info
from shards.version import __version__
from tests.docs.regenerate import (
    ARCHITECTURE_PAGE,
    COMMANDS,
    CONFIG_PAGE,
    FOLDER,
    architecture_page,
    config_page,
    help_text,
)
from trainer.config.load import list_presets, load_config
from trainer.models import build_generator

ROOT = Path(__file__).parents[2]
FORMAT = (ROOT / "docs/internals/shard-format.md").read_text()


def example(title: str) -> str:
    """The fenced block under `### Example: TITLE`."""
    found = re.search(rf"### Example: {title}\n.*?```\w*\n(.*?)```", FORMAT, re.DOTALL)
    assert found, title
    return found[1]


@pytest.mark.parametrize("name", COMMANDS)
def test_help_texts_are_the_committed_ones(name):
    path = FOLDER / f"{name.replace(' ', '-')}.txt"
    assert path.read_text() == help_text(name), "run: python -m tests.docs.regenerate"


def test_the_page_of_all_settings_is_the_committed_one():
    assert CONFIG_PAGE.read_text() == config_page(), "run: python -m tests.docs.regenerate"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_shows_an_example_of_itself(name):
    text = help_text(name)
    assert name in text.partition("Example:")[2]


@pytest.mark.parametrize("name", [name for name in COMMANDS if " " not in name])
def test_every_command_knows_its_version_and_h(name):
    shown = CliRunner().invoke(COMMANDS[name], ["--version"])
    assert (shown.exit_code, shown.stdout.strip()) == (0, f"{name}, version {__version__}")
    assert CliRunner().invoke(COMMANDS[name], ["-h"]).exit_code == 0


def test_commands_that_come_later_say_so():
    result = CliRunner().invoke(COMMANDS["export-sr"], ["anything", "--json"])
    assert result.exit_code == 2
    assert "comes with a later version" in result.stderr


def test_help_needs_no_torch():
    code = (
        "import sys; from click.testing import CliRunner; import trainer.cli as t, pipeline.cli as p, shards.cli as s\n"
        "for c in (t.train_main, t.eval_main, t.upscale_main, p.main, s.main):\n"
        "    assert CliRunner().invoke(c, ['--help']).exit_code == 0\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("package", ["shards", "pipeline"])
def test_help_of_the_data_commands_loads_nothing_heavy(package):
    code = (
        f"import sys; from click.testing import CliRunner; from {package}.cli import main\n"
        "assert CliRunner().invoke(main, ['--help']).exit_code == 0\n"
        "assert not {'numpy', 'cv2', 'fsspec', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_example_manifest_is_one():
    manifest = msgspec.json.decode(example("manifest.json"), type=Manifest)
    assert manifest.format == 1
    assert manifest.dataset_sha256 == dataset_digest(manifest.splits)
    assert set(json.loads(example("manifest.json"))) == set(Manifest.__struct_fields__)


def test_dataset_sha256_is_computed_as_documented():
    manifest = json.loads(example("manifest.json"))
    lines = ["usrgan shards format 1\n"]
    lines += [
        f"{split} {shard['name']} {shard['samples']} {shard['sha256']}\n"
        for split in sorted(manifest["splits"])
        for shard in manifest["splits"][split]["shards"]
    ]
    assert hashlib.sha256("".join(lines).encode()).hexdigest() == manifest["dataset_sha256"]


def test_the_example_json_of_a_sample_is_byte_for_byte_what_is_written():
    text = example("KEY.json").strip()
    assert encode_info(msgspec.json.decode(text, type=SampleInfo)).decode() == text


def test_the_documented_index_arrays_are_those_of_a_shard(tmp_path):
    from tests.shards.support import make_dataset

    folder = make_dataset(tmp_path / "shards")
    with np.load(folder / "index/train-000000.npz") as stored:
        documented = re.findall(
            r"^\| `(\w+)` \| `(\w+)` \| `\[([NSP ]*)\]` \|", FORMAT, re.MULTILINE
        )
        assert {name for name, _, _ in documented} == set(stored.files)
        for name, kind, shape in documented:
            assert stored[name].ndim == len(shape.split()), name
            assert stored[name].dtype == np.dtype(kind) or kind == "str", name
    listed = {line.split()[0] for line in example("files of a data set").splitlines()}
    written = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    written -= {"train-000001.tar", "train-000001.tar.idx", "index/train-000001.npz"}
    assert listed - {"rejects.jsonl"} == written


def test_the_table_of_systems_holds_their_presets_and_sizes():
    text = (ROOT / "docs/guide/training.md").read_text()
    rows = re.findall(r"^\| .*--config (\w+) --stage (\w+).*\| ([\d ]+) \|$", text, re.M)
    assert {preset for preset, _, _ in rows} == set(list_presets()) - {"best", "small", "tiny"}
    assert {stage for _, stage, _ in rows} == {"psnr", "gan", "both"}
    told = {preset: int(weights.replace(" ", "")) for preset, _, weights in rows}
    for preset, weights in told.items():
        with torch.device("meta"):
            generator = build_generator(load_config(preset, stage="gan").generator, scale=4)
        assert sum(each.numel() for each in generator.parameters()) == weights, preset
    assert re.search(r"^\| ResShift \| not built;.*0013-resshift", text, re.M)


@pytest.mark.parametrize(
    "path", sorted(ROOT.glob("*.md")) + sorted((ROOT / "docs").rglob("*.md")), ids=str
)
def test_links_between_documents_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)#:]+)\)", path.read_text()):
        assert (path.parent / target).exists(), target


def test_a_source_distribution_has_all_that_lies_beside_the_code():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    patterns = settings["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]
    for package in ("pipeline", "shards", "trainer"):
        for path in (ROOT / package).rglob("*.*"):
            name = f"/{path.relative_to(ROOT)}"
            if path.is_file() and path.suffix not in (".pyc", ".tar", ".json", ".npz", ".idx"):
                assert any(fnmatch(name, each.replace("**/", "*")) for each in patterns), name


PACKAGES = sorted(
    path.parent
    for package in ("pipeline", "shards", "trainer")
    for path in (ROOT / package).rglob("__init__.py")
)


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_package_says_what_each_of_its_files_is_for(package):
    docstring = ast.get_docstring(ast.parse((package / "__init__.py").read_text())) or ""
    for path in package.iterdir():
        if path.is_dir() and (path / "__init__.py").is_file():
            assert f"{path.name}/" in docstring, path
        elif path.suffix == ".py" and path.stem != "__init__":
            assert re.search(rf"\b{path.stem}\b", docstring), path
    assert len(docstring.splitlines()) <= 24


def test_the_architecture_page_has_the_docstring_of_every_package():
    text = ARCHITECTURE_PAGE.read_text()
    assert text == architecture_page(), "run: python -m tests.docs.regenerate"
    for package in PACKAGES:
        assert f"`{package.relative_to(ROOT).as_posix()}/`" in text
