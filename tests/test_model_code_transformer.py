"""Transformers over codes: what each code depends on, and what is drawn."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from genray.models.code_transformer import CodeGenerator, CodeTransformer, Transformer, likeliest_first

TINY = CodeTransformer(
    num_codes=6, code_dim=3, width=4, num_downsamplings=1, transformer_width=16, num_layers=2, num_heads=2
)
TOLD = replace(TINY, conditional=True)


def built(model: CodeTransformer, seed: int = 0) -> CodeGenerator:
    """A generator of 8 x 8 pixels whose transformer is far from indifferent."""
    torch.manual_seed(seed)
    made = model.build((1, 8, 8), 10)["generator"].eval()
    with torch.no_grad():
        for parameter in made.transformer.parameters():  # type: ignore[union-attr]
            parameter.add_(0.5 * torch.randn_like(parameter))
    assert isinstance(made, CodeGenerator)
    return made


def test_logits_of_a_code_depend_on_those_before_it_and_on_no_other() -> None:
    made, codes = built(TINY), torch.randint(6, (3, 16))
    logits = made(codes)
    assert logits.shape == (3, 16, 6)
    for place in (0, 7, 15):
        other = codes.clone()
        other[:, place] = (codes[:, place] + 1) % 6
        changed = (made(other) - logits).abs().amax(dim=(0, 2)) > 1e-5
        assert torch.equal(changed, torch.arange(16) > place)


def test_codes_drawn_one_by_one_are_those_that_the_whole_sequence_says() -> None:
    made, noise, labels = built(TOLD), torch.randn(5, 16), torch.arange(5)
    codes = made.transformer.draw(noise, labels)
    logits = made(codes, labels)
    again = [likeliest_first(logits[:, place], noise[:, place]) for place in range(16)]
    assert torch.equal(torch.stack(again, dim=1), codes)
    assert len(codes.unique()) > 3


def test_codes_are_drawn_as_often_as_their_logits_say() -> None:
    logits = torch.tensor([[0.3, -2.0, 1.5, 0.3]])
    noise = torch.randn(200_000, generator=torch.Generator().manual_seed(0))
    drawn = likeliest_first(logits.expand(len(noise), -1), noise)
    shares = torch.bincount(drawn, minlength=4) / len(noise)
    torch.testing.assert_close(shares, logits.softmax(dim=1)[0], atol=0.004, rtol=0)


def test_noise_of_0_draws_the_likeliest_code_and_the_largest_the_unlikeliest() -> None:
    logits = torch.randn(50, 6)
    assert torch.equal(likeliest_first(logits, torch.zeros(50)), logits.argmax(dim=1))
    assert torch.equal(likeliest_first(logits, torch.full((50,), -30.0)), logits.argmin(dim=1))


def test_label_changes_the_logits_of_every_code() -> None:
    made, codes = built(TOLD), torch.randint(6, (1, 16))
    differing = made(codes, torch.tensor([3])) - made(codes, torch.tensor([4]))
    assert (differing.abs().amax(dim=2) > 1e-5).all()


def test_transformer_told_the_label_refuses_to_go_without() -> None:
    with pytest.raises(ValueError, match="is conditional, and got no labels"):
        built(TOLD).generate(torch.randn(2, 16))


def test_transformer_learns_a_chain_of_codes_and_draws_it() -> None:
    """Each code is the one before it with probability 0.8, or else one of the two others."""
    source = torch.Generator().manual_seed(0)
    chain = 0.7 * torch.eye(3) + 0.1
    torch.manual_seed(0)
    knobs = CodeTransformer(transformer_width=32, num_layers=1, num_heads=2)
    made = Transformer(knobs, num_codes=3, num_places=4, num_labels=0)
    optimizer = torch.optim.Adam(made.parameters(), lr=3e-3)
    for _ in range(200):
        codes = [torch.randint(3, (256,), generator=source)]
        for _ in range(3):
            codes.append(torch.multinomial(chain[codes[-1]], 1, generator=source).squeeze(1))
        sequences = torch.stack(codes, dim=1)
        loss = F.cross_entropy(made(sequences).flatten(0, 1), sequences.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    entropy = (torch.tensor(3.0).log() + 3 * torch.special.entr(chain[0]).sum()) / 4
    assert float(loss.detach()) == pytest.approx(float(entropy), abs=0.06)
    with torch.no_grad():
        drawn = made.draw(torch.randn(20_000, 4, generator=source))
    pairs = torch.bincount(3 * drawn[:, 2] + drawn[:, 3], minlength=9).view(3, 3) / len(drawn)
    torch.testing.assert_close(pairs, chain / 3, atol=0.05, rtol=0)


def test_nothing_but_the_transformer_has_parameters() -> None:
    made = built(TINY)
    assert {name.partition(".")[0] for name, _ in made.named_parameters()} == {"transformer"}
    assert {name.partition(".")[0] for name in made.state_dict()} == {"encoder", "quantizer", "decoder", "transformer"}


def test_transformer_over_continuous_latents_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^model\.quantizer='none' makes continuous latents"):
        CodeTransformer(quantizer="none")


def test_width_that_does_not_divide_by_the_heads_is_refused() -> None:
    with pytest.raises(ValueError, match=r"transformer_width=10 does not divide by model\.num_heads=4; set it to 12"):
        CodeTransformer(transformer_width=10, num_heads=4)
