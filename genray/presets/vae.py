"""Runs of autoencoders."""

from genray.anneal import Anneal
from genray.config import Cluster, Config, Data, Eval, Optim, Run, Train
from genray.models.hierarchical_vae import HierarchicalVAE
from genray.models.tokenizer import AdversarialTokenizer, Tokenizer
from genray.models.vae import MLPVAE, AdversarialVAE, ConvVAE
from genray.models.vae_gan import ConvVAEGAN
from genray.objectives.adversarial_tokenizer import AdversarialTokenization
from genray.objectives.elbo import ELBO
from genray.objectives.latent_adversarial import LatentAdversarial
from genray.objectives.rae import RAE
from genray.objectives.tokenizer import Tokenization
from genray.objectives.vae_gan import VAEGAN


def digits_vae() -> Config:
    """Convolutional VAE on scikit-learn's 8 x 8 digits.

    Hardware: one CPU core
    Time: 35 seconds
    Score: test ELBO -23.7 ± 0.1 nats, FID 18.1
    """
    return Config(
        run=Run(name="digits-vae"),
        data=Data(name="digits"),
        model=ConvVAE(latent_dim=16, width=32),
        objective=ELBO(kl_warmup_samples=10_000),
        optim=Optim(lr=1e-3),
        train=Train(num_steps=1500, global_batch_size=64, sample_every=250, ema_half_life=5_000),
        eval=Eval(num_samples=2_000),
    )


def mnist_vae() -> Config:
    """Convolutional VAE on MNIST with stochastic binarisation; its score is the test ELBO in nats.

    Hardware: one CPU core
    Time: 6 minutes
    Score: test ELBO -99.4 ± 0.1 nats, FID 15.2
    """
    return Config(
        run=Run(name="mnist-vae"),
        data=Data(name="mnist"),
        model=ConvVAE(latent_dim=32, width=32),
        objective=ELBO(kl_warmup_samples=50_000),
        optim=Optim(lr=1e-3),
        train=Train(num_steps=3000, global_batch_size=128, ema_half_life=20_000),
    )


def mnist_mlp_vae() -> Config:
    """VAE with one hidden layer of 400 units on binarised MNIST; its score is the likelihood in nats.

    Kingma and Welling's networks with 40 latents, for 500 epochs as where 89.8 nats were published.

    Hardware: one CPU core
    Time: 95 CPU-minutes, evaluation included
    Score: test NLL 89.26 ± 0.06 nats (200 importance samples)
    """
    return Config(
        run=Run(name="mnist-mlp-vae"),
        data=Data(name="mnist"),
        model=MLPVAE(latent_dim=40, hidden=400),
        objective=ELBO(kl_warmup_samples=500_000),
        optim=Optim(lr=1e-3, schedule="cosine"),
        train=Train(
            num_steps=235_000,
            global_batch_size=128,
            checkpoint_every=10_000,
            log_every=1_000,
            sample_every=50_000,
            ema_half_life=100_000,
        ),
        eval=Eval(metrics=("nll",), importance_samples=200),
    )


def mnist_iwae() -> Config:
    """Importance-weighted autoencoder: two layers of 200 units, 50 latents, 50 samples of them to an image.

    One sample at first, where the bound is the ELBO, and 50 for the last quarter of the images: an encoder that begins
    with 50 leaves it to the luck of the draws, and pays for each.

    Hardware: one CPU core
    Time: 2.7 hours of a shared machine, evaluation included
    Score: test NLL 87.32 ± 0.06 nats (200 importance samples)
    """
    return Config(
        run=Run(name="mnist-iwae"),
        data=Data(name="mnist"),
        model=MLPVAE(latent_dim=50, hidden=200, num_layers=2),
        objective=ELBO(bound="iwae", estimator="dreg", kl_warmup_samples=500_000),
        optim=Optim(lr=1e-3, schedule="cosine"),
        anneal=Anneal(to=("objective.num_samples=50",), samples=9_600_000, shape="geometric"),
        train=Train(
            num_steps=100_000,
            global_batch_size=128,
            checkpoint_every=5_000,
            log_every=1_000,
            sample_every=25_000,
            ema_half_life=100_000,
        ),
        eval=Eval(metrics=("nll",), importance_samples=200),
    )


def mnist_vampprior() -> Config:
    """VAE whose prior is the mean posterior of 500 pseudo-inputs that it learns: two layers of 300 units, 40 latents.

    Hardware: one CPU core
    Time: 2 hours of a shared machine, evaluation included
    Score: test NLL 84.75 ± 0.06 nats (200 importance samples), FID 0.49
    """
    return Config(
        run=Run(name="mnist-vampprior"),
        data=Data(name="mnist"),
        model=MLPVAE(latent_dim=40, hidden=300, num_layers=2, num_pseudo_inputs=500),
        objective=ELBO(kl_warmup_samples=500_000),
        optim=Optim(lr=2e-3, schedule="cosine"),
        train=Train(
            num_steps=150_000,
            global_batch_size=128,
            checkpoint_every=10_000,
            log_every=1_000,
            sample_every=50_000,
            ema_half_life=100_000,
        ),
        eval=Eval(metrics=("nll",), importance_samples=200),
    )


def mnist_rae() -> Config:
    """Regularised autoencoder (RAE-L2) of MNIST, to draw from after `genray fit`.

    Hardware: one CPU core
    Time: 46 CPU-seconds
    Score: FID 4.5 with a fitted mixture (features of mnist-classifier, 10,000 samples)
    """
    return Config(
        run=Run(name="mnist-rae"),
        data=Data(name="mnist"),
        model=ConvVAE(latent_dim=16, width=32),
        objective=RAE(decoder_l2=0.01),
        optim=Optim(lr=1e-3, schedule="cosine"),
        train=Train(num_steps=1500, global_batch_size=128, precision="bf16", ema_half_life=20_000),
    )


def digits_hierarchical_vae() -> Config:
    """Four latent maps of the digits, two of 2 x 2 and two of 4 x 4 places.

    Hardware: one CPU core
    Time: 45 seconds
    Score: test ELBO -23.8 ± 0.2 nats
    """
    return Config(
        run=Run(name="digits-hierarchical-vae"),
        data=Data(name="digits"),
        model=HierarchicalVAE(width=16, latent_channels=4),
        objective=ELBO(kl_warmup_samples=10_000),
        optim=Optim(lr=2e-3),
        train=Train(num_steps=1500, global_batch_size=64, sample_every=250, ema_half_life=5_000),
        eval=Eval(num_samples=2_000),
    )


def cifar10_hierarchical_vae() -> Config:
    """Twelve latent maps of CIFAR-10, pixels as mixtures of logistics; its score is in bits per dimension.

    Hardware: one GPU
    Time: not measured
    Score: not measured; published: 2.87 bits per dimension, of a network of twice the size
    """
    return Config(
        run=Run(name="cifar10-hierarchical-vae"),
        data=Data(name="cifar10", flip=True),
        model=HierarchicalVAE(
            width=128, latent_channels=16, num_halvings=3, blocks_per_level=4, output="logistic-mixture"
        ),
        objective=ELBO(likelihood="logistic-mixture", kl_warmup_samples=500_000),
        optim=Optim(lr=3e-4, schedule="cosine", warmup_samples=20_000),
        train=Train(num_steps=100_000, global_batch_size=64, checkpoint_every=5_000, sample_every=5_000),
        eval=Eval(metrics=("elbo", "bits_per_dim")),
        cluster=Cluster(use_gpu=True),
    )


def digits_vae_gan() -> Config:
    """VAE of the digits whose reconstructions are compared by the features of a discriminator.

    Hardware: one CPU core
    Time: 35 CPU-seconds
    Score: FID 17.2 ± 0.4, reconstruction FID 1.25 (features of digits-classifier); of digits-vae 18.1 and 3.47
    """
    return Config(
        run=Run(name="digits-vae-gan"),
        data=Data(name="digits"),
        model=ConvVAEGAN(latent_dim=16, width=32),
        objective=VAEGAN(beta=2.0),
        optim=Optim(lr=1e-3, betas=(0.5, 0.99)),
        train=Train(num_steps=1500, global_batch_size=64, sample_every=250, ema_half_life=5_000),
        eval=Eval(num_samples=2_000),
    )


def digits_factor_vae() -> Config:
    """Factor VAE of the digits: a discriminator tells its latents apart from shuffled ones.

    Hardware: one CPU core
    Time: 35 seconds
    Score: FID 15.2 ± 0.4 (features of digits-classifier, 2,000 samples), test ELBO -23.6 ± 0.3 nats
    """
    return Config(
        run=Run(name="digits-factor-vae"),
        data=Data(name="digits"),
        model=AdversarialVAE(latent_dim=16, hidden=256),
        objective=LatentAdversarial(gamma=5.0),
        optim=Optim(lr=1e-3, betas=(0.5, 0.99)),
        train=Train(num_steps=1500, global_batch_size=64, sample_every=250, ema_half_life=5_000),
        eval=Eval(num_samples=2_000),
    )


def digits_adversarial_autoencoder() -> Config:
    """Adversarial autoencoder of the digits: a discriminator draws its latents to the prior, in place of a KL term.

    Hardware: one CPU core
    Time: 35 seconds
    Score: FID 14.1 ± 0.9 (features of digits-classifier, 2,000 samples)
    """
    return Config(
        run=Run(name="digits-adversarial-autoencoder"),
        data=Data(name="digits"),
        model=AdversarialVAE(latent_dim=16, hidden=256),
        objective=LatentAdversarial(form="adversarial", beta=0.0, gamma=10.0),
        optim=Optim(lr=1e-3, betas=(0.5, 0.99)),
        train=Train(num_steps=1500, global_batch_size=64, sample_every=250, ema_half_life=5_000),
        eval=Eval(metrics=("fid",), num_samples=2_000),
    )


def digits_tokenizer() -> Config:
    """Vector-quantised autoencoder of the digits, 4 x 4 codes an image.

    Hardware: one CPU core
    Time: 30 seconds
    Score: test PSNR 25.4 dB
    """
    return Config(
        run=Run(name="digits-tokenizer"),
        data=Data(name="digits"),
        model=Tokenizer(num_codes=64, code_dim=8, width=16, num_downsamplings=1),
        objective=Tokenization(),
        optim=Optim(lr=1e-3),
        train=Train(num_steps=1000, global_batch_size=64, sample_every=250, ema_half_life=2_000),
    )


def mnist_tokenizer() -> Config:
    """Vector-quantised autoencoder of MNIST, 7 x 7 codes an image.

    Hardware: one CPU core
    Time: 16 CPU-minutes
    Score: test PSNR 27.6 dB, reconstruction FID 0.09 (features of mnist-classifier)
    """
    return Config(
        run=Run(name="mnist-tokenizer"),
        data=Data(name="mnist"),
        model=Tokenizer(num_codes=256, code_dim=16, width=16),
        objective=Tokenization(),
        optim=Optim(lr=1e-3, schedule="cosine"),
        train=Train(num_steps=3000, global_batch_size=64, ema_half_life=10_000),
    )


def cifar10_tokenizer() -> Config:
    """Finite scalar quantisation of CIFAR-10, 8 x 8 codes of 1,000 an image.

    Hardware: one GPU
    Time: not measured
    Score: not measured
    """
    return Config(
        run=Run(name="cifar10-tokenizer"),
        data=Data(name="cifar10", flip=True),
        model=Tokenizer(quantizer="fsq", width=64, num_blocks=2),
        objective=Tokenization(sigma=0.05),
        optim=Optim(lr=3e-4, schedule="cosine", warmup_samples=20_000),
        train=Train(num_steps=50_000, global_batch_size=128, precision="bf16", checkpoint_every=2_000),
        cluster=Cluster(use_gpu=True),
    )


def digits_kl_tokenizer() -> Config:
    """KL autoencoder of the digits, 2 x 2 continuous latents of 4 numbers an image.

    Hardware: one CPU core
    Time: 40 seconds
    Score: test PSNR 24.0 dB, reconstruction FID 0.32 (features of digits-classifier)
    """
    return Config(
        run=Run(name="digits-kl-tokenizer"),
        data=Data(name="digits"),
        model=Tokenizer(quantizer="none", code_dim=4, width=16),
        objective=Tokenization(),
        optim=Optim(lr=1e-3),
        train=Train(num_steps=1000, global_batch_size=64, sample_every=250, ema_half_life=2_000),
    )


def mnist_kl_tokenizer() -> Config:
    """KL autoencoder of MNIST, 7 x 7 continuous latents of 4 numbers an image.

    Hardware: one CPU core
    Time: 15 minutes of a shared machine
    Score: test PSNR 31.3 dB, reconstruction FID 0.07 (features of mnist-classifier)
    """
    return Config(
        run=Run(name="mnist-kl-tokenizer"),
        data=Data(name="mnist"),
        model=Tokenizer(quantizer="none", code_dim=4, width=16),
        objective=Tokenization(),
        optim=Optim(lr=1e-3, schedule="cosine"),
        train=Train(num_steps=3000, global_batch_size=64, ema_half_life=10_000),
    )


def cifar10_kl_tokenizer() -> Config:
    """KL autoencoder of CIFAR-10 before a patch discriminator, 8 x 8 continuous latents of 4 numbers an image.

    Hardware: one GPU
    Time: not measured
    Score: not measured
    """
    return Config(
        run=Run(name="cifar10-kl-tokenizer"),
        data=Data(name="cifar10", flip=True),
        model=AdversarialTokenizer(quantizer="none", code_dim=4, width=64, num_blocks=2, discriminator_width=64),
        objective=AdversarialTokenization(
            sigma=0.05, adversarial_start_samples=500_000, adversarial_warmup_samples=500_000
        ),
        optim=Optim(lr=3e-4, betas=(0.5, 0.9), schedule="cosine", warmup_samples=20_000),
        train=Train(num_steps=50_000, global_batch_size=128, precision="bf16", checkpoint_every=2_000),
        cluster=Cluster(use_gpu=True),
    )


def mnist_adversarial_tokenizer() -> Config:
    """Vector-quantised autoencoder of MNIST before a patch discriminator; objective.perceptual adds a classifier's eye.

    Hardware: one CPU core
    Time: 18 minutes of a shared machine
    Score: reconstruction FID 0.009 (features of mnist-classifier), test PSNR 26.6 dB
    """
    return Config(
        run=Run(name="mnist-adversarial-tokenizer"),
        data=Data(name="mnist"),
        model=AdversarialTokenizer(num_codes=256, code_dim=16, width=16, discriminator_width=16),
        objective=AdversarialTokenization(max_adversarial_weight=100.0),
        optim=Optim(lr=5e-4, betas=(0.5, 0.9), schedule="cosine"),
        train=Train(num_steps=2500, global_batch_size=64, ema_half_life=10_000),
    )


VAES = (
    digits_vae,
    mnist_vae,
    mnist_mlp_vae,
    mnist_iwae,
    mnist_vampprior,
    mnist_rae,
    digits_hierarchical_vae,
    cifar10_hierarchical_vae,
    digits_vae_gan,
    digits_factor_vae,
    digits_adversarial_autoencoder,
    digits_tokenizer,
    mnist_tokenizer,
    cifar10_tokenizer,
    digits_kl_tokenizer,
    mnist_kl_tokenizer,
    cifar10_kl_tokenizer,
    mnist_adversarial_tokenizer,
)
