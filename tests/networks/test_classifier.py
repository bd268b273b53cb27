"""Classifiers: every family of networks gives its encoder, for images of any size."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pipeline.config import NetworkSettings
from pipeline.networks import build_network, summary
from pipeline.networks.classifier import Classifier, build_classifier
from pipeline.networks.named import IMAGENET_DEVIATION, IMAGENET_MEAN

FAMILIES = [
    NetworkSettings(name="unet", width=4, depth=2),
    NetworkSettings(name="unet", width=4, depth=1, padded=False),
    NetworkSettings(name="autoencoder:convolutional", width=4, depth=2, code=5),
    NetworkSettings(name="autoencoder:variational", width=4, depth=2, code=5),
    NetworkSettings(name="autoencoder:linear", depth=2, code=5),
    NetworkSettings(name="smp:Unet", arguments={"encoder_name": "resnet18"}),
]


def named(settings: NetworkSettings) -> str:
    return f"{settings.name}-{settings.arguments.get('encoder_name', settings.padded)}"


@pytest.mark.parametrize("settings", FAMILIES, ids=named)
def test_images_of_any_size_get_logits_and_the_weights_come_back(settings: NetworkSettings) -> None:
    torch.manual_seed(0)
    network = build_classifier(settings, 3, 4)
    images = [torch.rand(2, 3, *size) for size in ((50, 50), (33, 47), (64, 130))]
    for image in images:
        assert network(image).shape == (2, 4)
    network(images[0]).sum().backward()
    assert all(parameter.grad is not None for parameter in network.head.parameters())
    assert any(parameter.grad is not None and parameter.grad.any() for parameter in network.encoder.parameters())
    network.eval()
    again = build_classifier(settings, 3, 4, pretrained=False).eval()
    again.load_state_dict(network.state_dict())
    torch.testing.assert_close(again(images[1]), network(images[1]))


def test_an_encoder_with_weights_gets_the_colours_that_they_expect(tmp_path: Path) -> None:
    import segmentation_models_pytorch as smp

    trained = smp.encoders.get_encoder("resnet18", weights=None).eval()
    torch.save(trained.state_dict(), tmp_path / "weights.pth")
    arguments = {"encoder_name": "resnet18", "encoder_weights": str(tmp_path / "weights.pth")}
    network = build_classifier(NetworkSettings(name="smp:Unet", arguments=arguments), 3, 2).eval()
    image = torch.rand(1, 3, 64, 96)
    mean, deviation = (torch.tensor(colours).view(1, 3, 1, 1) for colours in (IMAGENET_MEAN, IMAGENET_DEVIATION))
    torch.testing.assert_close(network.encoder(image), trained((image - mean) / deviation)[-1])


def test_the_encoder_is_that_of_the_whole_network() -> None:
    settings = NetworkSettings(name="unet", width=4, depth=2)
    torch.manual_seed(3)
    whole = build_network(settings, 3, 2).eval()
    image = torch.rand(1, 3, 64, 64)
    kept: list[torch.Tensor] = []
    whole.get_submodule("bottleneck").register_forward_hook(lambda module, given, made: kept.append(made))
    whole(image)
    network = build_classifier(settings, 3, 2, start=whole).eval()
    torch.testing.assert_close(network.encoder(image), kept[0])
    expected = kept[0].mean(dim=(2, 3)) @ network.head.weight.T + network.head.bias
    torch.testing.assert_close(network(image), expected)


def test_a_variational_code_is_its_mean_in_training_too() -> None:
    network = build_classifier(FAMILIES[3], 3, 2).train()
    network.encoder.eval()
    network.encoder.get_submodule("autoencoder").training = True
    image = torch.rand(1, 3, 32, 32)
    torch.testing.assert_close(network(image), network(image))


def test_a_frozen_encoder_stays_as_it_is() -> None:
    settings = NetworkSettings(name="unet", width=4, depth=1)
    network = build_classifier(settings, 3, 2, start=build_network(settings, 3, 1), frozen=True).train()
    before = {name: tensor.clone() for name, tensor in network.encoder.state_dict().items()}
    optimiser = torch.optim.AdamW(network.parameters(), lr=0.1)
    for _ in range(3):
        optimiser.zero_grad(set_to_none=True)
        network(torch.rand(4, 3, 32, 32)).square().sum().backward()
        optimiser.step()
    for name, tensor in network.encoder.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)
    assert network.head.weight.grad is not None


def test_a_classifier_starts_from_a_classifier() -> None:
    settings = NetworkSettings(name="unet", width=4, depth=1)
    first = build_classifier(settings, 3, 2)
    assert isinstance(first, Classifier)
    assert build_classifier(settings, 3, 5, start=first).encoder is first.encoder


def test_networks_without_an_encoder_of_their_own_are_refused() -> None:
    with pytest.raises(ValueError, match="takes the encoder of unet, autoencoder:<kind> or smp:<Architecture>; found"):
        build_classifier(NetworkSettings(name="monai:BasicUNet"), 3, 2)


def test_the_table_of_layers_is_that_of_the_classifier() -> None:
    table = summary(NetworkSettings(name="unet", width=4, depth=1), 3, 7, 32, 32, build_classifier)
    assert "Classifier" in table and "[1, 7]" in table
