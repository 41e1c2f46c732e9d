"""SNGAN: the published network, and what spectral normalisation does."""

import copy

import torch
from torch import nn

from genray.models.sngan import SNGAN, Attention, Norm

TINY = SNGAN(width=8, discriminator_width=8, max_width=8, max_discriminator_width=8, spectral="both", conditional=True)


def test_sngan_at_32_pixels_has_the_parameters_of_the_published_network() -> None:
    model = SNGAN(width=256, max_width=256, discriminator_width=128, max_discriminator_width=128)
    count = {k: sum(p.numel() for p in m.parameters()) for k, m in model.build((3, 32, 32), 10).items()}
    conv, first, head = 128 * 128 * 9 + 128, 3 * 128 * 9 + 128, 128 + 1
    expected = first + 7 * conv + (3 * 128 + 128) + (128 * 128 + 128) + head
    assert count == {"generator": 4_276_739, "discriminator": expected}


def test_sngan_weights_converge_to_a_largest_singular_value_of_one() -> None:
    discriminator = TINY.build((1, 16, 16), 10)["discriminator"]
    layers = [m for m in discriminator.modules() if isinstance(m, nn.Conv2d | nn.Linear | nn.Embedding)]
    for layer in layers:
        layer.parametrizations.weight.original.data.mul_(7)  # type: ignore[union-attr,operator]
    for _ in range(100):
        discriminator(torch.zeros(2, 1, 16, 16), torch.zeros(2, dtype=torch.int64))
    largest = [torch.linalg.svdvals(layer.weight.detach().flatten(1)).max() for layer in layers]
    torch.testing.assert_close(torch.stack(largest), torch.ones(len(layers)), atol=2e-2, rtol=0)


def test_sngan_without_spectral_norm_has_plain_weights_and_with_it_none_in_its_norms() -> None:
    def normalised(model: SNGAN, name: str) -> list[str]:
        return [n for n, m in model.build((1, 8, 8), 10)[name].named_modules() if hasattr(m, "parametrizations")]

    assert normalised(SNGAN(spectral="none"), "discriminator") == normalised(SNGAN(), "generator") == []
    assert normalised(TINY, "generator") and not any("scales" in name for name in normalised(TINY, "generator"))


def test_sngan_copy_in_eval_mode_gives_the_same_images_every_time_and_keeps_its_vectors() -> None:
    generator = copy.deepcopy(TINY.build((1, 8, 8), 10)["generator"]).eval()
    z, labels = torch.randn(2, 128), torch.arange(2)
    before = {k: v.clone() for k, v in generator.state_dict().items()}
    assert torch.equal(generator.generate(z, labels), generator.generate(z, labels))
    assert all(torch.equal(v, before[k]) for k, v in generator.state_dict().items())


def test_sngan_attention_begins_as_nothing_and_equals_a_sum_over_places_one_by_one() -> None:
    torch.manual_seed(0)
    layer, maps = Attention(16).double(), torch.randn(2, 16, 4, 6, dtype=torch.float64)
    assert torch.equal(layer(maps), maps)
    layer.weight.data.fill_(0.7)
    expected = maps.clone()
    pooled = torch.nn.functional.max_pool2d
    keys, values = pooled(layer.keys(maps), 2), pooled(layer.values(maps), 2)
    queries = layer.queries(maps)
    for b in range(2):
        for y in range(4):
            for x in range(6):
                weights = torch.stack([queries[b, :, y, x] @ keys[b, :, i, j] for i in range(2) for j in range(3)])
                seen = torch.stack([values[b, :, i, j] for i in range(2) for j in range(3)])
                mixed = (weights.softmax(0)[:, None] * seen).sum(0)
                expected[b, :, y, x] += 0.7 * layer.out.weight[:, :, 0, 0] @ mixed
    torch.testing.assert_close(layer(maps), expected, atol=1e-6, rtol=1e-6)


def test_class_conditional_norm_scales_and_shifts_what_batch_norm_gives_by_the_label_of_each_image() -> None:
    layer, maps, labels = Norm(5, 3), 2 * torch.randn(6, 5, 4, 4) + 1, torch.tensor([0, 1, 2, 2, 1, 0])
    assert layer.scales_shifts is not None
    nn.init.normal_(layer.scales_shifts.weight)
    mean, variance = maps.mean(dim=(0, 2, 3)), maps.var(dim=(0, 2, 3), correction=0)
    found = layer(maps, labels)
    for i, label in enumerate(labels):
        scales, shifts = layer.scales_shifts.weight[label].split(5)
        for channel in range(5):
            normal = (maps[i, channel] - mean[channel]) / (variance[channel] + 1e-5).sqrt()
            torch.testing.assert_close(found[i, channel], normal * scales[channel] + shifts[channel])


def test_sngan_projects_the_sum_over_places_on_the_class() -> None:
    discriminator = SNGAN(discriminator_width=8, max_discriminator_width=8, spectral="none", conditional=True)
    network, images = discriminator.build((1, 16, 16), 10)["discriminator"], torch.randn(3, 1, 16, 16)
    nn.init.normal_(network.embedding.weight)  # type: ignore[union-attr,arg-type]
    nn.init.normal_(network.head.bias)  # type: ignore[union-attr,arg-type]
    maps, labels = network.blocks(images), torch.tensor([3, 3, 7])  # type: ignore[operator]
    for i, label in enumerate(labels):
        features = torch.stack([channel.clamp(min=0).sum() for channel in maps[i]])
        weight = network.head.weight[0] + network.embedding.weight[label]  # type: ignore[union-attr,index]
        expected = features @ weight + network.head.bias[0]  # type: ignore[union-attr,index]
        torch.testing.assert_close(network(images, labels)[i], expected)
