"""What a classifier confuses, how far its confidence can be trusted, and its surest mistakes with their reasons."""

import io

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from genray.data.images import ImageSet
from genray.evaluation.accuracy import confusion_matrix, logits_of
from genray.evaluation.calibration import reliability
from genray.evaluation.card import Picture
from genray.evaluation.explain import grad_cam, integrated_gradients
from genray.snapshot import Snapshot

MAX_NAMED_CLASSES = 30
"""Classes up to which the cells and the axes of the confusion matrix carry text."""
NUM_MISTAKES = 8


def pictures(classifier: Snapshot, reals: ImageSet, batch_size: int = 256) -> list[Picture]:
    """The confusion matrix, the reliability diagram, and the surest mistakes where there are any.

    Raises:
        ProtocolError: the images have another shape than the classifier's.
    """
    logits = logits_of(classifier, reals.images, batch_size)
    probabilities, labels = logits.softmax(1), reals.labels
    confusion = confusion_matrix(logits.argmax(1), labels, logits.shape[1])
    made = [
        Picture(
            "confusion.png",
            "How often images of each class (row) were called each class (column).",
            _pixels(confusion_figure(confusion, classifier.classes)),
        ),
        Picture(
            "reliability.png",
            "Accuracy of the images of each confidence; on the diagonal the classifier is right as often as it says.",
            _pixels(reliability_figure(probabilities, labels)),
        ),
    ]
    chosen = surest_mistakes(probabilities, labels, NUM_MISTAKES)
    if len(chosen):
        made.append(
            Picture(
                "mistakes.png",
                "The surest mistakes; of each the image, what spoke for the class it was called (Grad-CAM), and what "
                "each pixel added to that (integrated gradients; red for, blue against).",
                _pixels(_mistakes_figure(classifier, reals, probabilities, chosen)),
            )
        )
    return made


def surest_mistakes(probabilities: Tensor, labels: Tensor, most: int) -> Tensor:
    """Positions of the images that are named wrong, the surest first, at most `most` of them."""
    confidence, predicted = probabilities.max(1)
    wrong = (predicted != labels).nonzero().flatten()
    return wrong[confidence[wrong].argsort(descending=True, stable=True)][:most]


def confusion_figure(confusion: Tensor, classes: tuple[str, ...]) -> Figure:
    """The matrix, each row in shares of its class, the counts in its cells."""
    num = len(classes)
    side = min(14.0, 3 + 0.5 * num)
    figure = Figure((side, side), layout="constrained")
    axes = figure.subplots()
    shares = confusion / confusion.sum(1, keepdim=True).clamp_min(1)
    axes.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=1)
    axes.set(xlabel="called", ylabel="is")
    if num <= MAX_NAMED_CLASSES:
        axes.set_xticks(range(num), classes, rotation=60, ha="right")
        axes.set_yticks(range(num), classes)
        for row in range(num):
            for column in range(num):
                if count := int(confusion[row, column]):
                    dark = "white" if shares[row, column] > 0.5 else "black"
                    axes.text(column, row, str(count), ha="center", va="center", color=dark, fontsize=8)
    return figure


def reliability_figure(probabilities: Tensor, labels: Tensor) -> Figure:
    """Accuracy and number of images in each bin of confidence (Guo et al. 2017, arXiv:1706.04599, figure 1)."""
    bins = reliability(probabilities, labels)
    figure = Figure((5.5, 6.5), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    shown = bins.count > 0
    upper.plot([0, 1], [0, 1], color="#8a8a8a", ls="--")
    upper.plot(bins.confidence[shown].numpy(), bins.accuracy[shown].numpy(), "o-", color="#1f5fa8")
    upper.set(ylabel="accuracy", xlim=(0, 1), ylim=(0, 1))
    width = 1 / len(bins.count)
    lower.bar((np.arange(len(bins.count)) + 0.5) * width, bins.count.numpy(), width * 0.9, color="#1f5fa8")
    lower.set(xlabel="confidence", ylabel="images", yscale="symlog")
    return figure


def _mistakes_figure(classifier: Snapshot, reals: ImageSet, probabilities: Tensor, chosen: Tensor) -> Figure:
    images, called = reals.images[chosen], probabilities[chosen].argmax(1)
    heat = grad_cam(classifier.module, images, called)
    added = integrated_gradients(classifier.module, images, called).sum(1)
    figure = Figure((5.4, 1.9 * len(chosen)), layout="constrained")
    for row, axes in enumerate(figure.subplots(len(chosen), 3, squeeze=False)):
        index = int(chosen[row])
        shown = images[row].permute(1, 2, 0).expand(-1, -1, 3).numpy()
        limit = max(float(added[row].abs().max()), 1e-12)
        axes[0].imshow(shown)
        axes[1].imshow(shown)
        axes[1].imshow(heat[row].numpy(), cmap="inferno", alpha=0.6, vmin=0, vmax=1)
        axes[2].imshow(added[row].numpy(), cmap="seismic", vmin=-limit, vmax=limit)
        name, is_name = reals.classes[int(called[row])], reals.classes[int(reals.labels[index])]
        axes[0].set_title(f"image {index}: is {is_name}", fontsize=8)
        axes[1].set_title(f"called {name}, {float(probabilities[index].max()):.1%}", fontsize=8)
        for axis in axes:
            axis.set_axis_off()
    return figure


def _pixels(figure: Figure) -> NDArray[np.uint8]:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110)
    return np.asarray(Image.open(file).convert("RGB"))
