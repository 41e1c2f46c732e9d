"""Autoencoders and classifiers on two ranks and in one process: gradients, and buffers that steps change."""

from contextlib import nullcontext
from dataclasses import asdict, replace
from typing import Any

import torch
from ranks import run_ranks
from torch import Tensor

from genray import distributed
from genray.models.code_transformer import CodeTransformer
from genray.models.dcgan import DCGANClassifier
from genray.models.hierarchical_vae import HierarchicalVAE
from genray.models.latent_flow import LatentFlow
from genray.models.sngan import SNGANClassifier
from genray.models.tokenizer import AdversarialTokenizer, Tokenizer
from genray.models.vae import MLPVAE, AdversarialVAE
from genray.models.vae_classifier import ConvVAEClassifier
from genray.models.vae_gan import ConvVAEGAN
from genray.objectives import Batch, Networks
from genray.objectives.adversarial_tokenizer import AdversarialTokenization
from genray.objectives.classification import Classification
from genray.objectives.code_prediction import CodePrediction
from genray.objectives.elbo import ELBO
from genray.objectives.flow_matching import FlowMatching
from genray.objectives.latent_adversarial import LatentAdversarial
from genray.objectives.rae import RAE
from genray.objectives.tokenizer import Tokenization
from genray.objectives.vae_gan import VAEGAN
from genray.streams import Draws

MLP = MLPVAE(latent_dim=3, hidden=16)
VQ = Tokenizer(num_codes=8, code_dim=3, width=4, num_downsamplings=1)
FSQ = Tokenizer(quantizer="fsq", levels=(4, 3), width=4, num_downsamplings=1)
CASES: dict[str, tuple[Any, Any]] = {
    "plain": (MLP, ELBO()),
    "free bits": (MLP, ELBO(free_bits=0.02)),
    "capacity": (MLP, ELBO(capacity=0.3, beta=10.0)),
    "total correlation": (MLP, ELBO(total_correlation=5.0)),
    "mmd": (MLP, ELBO(beta=0.0, mmd=100.0)),
    "iwae": (MLP, ELBO(bound="iwae", num_samples=3, num_groups=2)),
    "piwae": (MLP, ELBO(bound="piwae", num_samples=3, num_groups=2)),
    "ciwae": (MLP, ELBO(bound="ciwae", num_samples=3)),
    "dreg": (MLP, ELBO(bound="iwae", num_samples=3, estimator="dreg", beta=0.5)),
    "scale": (replace(MLP, output="scale"), ELBO(likelihood="gaussian")),
    "global scale": (replace(MLP, output="global-scale"), ELBO(likelihood="gaussian")),
    "logistics": (replace(MLP, output="logistic-mixture"), ELBO(likelihood="logistic-mixture")),
    "conditional": (replace(MLP, conditional=True), ELBO()),
    "flows": (replace(MLP, num_flows=2), ELBO()),
    "pseudo-inputs": (replace(MLP, num_pseudo_inputs=4), ELBO()),
    "hierarchy": (HierarchicalVAE(width=4, latent_channels=2, blocks_per_level=1), ELBO(bound="iwae", num_samples=2)),
    "factor": (AdversarialVAE(latent_dim=3, hidden=16), LatentAdversarial()),
    "adversarial latents": (AdversarialVAE(latent_dim=3, hidden=16), LatentAdversarial(form="adversarial", beta=0.0)),
    "vae-gan": (
        ConvVAEGAN(
            latent_dim=3, width=4, norm="none", discriminator_width=4, discriminator_norm="none", conditional=True
        ),
        VAEGAN(),
    ),
    "rae": (MLP, RAE(decoder_l2=0.1, gradient_penalty=0.1)),
    "vq": (VQ, Tokenization()),
    "fsq": (FSQ, Tokenization()),
    "continuous": (replace(VQ, quantizer="none"), Tokenization(beta=0.5)),
    "adversarial": (
        AdversarialTokenizer(num_codes=8, code_dim=3, width=4, num_downsamplings=1, discriminator_width=4),
        AdversarialTokenization(adversarial_start_samples=0, adversarial_warmup_samples=0),
    ),
    "adversarial continuous": (
        AdversarialTokenizer(quantizer="none", code_dim=3, width=4, num_downsamplings=1, discriminator_width=4),
        AdversarialTokenization(adversarial_start_samples=0, adversarial_warmup_samples=0),
    ),
    "codes": (
        CodeTransformer(**asdict(VQ), transformer_width=8, num_layers=1, num_heads=2, conditional=True),
        CodePrediction(corruption=0.3),
    ),
    "flow": (
        LatentFlow(
            code_dim=3, width=4, num_downsamplings=1, transformer_width=8, num_layers=1, num_heads=2, conditional=True
        ),
        FlowMatching(),
    ),
    "discriminator's trunk": (DCGANClassifier(width=4, min_base=2, discriminator_norm="none"), Classification()),
    "spectral trunk": (SNGANClassifier(discriminator_width=4, attention=True), Classification(label_smoothing=0.1)),
    "encoder's trunk": (ConvVAEClassifier(width=4, norm="none"), Classification(focal_gamma=2.0)),
}


def state_after_one_step(images: Tensor) -> dict[str, dict[str, Tensor]]:
    """Of every case: gradients averaged over ranks and buffers, after one step on this rank's share of the images."""
    world = distributed.current(use_gpu=False)
    num = len(images) // world.world_size
    share = slice(num * world.rank, num * (world.rank + 1))
    device = torch.device("cpu")
    found: dict[str, dict[str, Tensor]] = {}
    for name, (model, objective) in CASES.items():
        torch.manual_seed(0)
        bare = model.build((1, 8, 8), 10)
        networks = Networks(bare, {key: distributed.wrap(module) for key, module in bare.items()})
        draws = Draws(seed=0, step=0, num_global=len(images), start=share.start, stop=share.stop, device=device)
        labels = (torch.arange(len(images)) % 10)[share]
        batch = Batch(images=images[share], labels=labels, step=0, samples_seen=0, draws=draws)
        networks.require_gradients(*bare)
        shared = objective.prepare(networks, batch)
        found[name] = {}
        for phase in objective.phases:
            networks.require_gradients(phase.module)
            module = bare[phase.module]
            module.zero_grad()
            for part in phase.parts:
                last = part == phase.parts[-1]
                with nullcontext() if last else distributed.no_sync(networks.wrapped[phase.module]):
                    loss, _ = objective.loss(phase.module, part, networks, batch, shared)
                    loss.backward()  # type: ignore[no-untyped-call]
                found[name][f"{phase.module}/{part}/loss"] = distributed.mean(loss.detach().clone())
            gradients = {f"{phase.module}/{k}": p.grad for k, p in module.named_parameters()}
            assert [k for k, gradient in gradients.items() if gradient is None] == []
            found[name] |= {k: gradient.clone() for k, gradient in gradients.items() if gradient is not None}
        for key, module in bare.items():
            found[name] |= {f"{key}/{k}": buffer.clone() for k, buffer in module.named_buffers()}
    return found


def test_autoencoders_and_classifiers_on_two_ranks_have_the_gradients_and_buffers_of_one_process() -> None:
    images = torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    one, both = state_after_one_step(images), run_ranks(state_after_one_step, 2, images)
    for name in CASES:
        for found in both:
            torch.testing.assert_close(found[name], one[name], atol=3e-5, rtol=1e-4)
