"""Latencies of networks before any training, as a search takes them."""

import logging
from dataclasses import replace

import pytest
import torch
from forks import narrow_references, shorten_quick

from cifar_lightning.benchmark import candidates
from cifar_lightning.benchmark.candidates import BenchmarkSpec, of_model, of_network
from cifar_lightning.config import protocols
from cifar_lightning.errors import UserError
from cifar_lightning.runs.benchmark import BenchmarkRecord
from cifar_lightning.sweeps import untrained
from cifar_lightning.variants import registry
from cifar_lightning.variants.context import Unsupported

CPU = torch.device("cpu")
FUSED = BenchmarkSpec(["fused"], [1], untrained.PROTOCOL)


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """Take few rounds, of narrow references."""
    monkeypatch.setattr(protocols, "PROTOCOLS", dict(protocols.PROTOCOLS))
    monkeypatch.setattr(candidates, "references", candidates.references)
    shorten_quick(protocols)
    narrow_references(candidates)
    for module in (untrained.measure.__globals__, candidates.__dict__):
        monkeypatch.setitem(module, "PROTOCOLS", protocols.PROTOCOLS)


def network(channels, label="a network"):
    model = of_network("cifarnet", "fused", 1).candidate.model
    return of_model(label, "cifarnet", model | {"channels": channels}, "fused", 1)


def test_each_network_is_timed_once(tmp_path, monkeypatch):
    """Two trials may have drawn networks that execute alike."""
    sources = {3: network([8, 8]), 5: network([64, 128]), 8: network([8, 8], "another name")}
    found = untrained.time_untrained(sources, FUSED, CPU, tmp_path)
    assert found[3] == found[8]
    assert found[3].mean_ms < found[5].mean_ms
    assert found[3].relative < found[5].relative
    assert all(0 < one.floor_ms < one.mean_ms for one in found.values())
    (path,) = (tmp_path / "benchmarks").glob("*.json")
    record = BenchmarkRecord.read(path)
    assert [one.label for one in record.candidates if one.role == "candidate"] == [
        "resnet8", "a network", "a network",
    ]  # fmt: skip

    monkeypatch.setattr(untrained, "measure", None)  # nothing is left to measure
    assert untrained.time_untrained(sources, FUSED, CPU, tmp_path) == found


def test_what_can_not_be_timed_is_left_out(tmp_path, monkeypatch, caplog):
    """One network's failure costs the others nothing."""
    real = registry.PARTS["fused"]

    def fails(variant):
        if any(one.out_channels == 40 for one in variant.network.modules() if conv(one)):
            raise Unsupported("40 channels are too many")
        real[1](variant)

    def conv(module):
        return isinstance(module, torch.nn.Conv2d)

    monkeypatch.setitem(registry.PARTS, "fused", (real[0], fails))
    sources = {0: network([8, 8]), 1: network([40, 40], "the wide one")}
    with caplog.at_level(logging.WARNING):
        found = untrained.time_untrained(sources, FUSED, CPU, tmp_path)
    assert [*found] == [0]
    assert "the wide one: 40 channels are too many" in caplog.text


def test_a_variant_that_resnet8_can_not_be_had_in_ends_it(tmp_path, monkeypatch):
    def unsupported(_):
        raise Unsupported("no such engine here")

    kind, _ = registry.PARTS["fused"]
    monkeypatch.setitem(registry.PARTS, "fused", (kind, unsupported))
    with pytest.raises(UserError, match=r"^variant=fused: no such engine here$"):
        untrained.time_untrained({0: network([8, 8])}, replace(FUSED), CPU, tmp_path)
