"""C kernels are compiled, cached, and optional."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest

from shards.format import unfilter
from shards.io import cache_dir, compile_c

load = compile_c._load_cached.__wrapped__
SOURCE = Path(unfilter.__file__).with_suffix(".c")


def has_compiler() -> bool:
    try:
        return bool(compile_c.load(SOURCE))
    except compile_c.KernelUnavailable:
        return False


needs_compiler = pytest.mark.skipif(not has_compiler(), reason="no C compiler")


def test_a_missing_compiler_is_reported(monkeypatch):
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(compile_c.KernelUnavailable, match=r"no C compiler found; install gcc"):
        load(SOURCE)


@needs_compiler
def test_a_compiler_error_is_quoted(monkeypatch, tmp_path):
    broken = tmp_path / "broken.c"
    broken.write_text("int main( {")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(compile_c.KernelUnavailable, match=r"cannot compile broken.c \(.+\)"):
        load(broken)
    assert not list(tmp_path.rglob("*.so"))


@needs_compiler
def test_cc_may_contain_options(monkeypatch, tmp_path):
    (tmp_path / "kernel.c").write_text("int value(void) { return VALUE; }")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CC", "cc -DVALUE=7")
    assert load(tmp_path / "kernel.c").value() == 7


@needs_compiler
def test_kernels_are_compiled_once_and_cached(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    load(SOURCE)
    (cached,) = (tmp_path / "usrgan").iterdir()
    made = cached.stat().st_mtime_ns
    monkeypatch.setattr(compile_c, "_compile", None)
    assert load(SOURCE).unfilter
    assert cached.stat().st_mtime_ns == made


@needs_compiler
@pytest.mark.parametrize(
    "damage",
    [lambda so: so[:100], lambda so: so[:5000], lambda so: so[:1000] + bytes(len(so) - 1000)],
)
def test_damaged_cached_kernels_are_compiled_again(monkeypatch, tmp_path, damage):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with monkeypatch.context() as once:  # do not overwrite a loaded library
        once.setattr(ctypes, "CDLL", lambda path: Path(path).resolve(strict=True))
        cached = load(SOURCE)
    whole = cached.read_bytes()
    cached.write_bytes(damage(whole))
    assert load(SOURCE).unfilter
    assert cached.read_bytes() == whole


def compiler(folder: Path, script: str) -> str:
    path = folder / "compiler"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("printf 'caf\\351: fatal error: x\\n  ^~~\\n' >&2; exit 1", r"fatal error: x\)"),
        ("exit 0", "cannot be compiled and loaded"),
        ("sleep 9", "needs more than 0.3 s for unfilter.c"),
        ("cat >/dev/null; echo nothing >&2; exit 3", r"\(nothing\)"),
    ],
    ids=["words of another alphabet", "makes nothing", "does not end", "reads its input"],
)
def test_every_compiler_failure_is_reported(monkeypatch, tmp_path, script, message):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CC", compiler(tmp_path, script))
    monkeypatch.setattr(compile_c, "_TIMEOUT_SECONDS", 0.3)
    with pytest.raises(compile_c.KernelUnavailable, match=message):
        load(SOURCE)


def test_a_missing_source_and_an_open_quote_are_reported(monkeypatch, tmp_path):
    with pytest.raises(compile_c.KernelUnavailable, match="cannot be compiled and loaded"):
        load(tmp_path / "none.c")
    monkeypatch.setenv("CC", "gcc '")
    with pytest.raises(compile_c.KernelUnavailable, match=r"\$CC: is not a valid command"):
        load(SOURCE)


@needs_compiler
def test_a_compiler_of_another_language_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CC", "gcc -fvisibility=hidden")
    monkeypatch.setattr(compile_c, "load", load)
    assert unfilter._load_kernel.__wrapped__() == (None, "$CC does not name a C compiler")


def test_a_relative_cache_folder_is_ignored(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "here")
    assert cache_dir.user_cache_path("x").is_absolute()


@needs_compiler
def test_an_account_without_a_home_compiles_without_a_cache(monkeypatch):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    assert load(SOURCE).unfilter


@needs_compiler
def test_an_unwritable_cache_is_skipped(monkeypatch, tmp_path):
    (tmp_path / "usrgan").write_text("a file")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert load(SOURCE).unfilter


@needs_compiler
def test_a_cache_without_execute_permission_is_skipped(monkeypatch, tmp_path):
    """Simulate a `noexec` file system, in the first run and with a cached library."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    real = ctypes.CDLL

    def refuse(path: str) -> ctypes.CDLL:
        if path.startswith(str(tmp_path)):
            raise OSError("failed to map segment from shared object")
        return real(path)

    monkeypatch.setattr(ctypes, "CDLL", refuse)
    for _ in range(2):
        assert load(SOURCE).unfilter
    assert len(list((tmp_path / "usrgan").iterdir())) == 1


@needs_compiler
def test_a_changed_header_or_flag_is_a_new_kernel(monkeypatch, tmp_path):
    """The cache key covers all sources and the compiler options."""
    folder = tmp_path / "sources"
    folder.mkdir()
    (folder / "kernel.c").write_text('#include "value.h"\nint value(void) { return VALUE + MORE; }')
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for value, more in ((1, 0), (2, 0), (2, 5)):
        (folder / "value.h").write_text(f"#define VALUE {value}")
        assert load(folder / "kernel.c", f"-DMORE={more}").value() == value + more
