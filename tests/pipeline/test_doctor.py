from __future__ import annotations

import json
import subprocess
import sys

import pytest
from click.testing import CliRunner

from pipeline import doctor
from pipeline.cli import main
from pipeline.doctor import Check, check_installation


def states(checks: list[Check]) -> dict[str, str]:
    return {check.what: check.state for check in checks}


def test_this_installation_is_complete():
    assert "broken" not in states(check_installation()).values()
    result = CliRunner().invoke(main, ["--doctor", "--json"])
    assert result.exit_code == 0
    assert json.loads(result.stdout)[0]["what"] == "PIL"


def test_two_owners_of_pil_are_broken_and_the_fix_is_printed(monkeypatch):
    both = {"pillow": "12.1.1", "pillow-simd": "12.1.1.post0"}
    monkeypatch.setattr(
        doctor, "_installed_versions", lambda *names: both if "pillow" in names else {}
    )
    monkeypatch.setattr(doctor, "_check_pil_simd", lambda: Check("AVX2", "good", ""))
    result = CliRunner().invoke(main, ["--doctor"])
    assert result.exit_code == 1
    assert "pillow 12.1.1 and pillow-simd 12.1.1.post0 share one folder" in result.stdout
    assert "pip uninstall -y pillow pillow-simd" in result.stdout
    assert "broken: PIL's owner; run the commands above" in result.stderr.splitlines()[-1]


def test_two_opencvs_are_broken(monkeypatch):
    both = {"opencv-python": "5.0", "opencv-python-headless": "5.0"}
    monkeypatch.setattr(doctor, "_installed_versions", lambda *names: both)
    assert doctor._check_opencv().state == "broken"


def test_a_machine_without_a_compiler_is_slow_with_png(monkeypatch):
    monkeypatch.setattr(
        "shards.format.unfilter.missing_kernel_reason", lambda: "there is no C compiler"
    )
    result = CliRunner().invoke(main, ["--doctor"])
    assert result.exit_code == 0
    assert "slow    PNG: there is no C compiler\n        install gcc 9" in result.stdout


@pytest.mark.parametrize(
    ("code", "state"),
    [(b"\xc4\xe2\x7d" * 99 + b"\xc5\xfd" * 99, "good"), (b"\xc5\xfd" * 9, "slow")],
)
def test_machine_code_shows_whether_avx2_is_used(monkeypatch, tmp_path, code, state):
    class Module:
        name, suffix = "_imaging.so", ".so"

        def locate(self) -> str:
            return str(tmp_path / "_imaging.so")

    (tmp_path / "_imaging.so").write_bytes(code)
    monkeypatch.setattr(doctor, "_has_avx2", lambda: True)
    monkeypatch.setattr(doctor, "_installed_versions", lambda *names: {"pillow-simd": "12"})
    monkeypatch.setattr(doctor.importlib.metadata, "files", lambda name: [Module()])
    check = doctor._check_pil_simd()
    assert check.state == state
    assert ("-mavx2" in check.mend) == (state == "slow")


def test_a_module_removed_with_the_other_pil_is_broken(monkeypatch, tmp_path):
    class Module:
        name, suffix = "_imaging.so", ".so"

        def locate(self) -> str:
            return str(tmp_path / "_imaging.so")

    monkeypatch.setattr(doctor, "_has_avx2", lambda: True)
    monkeypatch.setattr(doctor, "_installed_versions", lambda *names: {"pillow-simd": "12"})
    monkeypatch.setattr(doctor.importlib.metadata, "files", lambda name: [Module()])
    check = doctor._check_pil_simd()
    assert check.state == "broken"
    assert f"{tmp_path}/_imaging.so: cannot be read (No such file" in check.found
    assert "pip uninstall -y pillow pillow-simd" in check.mend


@pytest.mark.parametrize(
    ("module", "problem", "mend"),
    [
        ("cv2", "OpenCV: does not work: ImportError: libGL.so.1", "pip install opencv-python-"),
        ("simplejpeg", "simplejpeg does not work: Imp", "pip install --force-reinstall simplejpeg"),
        ("isal", "isal does not work: ImportError", "pip install --force-reinstall isal"),
    ],
)
def test_libraries_that_cannot_be_imported_are_broken(monkeypatch, tmp_path, module, problem, mend):
    (tmp_path / f"{module}.py").write_text("raise ImportError('libGL.so.1: cannot open')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    result = CliRunner().invoke(main, ["--doctor"])
    assert result.exit_code == 1
    assert problem in result.stdout
    assert mend in result.stdout
    assert "; run the commands above" in result.stderr


def test_a_processor_without_avx2_is_good(monkeypatch):
    monkeypatch.setattr(doctor, "_has_avx2", lambda: False)
    assert doctor._check_pil_simd().state == "good"


def test_a_pil_that_cannot_be_imported_is_broken(monkeypatch, tmp_path):
    (tmp_path / "PIL").mkdir()
    (tmp_path / "PIL/__init__.py").write_text("raise ImportError('built for another version')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    command = [sys.executable, "-c", "from pipeline.cli import main; main()", "--doctor"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert "broken  PIL: does not work: ImportError: built for another version" in run.stdout
    assert run.stderr.strip().endswith("PIL; run the commands above")
