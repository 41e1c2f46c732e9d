"""What architectures ask of their knobs, of the sizes of images, and of labels."""

from torch import Tensor


def at_least(least: int, knobs: object, *names: str) -> None:
    """Raises ValueError where one of the fields `names` of an architecture's `knobs` is below `least`."""
    for name in names:
        if getattr(knobs, name) < least:
            raise ValueError(f"model.{name}={getattr(knobs, name)!r} must be at least {least}")


def levels(
    model: str, image_shape: tuple[int, int, int], width: int, max_width: int, min_base: int = 4
) -> tuple[list[int], tuple[int, int]]:
    """Channels of each level from the image (C, H, W) inwards, and height and width of the last, the base.

    Each level halves both sides, down to a base of at least `min_base` and less than twice as many pixels on the
    smaller side; level i has `min(max_width, width * 2**i)` channels.

    Raises:
        ValueError: no such base doubles to the image, or it is not doubled once.
    """
    sides = image_shape[1:]
    doublings = max(0, (min(sides) // min_base).bit_length() - 1)
    step = 2 ** max(1, doublings)
    if doublings == 0 or any(side % step for side in sides):
        use = [max(2 * min_base, side // step * step) for side in sides]
        raise ValueError(
            f"model {model} cannot make images of {sides[0]} x {sides[1]} pixels: the smaller side must be {min_base} "
            f"to {2 * min_base - 1} times a power of two from 2 on, and the other a multiple of that power; "
            f"set data.image_size, e.g. to {use[0]} {use[1]}"
        )
    return [min(max_width, width * 2**level) for level in range(doublings + 1)], (sides[0] // step, sides[1] // step)


def check_halvings(model: str, knob: str, num: int, image_shape: tuple[int, int, int]) -> None:
    """Raises ValueError, with the cure, where images of (C, H, W) cannot be halved `num` times, which `knob` says."""
    step, (_, height, width) = 2**num, image_shape
    if height % step or width % step:
        raise ValueError(
            f"model {model} halves each side {num} times, and {height} x {width} pixels do not divide by {step}; set "
            f"model.{knob} lower, or data.image_size, e.g. to "
            f"{max(step, height // step * step)} {max(step, width // step * step)}"
        )


def check_heads(width: int, num_heads: int) -> None:
    """Raises ValueError where the heads of a transformer's attention cannot have equal shares of its width."""
    if width % num_heads:
        raise ValueError(
            f"model.transformer_width={width} does not divide by model.num_heads={num_heads}; set it to "
            f"{-(-width // num_heads) * num_heads}"
        )


def check_classes(model: str, num_classes: int) -> None:
    """Raises ValueError where there is nothing to classify."""
    if num_classes < 2:
        raise ValueError(
            f"model {model} needs 2 classes or more, and the data have {num_classes}; "
            "set data.name or data.root to a set with one folder or label per class"
        )


def num_labels(conditional: bool, num_classes: int) -> int:
    """Labels that a network is given: 0, or `num_classes` if conditional.

    Raises:
        ValueError: labels asked of fewer than two classes.
    """
    if conditional and num_classes < 2:
        raise ValueError(
            f"model.conditional needs 2 classes or more, and the data have {num_classes}; "
            "set model.conditional to false"
        )
    return num_classes if conditional else 0


def check_conditioning(conditioning: str, conditional: bool) -> None:
    """Raises ValueError where a discriminator shall name labels that there are not."""
    if conditioning != "projection" and not conditional:
        raise ValueError(
            f"model.conditioning={conditioning!r} needs class labels, and model.conditional=False gives none; "
            "set model.conditional to true, or model.conditioning to projection"
        )


def given(labels: Tensor | None, num_labels: int) -> Tensor:
    """The labels of a conditional network; raises ValueError where there are none."""
    if labels is None:
        raise ValueError(f"this network is conditional, and got no labels; pass labels (B,) from 0 to {num_labels - 1}")
    return labels
