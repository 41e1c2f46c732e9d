"""R3GAN: resampling against direct sums, and weights that begin as the paper's."""

import pytest
import torch
from torch import Tensor, nn

from genray.models.r3gan import R3GAN, Block
from genray.models.resampling import Double, Halve

TINY = R3GAN(width=8, max_width=16, group_width=4, num_blocks=2)


def halved_by_hand(maps: Tensor) -> Tensor:
    """Every pixel as a sum over four by four of twice the size, outside of which is nothing."""
    shares, (height, width) = [1 / 8, 3 / 8, 3 / 8, 1 / 8], maps.shape[2:]
    out = maps.new_zeros(*maps.shape[:2], height // 2, width // 2)
    for y in range(height // 2):
        for x in range(width // 2):
            for i, a in enumerate(shares):
                for j, b in enumerate(shares):
                    row, column = 2 * y + i - 1, 2 * x + j - 1
                    if 0 <= row < height and 0 <= column < width:
                        out[:, :, y, x] += a * b * maps[:, :, row, column]
    return out


def doubled_by_hand(maps: Tensor) -> Tensor:
    """Every pixel as 9, 3, 3 and 1 sixteenths of four, outside of which is nothing."""
    height, width = maps.shape[2:]
    out = maps.new_zeros(*maps.shape[:2], 2 * height, 2 * width)
    for y in range(2 * height):
        for x in range(2 * width):
            for row, a in ((y // 2, 3 / 4), (y // 2 + (1 if y % 2 else -1), 1 / 4)):
                for column, b in ((x // 2, 3 / 4), (x // 2 + (1 if x % 2 else -1), 1 / 4)):
                    if 0 <= row < height and 0 <= column < width:
                        out[:, :, y, x] += a * b * maps[:, :, row, column]
    return out


def test_halving_equals_a_direct_sum_in_float64() -> None:
    maps = torch.randn(2, 3, 6, 8, dtype=torch.float64)
    torch.testing.assert_close(Halve()(maps), halved_by_hand(maps))


def test_doubling_equals_a_direct_sum_in_float64() -> None:
    maps = torch.randn(2, 3, 3, 4, dtype=torch.float64)
    torch.testing.assert_close(Double()(maps), doubled_by_hand(maps))


def test_block_begins_as_the_identity() -> None:
    maps = torch.randn(2, 8, 4, 4)
    assert torch.equal(Block(TINY, 8, 3)(maps), maps)


@pytest.mark.parametrize("num_blocks", [1, 8])
def test_block_layers_begin_with_weights_that_shrink_as_the_fourth_root_of_the_depth(num_blocks: int) -> None:
    torch.manual_seed(0)
    knobs = R3GAN(width=256, group_width=32, num_blocks=num_blocks)
    block = Block(knobs, 256, num_levels=2)
    gain = (2 / (1 + 0.2**2)) ** 0.5 / (2 * num_blocks) ** 0.25
    expected = [gain / 256**0.5, gain / (64 * 9) ** 0.5]  # 512 channels in 8 groups of 64
    found = [layer.weight.std().item() for layer in (block.first, block.second)]
    assert found == pytest.approx(expected, rel=0.02)


def test_r3gan_ends_begin_with_weights_that_keep_the_variance() -> None:
    torch.manual_seed(0)
    networks = R3GAN(latent_dim=128, width=256, max_width=256, conditional=True).build((3, 16, 16), 10)
    generator, discriminator = networks["generator"], networks["discriminator"]
    found = {
        "project": generator.project.weight,  # of latents and labels
        "basis": generator.basis,
        "last": generator.last.weight,
        "discriminator's basis": discriminator.basis,  # a sum over 4 x 4 places
        "head": discriminator.head.weight,
    }
    expected = {
        "project": 256**-0.5,
        "basis": 1.0,
        "last": 256**-0.5,
        "discriminator's basis": 16**-0.5,
        "head": 256**-0.5,
    }
    assert {name: weight.std().item() for name, weight in found.items()} == pytest.approx(expected, rel=0.06)  # type: ignore


def test_r3gan_has_no_normalisation_and_no_buffer_that_training_moves() -> None:
    networks = TINY.build((1, 16, 16), 10)
    modules = [m for network in networks.values() for m in network.modules()]
    assert not any(isinstance(m, nn.modules.batchnorm._NormBase | nn.GroupNorm | nn.LayerNorm) for m in modules)
    assert [k for n in networks.values() for k in n.state_dict() if k not in dict(n.named_parameters())] == []


def test_r3gan_refuses_groups_that_do_not_divide_the_channels_of_every_level() -> None:
    with pytest.raises(ValueError) as caught:
        R3GAN(width=8, group_width=12).check((1, 32, 32))
    assert str(caught.value) == (
        "model.group_width=12 does not divide the 16 channels of a level; set it to 8, or model.width to a multiple "
        "of it"
    )


def test_r3gan_refuses_a_width_that_its_groups_do_not_divide() -> None:
    with pytest.raises(ValueError, match=r"model\.width=24 must be a multiple of model\.group_width=16"):
        R3GAN(width=24)


def test_r3gan_latent_outweighs_the_label_in_what_a_generator_begins_with() -> None:
    torch.manual_seed(0)
    generator = R3GAN(latent_dim=64, conditional=True).build((1, 8, 8), 10)["generator"]
    lengths = generator.embedding.weight.norm(dim=1)  # type: ignore[union-attr,operator]
    torch.testing.assert_close(lengths.mean(), torch.tensor(1.0), atol=0.1, rtol=0)
