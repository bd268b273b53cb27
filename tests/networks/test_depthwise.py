"""Depthwise convolutions train in float32 under bf16 autocast, and nothing else changes."""

from __future__ import annotations

import copy

import torch
from torch import nn

from pipeline.networks.depthwise import train_depthwise_in_float32


def small() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1))


def outputs(network: nn.Module, image: torch.Tensor) -> torch.Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return network(image)


def test_in_use_and_without_autocast_it_is_the_same_network() -> None:
    plain, suited = small(), small()
    train_depthwise_in_float32(suited)
    image = torch.randn(2, 8, 16, 16)
    assert suited.state_dict().keys() == plain.state_dict().keys()
    for mode in (True, False):
        assert torch.equal(plain.train(mode)(image), suited.train(mode)(image))
    assert torch.equal(outputs(plain.eval(), image), outputs(suited.eval(), image))


def test_in_training_it_is_nearer_to_float32_and_goes_on_in_bf16() -> None:
    plain, suited = small()[0], small()
    train_depthwise_in_float32(suited)
    image = torch.randn(2, 8, 16, 16)
    exact = plain(image)
    found = outputs(suited[0], image)
    assert found.dtype is torch.bfloat16 and torch.equal(found, exact.to(torch.bfloat16))
    assert (outputs(plain, image).float() - exact).abs().max() > (found.float() - exact).abs().max()


def test_a_copy_uses_its_own_weights() -> None:
    network = small()
    train_depthwise_in_float32(network)
    other = copy.deepcopy(network)
    with torch.no_grad():
        other[0].weight.zero_()
    image = torch.randn(1, 8, 9, 9)
    bias = other[0].bias.to(torch.bfloat16).view(1, 8, 1, 1).expand(1, 8, 9, 9)
    assert torch.equal(outputs(other[0].train(), image), bias)
    assert not torch.equal(outputs(network[0].train(), image), bias)


def test_gradients_reach_the_weights() -> None:
    network = small()
    train_depthwise_in_float32(network)
    outputs(network, torch.randn(2, 8, 16, 16)).float().square().mean().backward()
    assert all(
        parameter.grad is not None and parameter.grad.dtype is torch.float32 for parameter in network.parameters()
    )
