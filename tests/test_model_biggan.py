"""BigGAN: parts of the latent, one embedding of labels, and weights that begin orthogonal."""

from typing import Any

import pytest
import torch
from torch import Tensor

from genray.models.biggan import BigGAN, Block, CodedNorm


def generator(**knobs: Any) -> Any:
    torch.manual_seed(0)
    small = {"latent_dim": 9, "width": 4, "max_width": 8, "discriminator_width": 4, "attention": False}
    return BigGAN(**(small | knobs)).build((1, 16, 16), 10)["generator"].eval()


def after_first_block(network: Any, z: Tensor) -> Tensor:
    seen: list[Tensor] = []
    first = next(block for block in network.blocks if isinstance(block, Block))
    handle = first.register_forward_hook(lambda module, inputs, output: seen.append(output))
    network(z)
    handle.remove()
    return seen[0]


@pytest.mark.parametrize(("place", "reaches"), [(0, True), (4, True), (8, False)], ids=["first", "second", "third"])
def test_block_sees_its_own_part_of_the_latent_and_none_of_later_ones(place: int, reaches: bool) -> None:
    network, z = generator(), torch.randn(1, 9)  # three parts of three numbers
    moved = z.clone()
    moved[0, place] += 1
    assert torch.equal(after_first_block(network, z), after_first_block(network, moved)) is not reaches
    assert not torch.equal(network(z), network(moved))


def test_label_is_embedded_once_for_all_layers() -> None:
    network = generator(conditional=True, label_dim=5)
    embeddings = [module for module in network.modules() if isinstance(module, torch.nn.Embedding)]
    codes = {layer.scales.in_features for layer in network.modules() if isinstance(layer, CodedNorm)}
    assert len(embeddings) == 1 and codes == {3 + 5}


def test_normalised_maps_are_scaled_and_shifted_by_what_the_code_says() -> None:
    torch.manual_seed(0)
    norm, maps, code = CodedNorm(2, 3), torch.randn(4, 2, 5, 5), torch.randn(4, 3)
    normal = (maps - maps.mean((0, 2, 3), keepdim=True)) / (
        maps.var((0, 2, 3), keepdim=True, correction=0) + 1e-5
    ).sqrt()
    expected = torch.stack(
        [(1 + norm.scales.weight @ code[b])[:, None, None] * normal[b] + (norm.shifts.weight @ code[b])[:, None, None]
         for b in range(4)]
    )  # fmt: skip
    torch.testing.assert_close(norm(maps, code), expected)


def test_weights_begin_orthogonal() -> None:
    torch.manual_seed(0)
    networks = BigGAN(width=4, max_width=8, discriminator_width=4, conditional=True).build((1, 16, 16), 10)
    found = 0
    for network in networks.values():
        for name, weight in network.named_parameters():
            if name.endswith("weight.original"):
                rows = weight.detach().flatten(1)
                rows = rows if len(rows) <= rows.shape[1] else rows.T
                torch.testing.assert_close(rows @ rows.T, torch.eye(len(rows)), atol=1e-5, rtol=0)
                found += 1
    assert found > 20


def test_latent_of_fewer_numbers_than_parts_is_refused() -> None:
    with pytest.raises(ValueError) as caught:
        BigGAN(latent_dim=3).check((3, 32, 32))
    assert str(caught.value) == (
        "model.latent_dim=3 is split over the first layer and 3 blocks, and each needs a number or more; set it to 4 "
        "at least"
    )
