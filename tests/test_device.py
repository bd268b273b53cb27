"""What auto comes to: the precision that is faster here."""

from __future__ import annotations

import pytest
import torch

from pipeline import device
from pipeline.config import load_config


@pytest.mark.parametrize(
    ("features", "precision"),
    [
        ({"cpu_name": "AMD EPYC 9575F", "avx512_bf16": True}, "bf16"),
        ({"cpu_name": "Intel Xeon", "avx512_bf16": True, "amx_bf16": True}, "bf16"),
        # Half as fast as float32 there: a processor with AMX in a machine that is not given it.
        ({"cpu_name": "Intel Xeon", "avx512_bf16": True, "amx_bf16": False}, "fp32"),
        ({"cpu_name": "AMD EPYC 7763", "avx512_bf16": False}, "fp32"),
        ({"cpu_name": "Neoverse V1", "bf16": True}, "bf16"),
        ({}, "fp32"),
    ],
)
def test_bf16_is_taken_where_a_processor_gains_by_it(
    monkeypatch: pytest.MonkeyPatch, features: dict[str, object], precision: str
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: features)
    asked = load_config(None, ["compute.device=cpu"]).compute
    assert device.freeze(asked).precision == precision
    assert device.freeze(asked.model_copy(update={"precision": "bf16"})).precision == "bf16"
