"""What is refused by the settings alone is refused before any stage has run."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline import device, runner
from pipeline.config import ComputeSettings, load_config
from pipeline.records.paths import Paths
from pipeline.stages import train

SMP = "train.network.name=smp:Unet"
IMAGES = "train.task=reconstruction"


def refusal(root: Path, *settings: str, name: str = "report") -> str:
    config = load_config(None, ["dataset=absent", "run=mine", *settings])
    with pytest.raises(ValueError) as raised:
        runner.run(name, config, Paths.of(config, root), with_needs=True)
    assert name != "report" or not list(root.iterdir())
    return str(raised.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ([SMP, "train.network.width=16"], "network.name smp:Unet: width belong to unet"),
        ([SMP, "train.network.arguments={encoder_name: resnet33}"], "expected a known name, found 'resnet33'"),
        ([SMP, "train.network.arguments={encoder_weights: absent.pth}"], "absent.pth: expected a file of encoder"),
        (["train.network.padded=false", "augment.crop=64"], "expects images of at least 173x173 pixels, found 64x64"),
        (["train.network.name=monai:UNETR", "augment.crop=288"], "expected images of at most 256x256"),
        (["train.network.name=monai:BasicUNetPlusPlus"], "expected one map of logits"),
        ([IMAGES, "train.network.padded=false"], "train.network.padded: expected true, found false"),
        ([IMAGES, "train.network.name=autoencoder:sparse"], "sparsity: expected threshold, mean or divergence"),
        ([IMAGES, "predict.scales=[1, 2]"], "predict.scales: expected [1.0] for run mine, which makes no masks"),
        (["train.task=classification", "train.classification.frozen=true", "train.network.name=unet"],
         "expected an encoder that was trained"),
        (["train.task=classification", "train.network.name=monai:UNet"], "train.network.name: a classification takes"),
        (["train.loss.tversky_alpha=0.7", "train.loss.boundary_weight=2", "train.loss.cross_entropy=0"],
         "train.loss.tversky_alpha has no effect with train.loss.tversky=0; train.loss.boundary_weight has no effect"),
        ([IMAGES, "train.corruption.hole_fill=255"], "train.corruption.hole_fill has no effect"),
        (["compute.precision=fp16", "compute.device=cpu"], "compute.precision: fp16 needs CUDA"),
        (["augment.planes=4", "train.network.name=monai:UNet", "predict.engine=openvino"], "predict.engine=pytorch"),
        (["train.members=[absent]"], "train/absent: expected a trained run"),
        ([IMAGES, "evaluate.beside=[macenko, absent]"], "evaluate.beside: expected classical normalisers"),
        ([IMAGES, "evaluate.segmenter=absent"], "evaluate.segmenter: expected a trained segmentation, found 'absent'"),
        (["split.validation_share=0"], "split.validation_share: expected a share for the validation part"),
    ],
)  # fmt: skip
def test_what_no_image_would_make_right_is_told_before_any_stage(
    settings: list[str], message: str, tmp_path: Path
) -> None:
    assert message in refusal(tmp_path, *settings)


def test_openvino_is_for_processors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on_gpu = ComputeSettings(device="cuda", precision="fp16", channels_last=True, threads=1, workers=0)
    monkeypatch.setattr(device, "freeze", lambda compute: on_gpu)
    assert "expected compute.device=cpu, found cuda" in refusal(tmp_path, "predict.engine=openvino")


def test_only_the_stages_that_are_asked_for_are_looked_at(tmp_path: Path) -> None:
    assert "absent: expected raw files" in refusal(tmp_path, "split.validation_share=0", name="split")


def test_parts_that_were_published_need_no_share(tmp_path: Path) -> None:
    published = "split.published={a: train, b: validation, c: test}"
    config = load_config(None, [published, "train.network.width=4", "train.network.depth=1", "augment.crop=32"])
    train.check(config, Paths.of(config, tmp_path))
