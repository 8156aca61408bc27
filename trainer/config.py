"""The configuration: TOML into frozen structs, one per module, with "did you mean".

A file holds the settings of both stages; tables `[psnr]` and `[gan]` override them for one stage,
and `--set key=value` overrides everything. Presets lie in `configs/`.
"""

from __future__ import annotations

import difflib
import math
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

import msgspec

from shards import __version__
from shards.errors import ConfigError
from trainer.adversarial import AdversarialConfig
from trainer.content import ContentConfig
from trainer.data import DataConfig
from trainer.guard import GuardConfig
from trainer.losses import LossConfig
from trainer.models import SETTINGS, DiscriminatorConfig, GeneratorConfig
from trainer.networks.start import COLOURS
from trainer.optim import EmaConfig, OptimConfig
from trainer.speed import SpeedConfig
from trainer.telemetry import TelemetryConfig
from trainer.validate import ValidationConfig

Stage = Literal["psnr", "gan"]
STAGES: tuple[Stage, ...] = ("psnr", "gan")
PAPER = "usrgan"
Table = dict[str, Any]
_POSITIVE = (
    "epochs", "epoch_patches", "batch_size", "accumulate", "guard.patience", "generator.features", "generator.blocks",
    "generator.growth", "discriminator.features", "discriminator.dense", "optim.lr",
    "adversarial.r1_every",
)  # fmt: skip


class CheckpointConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How often `last` is saved (beside the end of a stage and every stop), and how many are kept."""

    every_patches: int = 23_680
    keep: int = 2


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One stage of a training run; the defaults are the paper's numbers.

    The default of a setting that is new is what was done before there was it: runs of that time go on by it.
    """

    seed: int = 0
    epochs: int = 200
    epoch_patches: int = 2368
    """Patches in an epoch: 74 iterations of 32 (§5.1)."""
    batch_size: int = 32
    """Patches of a step, over all ranks and micro-batches."""
    accumulate: int = 1
    """Micro-batches that each rank takes one after the other, where its memory holds no more."""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """Autocast to bf16 or to fp16 (CUDA alone, with a GradScaler), or fp32 throughout; "auto" is bf16 where
    the device computes in it. bf16 has float32's range, so no gradient is lost that a scaler would save."""
    generator: GeneratorConfig = GeneratorConfig()
    discriminator: DiscriminatorConfig = DiscriminatorConfig()
    loss: LossConfig = LossConfig()
    content: ContentConfig = ContentConfig()
    adversarial: AdversarialConfig = AdversarialConfig()
    optim: OptimConfig = OptimConfig()
    ema: EmaConfig = EmaConfig()
    data: DataConfig = DataConfig()
    validation: ValidationConfig = ValidationConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    speed: SpeedConfig = SpeedConfig()
    guard: GuardConfig = GuardConfig()
    telemetry: TelemetryConfig = TelemetryConfig()

    @property
    def iterations_per_epoch(self) -> int:
        """Steps in an epoch."""
        return max(1, self.epoch_patches // self.batch_size)

    @property
    def total_patches(self) -> int:
        """Patches that a stage sees."""
        return self.epochs * self.iterations_per_epoch * self.batch_size


def load_config(source: str, *, stage: Stage, overrides: Sequence[str] = ()) -> Config:
    """Resolve preset name or TOML file `source` for one stage, with `key=value` overrides.

    Raises:
        ConfigError: no such file, or a key or value that cannot be; names the nearest valid one.
    """
    path = find(source)
    table = _read(path)
    overlays: dict[str, Table] = {}
    for name in STAGES:
        overlay = table.pop(name, {})
        if not isinstance(overlay, dict):
            raise ConfigError(f"{path}: [{name}] is a table of settings for that stage")
        overlays[name] = overlay
    for checked in (table, *overlays.values()):  # a typo in the other stage's table counts, too
        _check_keys(checked, where=str(path), in_file=True)
    table = _merged(table, overlays[stage])
    config = _convert(table, where=str(path))
    blamed: dict[str, str] = {}
    for override in overrides:
        setting = _parse_override(override, stage=stage)
        table = _merged(table, setting)
        config = _convert(table, where=f"--set {override}")
        blamed |= dict.fromkeys((name for name, _ in leaves(setting)), f"--set {override}")
    for names, message in _faults(config):
        where = next((blamed[name] for name in names if name in blamed), str(path))
        raise ConfigError(f"{where}: {message}")
    return config


def find(source: str) -> Path:
    """The file of a preset name, or the path itself."""
    path = Path(source)
    if path.suffix == ".toml":
        if path.is_file():
            return path
        raise ConfigError(
            f"--config {source}: there is no such file; presets: {', '.join(presets())}"
        )
    preset = presets_folder() / f"{source}.toml"
    if preset.is_file():
        return preset
    near = difflib.get_close_matches(source, presets(), n=1)
    hint = (
        f"did you mean {near[0]}?"
        if near
        else f"there are {', '.join(presets())}, or name a .toml file"
    )
    raise ConfigError(f"--config {source}: there is no such preset; {hint}")


def presets() -> list[str]:
    """Names of the presets that come with usrgan."""
    return sorted(path.stem for path in presets_folder().glob("*.toml"))


def presets_folder() -> Path:
    """`configs/` of a checkout, or its copy inside the installed package."""
    packed = Path(__file__).parent / "presets"
    return packed if packed.is_dir() else Path(__file__).parent.parent / "configs"


def flat(config: Config) -> dict[str, Any]:
    """`{"generator.features": 64, ...}`, every setting by its dotted name."""
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in leaves(msgspec.to_builtins(config))
    }


def differences(ours: Config, theirs: Config) -> dict[str, tuple[Any, Any]]:
    """The settings in which two configurations differ: `{name: (ours, theirs)}`."""
    other = flat(theirs)
    return {
        name: (value, other[name]) for name, value in flat(ours).items() if value != other[name]
    }


def sees_micro_batches(config: Config) -> bool:
    """Whether `accumulate` changes what is computed: it does for what looks at a batch as a whole."""
    generator = config.generator
    batch_norm = "norm" in SETTINGS[generator.architecture] and generator.norm == "batch"
    return batch_norm or config.adversarial.kind == "relativistic"


def _read(path: Path) -> Table:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: is not valid TOML ({error}); correct that line") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None


def put(table: Table, name: str, value: Any) -> None:  # noqa: ANN401  any leaf of the configuration
    """Set a dotted name in nested tables."""
    *parents, last = name.split(".")
    for parent in parents:
        table = table.setdefault(parent, {})
    table[last] = value


def _parse_override(text: str, *, stage: Stage) -> Table:
    """The setting of one `--set`; none if its key names the other stage (`gan.optim.lr=2e-4`)."""
    key, equals, value = (part.strip() for part in text.partition("="))
    if not equals or not key or key in STAGES:
        raise ConfigError(f"--set {text}: write key=value, for example --set optim.lr=2e-4")
    try:
        parsed = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = value  # a bare word is a string
    wanted, _, rest = key.partition(".")
    table: Table = {}
    put(table, rest if wanted in STAGES else key, parsed)
    _check_keys(table, where=f"--set {text}")
    return {} if wanted in STAGES and wanted != stage else table


def _merged(base: Table, over: Table) -> Table:
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merged(merged[key], value) if both else value
    return merged


def _check_keys(table: Table, *, where: str, in_file: bool = False) -> None:
    known = {name for name, _ in leaves(msgspec.to_builtins(Config()))}
    tables = {name.split(".")[0] for name in known if "." in name}
    for name, value in leaves(table):
        if name in known:
            continue
        if name in tables:
            raise ConfigError(f"{where}: {name} is a table, not {value!r}; write {name}.KEY")
        alike = [key for key in sorted(known) if key.split(".")[-1] == name.split(".")[-1]]
        near = difflib.get_close_matches(name, alike or known, n=1) or alike
        hint = f"did you mean {near[0]}?" if near else "see --print-config for all keys"
        if in_file:
            hint += f" (this is usrgan {__version__}, the file may be of another version)"
        raise ConfigError(f"{where}: unknown key {name}; {hint}")


def _convert(table: Table, *, where: str) -> Config:
    try:
        return msgspec.convert(table, Config)
    except msgspec.ValidationError as error:
        message, _, place = str(error).partition(" - at `$.")
        name = place.rstrip("`")
        if message.startswith("Invalid enum value"):
            message += f"; choose one of {', '.join(_choices(name))}"
        raise ConfigError(f"{where}: {name or 'configuration'}: {message}") from None


def _choices(name: str) -> list[str]:
    """The words that a setting may be."""
    *tables, last = name.split(".")
    struct: Any = Config
    for each in tables:
        struct = get_type_hints(struct)[each]
    return [str(word) for word in get_args(get_type_hints(struct)[last])]


def _faults(config: Config) -> Iterator[tuple[tuple[str, ...], str]]:
    """What types cannot say: the settings concerned, and the matter in the user's words."""
    for name, value in flat(config).items():
        if isinstance(value, int | float) and not value >= 0:
            yield (name,), f"{name} = {value}: must not be negative"
        if name in _POSITIVE and not value > 0:
            yield (name,), f"{name} = {value}: must be more than 0"
        if value == math.inf:
            yield (name,), f"{name} = {value}: must be finite"
    if config.seed >= 2**63:
        yield ("seed",), f"seed = {config.seed}: must be below 2^63"
    features = config.generator.features
    least = COLOURS * (2 if config.generator.architecture == "srcnn" else 1)
    if features < least:
        yield (
            ("generator.features",),
            f"generator.features = {features}: must be at least {least}, one for each colour"
            + " in half as many" * (least > COLOURS),
        )
    if config.batch_size > config.epoch_patches:
        yield (
            ("batch_size", "epoch_patches"),
            f"batch_size {config.batch_size} is more than epoch_patches {config.epoch_patches};"
            " an epoch needs one step",
        )
    if config.batch_size % config.accumulate:
        yield (
            ("accumulate", "batch_size"),
            f"batch_size {config.batch_size} is no multiple of accumulate {config.accumulate};"
            " the micro-batches of a step are equally large",
        )
    if any(not 0 < part < 1 for part in config.optim.milestones):
        yield (
            ("optim.milestones",),
            (
                f"optim.milestones = {list(config.optim.milestones)}: must be parts of the stage, between 0 and 1"
            ),
        )
    if bool(config.optim.milestones) != (config.optim.schedule == "multistep"):
        yield (
            ("optim.milestones", "optim.schedule"),
            (
                f"optim.schedule = {config.optim.schedule}: optim.milestones belong to multistep, and it to them"
            ),
        )
    for name, beta in (("optim.beta1", config.optim.beta1), ("optim.beta2", config.optim.beta2)):
        if not beta < 1:
            yield (name,), f"{name} = {beta}: must be below 1"


def leaves(table: Table, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names and values of nested tables."""
    for key, value in table.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


assert get_args(Stage) == STAGES
