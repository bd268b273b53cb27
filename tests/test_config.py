"""The schema refuses what it does not know, all at once, and says what was meant."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.config import Config, ConfigError, NetworkSettings, completed, describe, dump_config, load_config


def test_every_mistake_is_in_one_message(tmp_path: Path) -> None:
    file = tmp_path / "wrong.yaml"
    file.write_text("trian: {steps: 3}\ntrain: {step: 5, batch: many}\nsplit: {test_share: 2}\n")
    with pytest.raises(ConfigError) as raised:
        load_config(file)
    text = str(raised.value)
    assert str(file) in text and "4 settings" in text
    assert "trian: unknown setting; did you mean train?" in text
    assert "train.step: unknown setting; did you mean train.steps?" in text
    assert "train.batch: input should be a valid integer" in text and "'many'" in text
    assert "split.test_share: input should be less than or equal to 1, found 2" in text


def test_setting_in_the_wrong_section_is_pointed_to() -> None:
    with pytest.raises(
        ConfigError, match=r"split\.learning_rate: unknown setting; did you mean train\.learning_rate\?"
    ):
        load_config(None, ["split.learning_rate=0.1"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train", "expected key.path=value"),
        ("seed.deep=1", "section"),
        ("train.loss.cross_entropy=0", "^$"),
        ("augment.scale=[2, 1]", "smallest <= largest"),
        ("ingest.group_pattern='['", "not a regular expression"),
        ("ingest.group_pattern=abc", "needs one group in parentheses"),
        ("run=../elsewhere", "begins with '.'"),
        ("run=.", "begins with '.'"),
        ("run=a//b", "is empty"),
        ("dataset=a/b", "pattern"),
        ("dataset=..", "pattern"),
        ("split.name=.", "pattern"),
        ("compute.precision=8", "'fp32', 'bf16' or 'fp16'"),
    ],
)
def test_bad_overrides_are_refused(override: str, message: str) -> None:
    if message == "^$":
        assert load_config(None, [override]).train.loss.dice == 1.0
        return
    with pytest.raises(ConfigError, match=message.replace("[", r"\[")):
        load_config(None, ["seed=7", override] if override.startswith("seed.") else [override])


def test_losses_cannot_all_be_off() -> None:
    with pytest.raises(ConfigError, match="every weight is 0"):
        load_config(None, ["train.loss.cross_entropy=0", "train.loss.dice=0"])


def test_overrides_win_over_the_file_and_later_ones_over_earlier(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("train: {steps: 3}\n")
    config = load_config(file, ["train.steps=4", "train.steps=5", "train.loss.dice=0.5"])
    assert config.train.steps == 5
    assert config.train.loss.dice == 0.5
    assert config.run == "mine"


def test_a_missing_file_names_those_there_are(tmp_path: Path) -> None:
    (tmp_path / "there.yaml").write_text("")
    with pytest.raises(ConfigError, match=r"there\.yaml"):
        load_config(tmp_path / "absent.yaml")


def test_resolved_settings_load_back_equal() -> None:
    import yaml

    config = load_config(None, ["train.minutes=5", "augment.scale=[0.5, 2]"])
    assert Config.model_validate(yaml.safe_load(dump_config(config))) == config


def test_every_setting_has_a_meaning() -> None:
    rows = list(describe(Config()))
    assert len(rows) > 60
    assert [path for path, _, _, meaning in rows if len(meaning) < 10] == []


CONFIGS = Path(__file__).parents[1] / "configs"


@pytest.mark.parametrize(
    "file", sorted(set(CONFIGS.rglob("*.yaml")) - set(CONFIGS.glob("studies/*"))), ids=lambda file: file.stem
)
def test_committed_configs_load_and_hold_steps(file: Path) -> None:
    config = load_config(file)
    assert config.run == file.relative_to(CONFIGS).with_suffix("").as_posix()
    assert config.train.minutes is None


def test_settings_that_came_later_are_taken_as_their_defaults() -> None:
    now = Config().model_dump(mode="json")
    stored = {"train": {key: value for key, value in now["train"].items() if key != "patience"}, "seed": 7,
              "train.corruption": {"noise": 0.5}}  # fmt: skip
    stored["train"]["network"] = {"name": "unet", "width": 8}
    filled = completed(stored)
    assert filled["seed"] == 7
    assert filled["train"] == now["train"] | {"network": NetworkSettings(width=8).model_dump(mode="json")}
    assert filled["train.corruption"] == now["train"]["corruption"] | {"noise": 0.5}
    stored["train"]["gone"] = 1
    assert completed(stored)["train"]["gone"] == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["train.corruption.noise=0.1", "train.translation.width=8"],
         r"train: task segmentation has no use for corruption.noise \(of task reconstruction or translation\), "
         r"translation.width \(of task translation\)"),
        (["train.task=translation", "train.reconstruction.ssim=1", "train.reconstruction.reference_strata=[a]"],
         r"no use for reconstruction.ssim \(of task reconstruction\): leave"),
        (["train.network.residual=true"], r"segmentation has no use for network.residual \(of task reconstruction or"),
        (["train.task=classification", "train.target=binary", "train.loss.dice=2"], r"no use for target .*, loss.dice"),
        (["evaluate.segmenter=x", "evaluate.side=64"], r"evaluate.segmenter, evaluate.side: judge a run that "),
    ],
)  # fmt: skip
def test_settings_without_effect_are_refused(settings: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(None, settings)
    assert load_config(None, ["train.task=translation", "train.reconstruction.reference_strata=[a]"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["train.members=[a,a]"], "each run once"),
        (["train.members=[a,b]", "train.steps=7", "train.network.width=8"], "leave out network, steps"),
    ],
)
def test_members_come_with_settings_of_their_own(settings: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(None, settings)


def test_a_config_that_says_nothing_of_the_network_trains_a_pretrained_one() -> None:
    plain = load_config(None).train.network
    assert (plain.name, plain.arguments["encoder_weights"]) == ("smp:Unet", "imagenet")
    assert load_config(None, ["train.network.width=16"]).train.network.name == "unet"
    assert {path: value for path, _, value, _ in describe(Config())}["train.network.name"] == "smp:Unet"
