"""Translation: Pix2Pix, a generator of images against a discriminator of patches (Isola et al., CVPR 2017)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import nn

from pipeline.config import Config
from pipeline.intensity import as_input
from pipeline.networks.pix2pix import AdversarialLoss, PatchDiscriminator
from pipeline.outputs import Outputs
from pipeline.reconstruction_losses import output_image
from pipeline.records.case import Case
from pipeline.records.paths import Paths
from pipeline.tasks.players import NETWORK, Player
from pipeline.tasks.reconstruction import Reconstruction
from pipeline.trained import IMAGE_CHANNELS

DISCRIMINATOR = "discriminator"
BETAS = (0.5, 0.999)
"""Of both optimisers (section 3.3 of the paper)."""


class Translation(Reconstruction):
    """The same pairs and scores as a reconstruction, with a second network that tells real targets from made ones."""

    def __init__(
        self, config: Config, paths: Paths, outputs: Outputs, training: Sequence[Case], validation: Sequence[Case]
    ) -> None:
        super().__init__(config, paths, outputs, training, validation)
        settings = config.train.translation
        self.weights = settings.adversarial, settings.absolute
        self.adversarial = AdversarialLoss(settings.objective)
        self.activation = outputs.activation
        discriminator = PatchDiscriminator(IMAGE_CHANNELS, len(outputs.channels), settings.width, settings.depth)
        self.players = {
            DISCRIMINATOR: Player(discriminator, settings.learning_rate, BETAS),
            NETWORK: Player(self.network, config.train.learning_rate, BETAS),
        }

    def step(
        self, networks: Mapping[str, nn.Module], batch: dict[str, torch.Tensor], progress: float
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the discriminator's loss, then, against its new weights, the generator's."""
        image, target = as_input(batch["image"]), as_input(batch["target"])
        made = output_image(networks[NETWORK](image).float(), self.activation)
        # Real and made in one pass, so that batch statistics and processes see both alike.
        verdict = networks[DISCRIMINATOR](torch.cat([image, image]), torch.cat([target, made.detach()]))
        real, fake = verdict.float().chunk(2)
        yield DISCRIMINATOR, self.adversarial.discriminator(real, fake)
        fooled = self.adversarial.generator(networks[DISCRIMINATOR](image, made).float())
        adversarial, absolute = self.weights
        yield NETWORK, adversarial * fooled + absolute * (made - target).abs().mean()
