"""C compiled where it is used, kept, and done without."""

from __future__ import annotations

import pytest
import torch

from trainer import native
from trainer.networks import planes
from trainer.speed import missing_kernels

SOURCE = native.Path(planes.__file__).with_name("tiles_3x3.c")
needs_kernels = pytest.mark.skipif(bool(missing_kernels()), reason=missing_kernels())


def test_a_machine_without_compiler_or_instructions_says_so(monkeypatch):
    monkeypatch.setenv("CC", "no-such-compiler")
    load = native.load.__wrapped__
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    with pytest.raises(native.NotHere, match=r"there is no C compiler; install gcc"):
        load(SOURCE)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True})
    with pytest.raises(native.NotHere, match="no AVX512-BF16"):
        load(SOURCE)


def test_a_compiler_that_fails_is_quoted(monkeypatch, tmp_path):
    broken = tmp_path / "broken.c"
    broken.write_text("int main( {")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(native.NotHere, match=r"cannot compile broken.c \(.+\)"):
        native.load.__wrapped__(broken)
    assert not list(tmp_path.rglob("*.so"))


@needs_kernels
def test_kernels_are_compiled_once_and_kept(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    native.load.__wrapped__(SOURCE)
    (kept,) = (tmp_path / "usrgan").iterdir()
    made = kept.stat().st_mtime_ns
    monkeypatch.setattr(native, "_compiled", None)
    assert native.load.__wrapped__(SOURCE).tiles_in
    assert kept.stat().st_mtime_ns == made


@needs_kernels
def test_kept_kernels_that_are_damaged_are_compiled_anew(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with monkeypatch.context() as once:  # what is loaded must not be written over
        once.setattr(native.ctypes, "CDLL", lambda path: native.Path(path).resolve(strict=True))
        kept = native.load.__wrapped__(SOURCE)
    whole = kept.stat().st_size
    kept.write_bytes(kept.read_bytes()[:100])
    assert native.load.__wrapped__(SOURCE).tiles_in
    assert kept.stat().st_size == whole


@needs_kernels
def test_an_account_without_a_home_compiles_for_itself(monkeypatch):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(native.Path, "home", homeless)
    assert native.load.__wrapped__(SOURCE).tiles_in


@needs_kernels
def test_a_cache_that_cannot_be_written_is_done_without(monkeypatch, tmp_path):
    (tmp_path / "usrgan").write_text("a file")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert native.load.__wrapped__(SOURCE).tiles_in


def test_a_changed_header_is_a_new_kernel(monkeypatch, tmp_path):
    """What is kept goes by the content of all that is compiled."""
    folder = tmp_path / "sources"
    folder.mkdir()
    (folder / "kernel.c").write_text('#include "value.h"\nint value(void) { return VALUE; }')
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for value in (1, 2):
        (folder / "value.h").write_text(f"#define VALUE {value}")
        assert native.load.__wrapped__(folder / "kernel.c").value() == value
