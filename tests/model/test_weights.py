"""Weights survive the way through int8 within a known distance."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from weights import SMALL, load_int8, pack, save_int8, unpack

if TYPE_CHECKING:
    from pathlib import Path


def matrix() -> torch.Tensor:
    """Rows of very different size, one of zeros among them."""
    rows = (
        torch.randn(65, 128, generator=torch.Generator().manual_seed(0)) * torch.logspace(-6, 3, 65)[:, None]
    )
    rows[7] = 0
    return rows


def test_every_element_comes_back_within_half_a_step_of_its_row(tmp_path: Path) -> None:
    before = matrix()
    save_int8({"dense.weight": before}, tmp_path / "w.safetensors")
    after = load_int8(tmp_path / "w.safetensors")["dense.weight"]
    half_a_step = before.abs().amax(1, keepdim=True) / 254
    assert after.dtype == torch.float32
    assert bool(((after - before).abs() <= half_a_step * 1.001).all())


def test_a_row_of_zeros_stays_zero() -> None:
    assert not unpack(pack({"w": matrix()}))["w"][7].any()


def test_vectors_and_small_matrices_are_not_touched() -> None:
    state = {"bias": torch.randn(SMALL * 2), "head.weight": torch.randn(3, SMALL // 4)}
    after = unpack(pack(state))
    assert after.keys() == state.keys()
    assert all(torch.equal(after[name], state[name]) for name in state)


def test_the_file_is_about_a_quarter_as_big(tmp_path: Path) -> None:
    before = torch.randn(512, 384)
    save_int8({"w": before}, tmp_path / "w.safetensors")
    assert (tmp_path / "w.safetensors").stat().st_size < 0.26 * before.numel() * 4


def test_half_precision_checkpoints_are_read_as_float32() -> None:
    assert unpack({"w": torch.ones(2, 2, dtype=torch.bfloat16)})["w"].dtype == torch.float32
