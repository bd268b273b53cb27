"""Reconstruction: an image in, the same tissue in the wanted look out; the autoencoder family and the U-Net."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import nn

from pipeline.config import Config
from pipeline.inference import Predictor
from pipeline.intensity import as_input
from pipeline.metrics.stain import psnr, ssim
from pipeline.networks import build_network
from pipeline.networks.autoencoders import Autoencoder, active_latents, active_share
from pipeline.outputs import Outputs, to_pixels
from pipeline.pairs import Pairs
from pipeline.reconstruction_losses import ReconstructionLoss
from pipeline.records.case import Case
from pipeline.records.paths import Paths
from pipeline.tasks.crops import Crops
from pipeline.tasks.players import NETWORK, Player
from pipeline.trained import IMAGE_CHANNELS


class PairedCrops(Crops):
    """Crops of pairs."""

    def __init__(self, cases: Sequence[Case], pairs: Pairs, config: Config, workers: int) -> None:
        super().__init__(cases, config, workers)
        self.pairs = pairs

    def read(self, case: Case) -> tuple[np.ndarray, np.ndarray]:
        """Return image and target."""
        return self.pairs.read(case)

    def cut(self, case: Case, image: np.ndarray, learned: np.ndarray, seed: int) -> dict[str, np.ndarray]:
        """Return image and target, (h, w, 3) uint8 each."""
        return dict(zip(("image", "target"), self.pairs.cut(image, learned, seed), strict=True))


class Reconstruction:
    """An autoencoder or U-Net with three outputs, its loss and its score."""

    headline = ("validation_psnr", "PSNR")

    def __init__(
        self, config: Config, paths: Paths, outputs: Outputs, training: Sequence[Case], validation: Sequence[Case]
    ) -> None:
        self.config = config
        self.pairs = Pairs(config, paths)
        self.training = training
        self.validation = validation
        torch.manual_seed(config.seed)
        self.network = build_network(config.train.network, IMAGE_CHANNELS, len(outputs.channels))
        self.players = {NETWORK: Player(self.network, config.train.learning_rate)}
        self.coded = isinstance(self.network, Autoencoder)
        if isinstance(self.network, Autoencoder):
            self.network.use = config.train.reconstruction.code
        self.loss = ReconstructionLoss(
            config.train.reconstruction, self.network.kind if isinstance(self.network, Autoencoder) else "unet"
        )

    def crops(self, workers: int) -> PairedCrops:
        """Return the training crops."""
        return PairedCrops(self.training, self.pairs, self.config, workers)

    def step(
        self, networks: Mapping[str, nn.Module], batch: dict[str, torch.Tensor], progress: float
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the loss of one batch."""
        image, target = as_input(batch["image"]), as_input(batch["target"])
        if self.coded:
            logits, code = networks[NETWORK](image, with_code=True)
        else:
            logits, code = networks[NETWORK](image), None
        yield NETWORK, self.loss(logits, target, code, progress)

    def validate(self, predict: Predictor) -> dict[str, float]:
        """Score whole validation images: psnr (which decides what is best), ssim; how much of a code is in use."""
        rows = []
        for case in self.validation:
            given, target = self.pairs.given(case)
            made = to_pixels(predict(given))
            rows.append((psnr(made, target), ssim(made, target)))
        peak, structure = np.mean(rows, axis=0).tolist()
        scores = {"validation_psnr": peak, "validation_ssim": structure, "validation_score": peak}
        return scores | self._code_in_use(predict)

    @torch.inference_mode()
    def _code_in_use(self, predict: Predictor) -> dict[str, float]:
        network = predict.network
        if not isinstance(network, Autoencoder) or network.kind not in ("sparse", "variational"):
            return {}
        codes = [
            network.encode(as_input(torch.from_numpy(self.pairs.given(case)[0][np.newaxis]).to(predict.device)))
            for case in self.validation
        ]
        if network.kind == "sparse":
            threshold = self.config.train.reconstruction.sparsity_threshold
            return {"active_share": float(np.mean([active_share(code.values, threshold) for code in codes]))}
        means = torch.cat([code.mean.movedim(1, -1).flatten(0, 2) for code in codes if code.mean is not None])
        return {"active_latents": float(active_latents(means))}
