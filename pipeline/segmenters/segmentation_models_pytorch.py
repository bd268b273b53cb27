"""The recipe of segmentation-models-pytorch's binary example, its foreground cut into connected components.

U-Net with a ResNet-34 from scratch, DiceLoss from logits, Adam 2e-4 with cosine decay to 1e-5, float32, batches of 8,
the encoder's own normalisation. The example resizes; images of many sizes are cropped instead, flipped and turned.
"""

from __future__ import annotations

import copy

import numpy as np
import segmentation_models_pytorch as smp
import torch

from pipeline.segmenters.trial import Trial, connected, foreground_settings, padded, run

CROP, BATCH, LEARNING_RATE, LAST_RATE = 256, 8, 2e-4, 1e-5
ENCODER, STRIDE = "resnet34", 32
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""What the library's get_preprocessing_params gives for this encoder; it asks a hub for them."""


def segment(trial: Trial) -> None:
    """Train, choose threshold and smallest object, and write the masks."""
    torch.manual_seed(trial.seed)
    torch.set_num_threads(trial.threads)
    random = np.random.default_rng(trial.seed)
    images, labels = trial.pairs("train")
    masks = [label > 0 for label in labels]
    model = smp.create_model("unet", encoder_name=ENCODER, encoder_weights=None, in_channels=3, classes=1)
    mean, deviation = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, DEVIATION))
    loss_function = smp.losses.DiceLoss(smp.losses.BINARY_MODE, from_logits=True)

    def step(network: torch.nn.Module, optimiser: torch.optim.Optimizer) -> None:
        chosen = random.integers(0, len(images), BATCH)
        pairs = [crop(images[at], masks[at], random) for at in chosen]
        batch = torch.from_numpy(np.stack([image for image, _ in pairs])).permute(0, 3, 1, 2).float() / 255.0
        wanted = torch.from_numpy(np.stack([mask for _, mask in pairs])).unsqueeze(1).float()
        optimiser.zero_grad()
        loss_function(network((batch - mean) / deviation), wanted).backward()
        optimiser.step()

    spare = copy.deepcopy(model).train()
    spare_optimiser = torch.optim.Adam(spare.parameters(), lr=LEARNING_RATE)
    steps = trial.steps_that_fit(lambda: step(spare, spare_optimiser))
    optimiser = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=steps, eta_min=LAST_RATE)
    model.train()
    with trial.clock("trained"):
        for _ in range(steps):
            step(model, optimiser)
            schedule.step()
    model.eval()

    @torch.inference_mode()
    def foreground(image: np.ndarray) -> np.ndarray:
        batch = torch.from_numpy(padded(image, STRIDE)).permute(2, 0, 1).unsqueeze(0).float() / 255.0
        found = model((batch - mean) / deviation).sigmoid()[0, 0].numpy()
        return found[: image.shape[0], : image.shape[1]]

    maps = [foreground(trial.image("validation", name)) for name in trial.names("validation")]
    chosen = trial.choose(foreground_settings(), lambda at, setting: connected(maps[at], **setting))
    trial.write_masks(lambda image: connected(foreground(image), **chosen))


def crop(image: np.ndarray, mask: np.ndarray, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return a random square of both, of CROP, flipped and turned alike; reflected first where it is too small."""
    height, width = mask.shape
    missing = (0, max(0, CROP - height)), (0, max(0, CROP - width))
    image, mask = np.pad(image, (*missing, (0, 0)), mode="reflect"), np.pad(mask, missing, mode="reflect")
    top, left = (int(random.integers(0, length - CROP + 1)) for length in mask.shape)
    window = np.s_[top : top + CROP, left : left + CROP]
    turns, flipped = int(random.integers(4)), bool(random.integers(2))
    image, mask = (np.rot90(one[window], turns) for one in (image, mask))
    return (image[:, ::-1], mask[:, ::-1]) if flipped else (image, mask)


if __name__ == "__main__":
    run(segment, ("segmentation-models-pytorch", "torch", "numpy"))
