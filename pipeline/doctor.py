"""`prep-shards --doctor`: whether this installation is complete and fast.

pillow-simd and Pillow are two distributions of the same package, `PIL`. Installing one overwrites files of the
other, and uninstalling one removes files of both.
"""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
import sys
from pathlib import Path
from typing import Literal

import msgspec

SETTINGS = " ".join(
    f'--config-settings="{library}=disable"'
    for library in ("jpeg", "zlib", "tiff", "freetype", "xcb")
)
_AVX2_INSTRUCTIONS = (b"\xc4\xe2\x7d", b"\xc5\xfd")
"""First bytes of 256-bit instructions (VEX.256.66, Intel SDM vol. 2A §2.3.5). A build with AVX2 has 40 and 205 of
them at -O2, 1027 and 868 at -O3; a build without has 0 and 10 by chance."""


class Check(msgspec.Struct, frozen=True):
    """One check: its subject, state, result, and the command that repairs it."""

    what: str
    state: Literal["good", "slow", "broken"]
    found: str
    mend: str = ""


def check_installation() -> list[Check]:
    """Run all checks, the most basic first."""
    return [
        _check_pil(),
        _check_single_pil(),
        _check_pil_simd(),
        _check_opencv(),
        _check_png_kernel(),
        _check_libraries(),
    ]


def _run_check(code: str) -> tuple[str, str]:
    """Run code in a new process, because a stale extension module can crash it.

    Returns its output and an empty string, or an empty string and the reason of the failure.
    """
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if run.returncode:
        return "", (run.stderr.strip().splitlines() or [f"exit {run.returncode}"])[-1]
    return run.stdout.strip(), ""


def _check_pil() -> Check:
    version, reason = _run_check(
        "import PIL; from PIL import Image; Image.new('RGB', (8, 8)).resize((2, 2), 3); print(PIL.__version__)"
    )
    if reason:
        return Check("PIL", "broken", f"does not work: {reason}", _reinstall_commands())
    flavour = "pillow-simd" if ".post" in version else "Pillow"
    return Check("PIL", "good", f"{flavour} {version}")


def _check_single_pil() -> Check:
    versions = _installed_versions("pillow", "pillow-simd")
    if len(versions) > 1:
        both = " and ".join(f"{name} {version}" for name, version in versions.items())
        return Check("PIL's owner", "broken", f"{both} share one folder", _reinstall_commands())
    return Check("PIL's owner", "good", ", ".join(versions) or "none")


def _check_pil_simd() -> Check:
    """Check that PIL uses AVX2; bicubic x1/4 is then 1.6 times as fast as with SSE4."""
    if not _has_avx2():
        return Check("AVX2", "good", "this processor has none")
    modules = [
        module
        for name in _installed_versions("pillow", "pillow-simd")
        for module in importlib.metadata.files(name) or []
        if module.name.startswith("_imaging.") and module.suffix in (".so", ".pyd")
    ]
    try:
        content = b"".join([Path(str(module.locate())).read_bytes() for module in modules][:1])
    except OSError as error:  # files are missing after one of two distributions was uninstalled
        return Check(
            "AVX2",
            "broken",
            f"{error.filename}: cannot be read ({error.strerror})",
            _reinstall_commands(),
        )
    if all(content.count(start) > 20 for start in _AVX2_INSTRUCTIONS):
        return Check("AVX2", "good", "PIL uses it")
    return Check(
        "AVX2", "slow", "this processor has AVX2, but PIL does not use it", _reinstall_commands()
    )


def _check_opencv() -> Check:
    versions = _installed_versions(
        "opencv-python", "opencv-python-headless", "opencv-contrib-python"
    )
    remove = f"pip uninstall -y {' '.join(versions)} && " if versions else ""
    mend = f"{remove}pip install opencv-python-headless"
    if len(versions) > 1:
        return Check("OpenCV", "broken", f"{' and '.join(versions)} share one folder", mend)
    _, reason = _run_check("import cv2; cv2.resize")
    if reason:
        return Check("OpenCV", "broken", f"does not work: {reason}", mend)
    return Check("OpenCV", "good", ", ".join(f"{n} {v}" for n, v in versions.items()) or "none")


def _check_png_kernel() -> Check:
    """Check the C kernel of the PNG decoder; without it PNG photos take twice as long to decode."""
    try:
        from shards.format.unfilter import missing_kernel_reason
    except ImportError as error:
        return Check(
            "NumPy", "broken", f"does not work: {error}", "pip install --force-reinstall numpy"
        )
    reason = missing_kernel_reason()
    if reason:
        return Check("PNG", "slow", reason, "install gcc 9 or newer, or name a C compiler in $CC")
    return Check("PNG", "good", "the C kernel is compiled")


def _check_libraries() -> Check:
    subject = "libraries that decide the bytes"
    trials = {"numpy": "import numpy", "simplejpeg": "import simplejpeg",
              "isal": "from isal import isal_zlib"}  # fmt: skip
    reasons = {name: reason for name, code in trials.items() if (reason := _run_check(code)[1])}
    if reasons:
        problem = "; ".join(f"{name} does not work: {reason}" for name, reason in reasons.items())
        return Check(
            subject, "broken", problem, f"pip install --force-reinstall {' '.join(reasons)}"
        )
    versions = _installed_versions(*trials)
    return Check(subject, "good", ", ".join(f"{n} {v}" for n, v in versions.items()))


def _installed_versions(*names: str) -> dict[str, str]:
    versions = {}
    for distribution in importlib.metadata.distributions():
        name = str(distribution.metadata["Name"]).lower().replace("_", "-")
        if name in names:
            versions[name] = distribution.version
    return dict(sorted(versions.items()))


def _has_avx2() -> bool:
    if platform.machine() != "x86_64" or not Path("/proc/cpuinfo").exists():
        return False
    return "avx2" in Path("/proc/cpuinfo").read_text().split()


def _reinstall_commands() -> str:
    remove = "pip uninstall -y pillow pillow-simd"
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return f"{remove} && pip install --force-reinstall pillow"
    compiler = 'CC="cc -mavx2" ' if _has_avx2() else ""
    return (
        f"{remove} && {compiler}pip install --no-cache-dir --force-reinstall {SETTINGS} pillow-simd"
    )
