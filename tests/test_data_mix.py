"""Generated data sets, and what a run trains on when they are mixed in."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny_config
from evaluation_snapshots import save_classifier, save_generator, save_vae
from pyarrow import fs

from genray import ray_generate, snapshot
from genray.config import Config, Data, differences
from genray.data import generated
from genray.data import mix as mix_module
from genray.data.generated import Request, request_for
from genray.data.images import ImageSet, load_images
from genray.data.mix import Mix, training_images
from genray.errors import ConfigError, DataError
from genray.storage import RunFolder

ROOT = Path(__file__).parents[1]
DIGITS = Data(name="digits")


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory: Path = save_generator(tmp_path_factory.mktemp("generator") / "snapshot", conditional=True)
    return directory


def wanted(generator: Path, **changes: Any) -> Request:
    return request_for(snapshot.load(generator), "g", None, **({"num": 1100, "shard_size": 250, "seed": 3} | changes))


@pytest.fixture(scope="module")
def made(generator: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A generated set of digits, and its digest."""
    folder = tmp_path_factory.mktemp("made") / "set"
    return folder, ray_generate.write(folder, wanted(generator), generator, num_workers=0)


def test_generated_set_holds_every_class_in_turn(made: tuple[Path, str]) -> None:
    images = generated.load(made[0])
    assert images.images.shape == (1100, 1, 8, 8) and images.classes == tuple("0123456789")
    assert torch.bincount(images.labels).tolist() == [110] * 10


def test_generated_shard_is_a_data_set_of_its_own(made: tuple[Path, str], tmp_path: Path) -> None:
    data = Data(
        name="folder", root=str(made[0] / "shard-00004.zip"), image_size=(8, 8), channels=1, cache=str(tmp_path)
    )
    whole = generated.load(made[0])
    assert load_images(data, "all").images.shape == (100, 1, 8, 8)
    order = whole.labels[1000:].argsort(stable=True)
    assert torch.equal(load_images(data, "all").images, whole.images[1000:][order])


def test_generated_shards_differ(made: tuple[Path, str]) -> None:
    images = generated.load(made[0]).images
    assert not torch.equal(images[:250], images[250:500])


def test_generated_set_of_another_seed_is_another(generator: Path, made: tuple[Path, str], tmp_path: Path) -> None:
    assert ray_generate.write(tmp_path / "set", wanted(generator, seed=4), generator, num_workers=0) != made[1]


@pytest.mark.ray
@pytest.mark.slow
def test_generated_set_killed_and_resumed_by_two_workers_has_the_digest_of_one_untouched(
    generator: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    request = request_for(snapshot.load(generator), generator.name, None, num=9000, shard_size=500)
    whole = ray_generate.write(tmp_path / "whole", request, generator, num_workers=0)
    command = [sys.executable, "jobs/generate.py", str(generator), "--out", str(tmp_path / "killed")]
    command += ["--num", "9000", "--shard-size", "500", "--num-workers", "0"]
    victim = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    while len(list((tmp_path / "killed").glob("*.zip"))) < 3:
        assert victim.poll() is None
        time.sleep(0.002)
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    assert 3 <= len(list((tmp_path / "killed").glob("*.zip"))) < request.num_shards
    assert ray_generate.write(tmp_path / "killed", request, generator, num_workers=2) == whole


def test_generated_set_is_not_gone_on_with_under_another_request(generator: Path, made: tuple[Path, str]) -> None:
    with pytest.raises(ConfigError, match=r"has another data set: seed: 3 -> 4; use those values, or another folder"):
        ray_generate.write(made[0], wanted(generator, seed=4), generator, num_workers=0)


def test_generated_set_that_is_not_finished_is_refused(generator: Path, tmp_path: Path) -> None:
    request = wanted(generator)
    generated.claim(tmp_path / "set", request)
    generated.write_shard(tmp_path / "set", request, snapshot.load(generator), 0)
    with pytest.raises(DataError, match="is not finished: run the same genray generate again"):
        generated.load(tmp_path / "set")


def test_generated_shard_that_is_damaged_is_named(generator: Path, tmp_path: Path) -> None:
    ray_generate.write(tmp_path, wanted(generator), generator, num_workers=0)
    path = tmp_path / "shard-00001.zip"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(DataError, match=r"shard-00001\.zip is missing or damaged; delete it"):
        generated.load(tmp_path)


def test_generated_set_in_an_object_store_is_copied_and_a_damaged_copy_is_replaced(
    made: tuple[Path, str], tmp_path: Path
) -> None:
    shutil.copytree(made[0], tmp_path / "store" / "set")
    store = fs.SubTreeFileSystem(str(tmp_path / "store"), fs.LocalFileSystem())
    folder = RunFolder(tmp_path / "scratch", store)
    place = generated.copied(folder, "set")
    assert place == tmp_path / "scratch" / "set"
    assert generated.load(place).digest == generated.load(made[0]).digest
    before = place.stat().st_ino
    assert generated.copied(folder, "set").stat().st_ino == before
    (place / "shard-00001.zip").write_bytes(b"x")
    assert generated.load(generated.copied(folder, "set")).digest == generated.load(made[0]).digest


def test_uri_that_is_no_folder_of_a_run_is_refused() -> None:
    with pytest.raises(DataError, match=r"'s3://bucket/fakes' is no folder of a run in a storage; expected e\.g\. s3:"):
        training_images(DIGITS, Mix(sources=("s3://bucket/fakes",)))


def test_unconditional_generator_files_its_images_under_the_class_it_is_told(tmp_path: Path) -> None:
    vae = snapshot.load(save_vae(tmp_path / "vae"))
    with pytest.raises(ConfigError, match="v is unconditional: say which class its images are of"):
        request_for(vae, "v", None, num=4)
    assert request_for(vae, "v", "7", num=4).classes == ("7",)


def test_generate_refuses_a_classifier(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is a classifier, which makes no images"):
        request_for(snapshot.load(save_classifier(tmp_path / "c")), "c", None, num=4)


def test_run_without_a_mix_trains_on_the_split_itself(digits: ImageSet) -> None:
    assert training_images(DIGITS, Mix()).digest == digits.digest


@pytest.mark.parametrize("fraction", [0.1, 0.5])
def test_real_fraction_keeps_its_share_of_every_class(digits: ImageSet, fraction: float) -> None:
    kept = training_images(DIGITS, Mix(real_fraction=fraction))
    before, after = (torch.bincount(images.labels) for images in (digits, kept))
    assert after.tolist() == [round(fraction * count) for count in before.tolist()]
    own = {image.numpy().tobytes() for image in digits.images.contiguous()}
    assert all(image.numpy().tobytes() in own for image in kept.images.contiguous())


def test_smaller_real_fraction_is_part_of_the_larger(digits: ImageSet) -> None:
    few, more = (training_images(DIGITS, Mix(real_fraction=f)) for f in (0.1, 0.2))
    assert {i.numpy().tobytes() for i in few.images.contiguous()} <= {
        i.numpy().tobytes() for i in more.images.contiguous()
    }


def test_mix_adds_its_ratio_of_generated_images_to_every_class(made: tuple[Path, str]) -> None:
    mix = Mix(real_fraction=0.3, sources=(str(made[0]),), ratio=2.0)
    real, mixed = training_images(DIGITS, replace(mix, sources=())), training_images(DIGITS, mix)
    assert torch.equal(mixed.images[: len(real)], real.images)
    counts = [torch.bincount(labels, minlength=10) for labels in (real.labels, mixed.labels[len(real) :])]
    assert torch.equal(counts[1], 2 * counts[0])
    whole = generated.load(made[0])
    places = {
        image.numpy().tobytes(): int(label)
        for image, label in zip(whole.images.contiguous(), whole.labels, strict=True)
    }
    added = mixed.images[len(real) :].contiguous()
    assert [places[image.numpy().tobytes()] for image in added] == mixed.labels[len(real) :].tolist()


def test_mix_balances_rare_classes(made: tuple[Path, str]) -> None:
    mixed = training_images(DIGITS, Mix(sources=(str(made[0]),), balance=True))
    assert len(set(torch.bincount(mixed.labels).tolist())) == 1


def test_mix_of_another_seed_has_other_images(made: tuple[Path, str]) -> None:
    mix = Mix(real_fraction=0.3, sources=(str(made[0]),))
    assert training_images(DIGITS, mix).digest == training_images(DIGITS, mix).digest
    assert training_images(DIGITS, mix).digest != training_images(DIGITS, replace(mix, seed=1)).digest


def test_mix_leaves_out_what_its_judge_does_not_believe(made: tuple[Path, str], tmp_path: Path) -> None:
    def prefer_three(module: Any) -> None:
        module.head.weight.zero_()
        module.head.bias.copy_(torch.tensor([1.0, 1, 1, 3, 1, 1, 1, 1, 1, 1]))

    judge = save_classifier(tmp_path / "judge", change=prefer_three)
    mix = Mix(real_fraction=0.1, sources=(str(made[0]),), ratio=1.0, judge=str(judge), min_confidence=0.3)
    with pytest.raises(
        DataError, match=r"class '0' wants 14 generated images, and mix\.sources has 0 of it; .*lower mix"
    ):
        training_images(DIGITS, mix)
    assert len(training_images(DIGITS, replace(mix, min_confidence=0.01))) == 2 * len(
        training_images(DIGITS, Mix(real_fraction=0.1))
    )


def save_repeater(directory: Path, image: torch.Tensor) -> Path:
    """A snapshot of an unconditional VAE all of whose samples are `image`, (1, 8, 8) uint8."""

    def repeat(module: Any) -> None:
        last = module.decoder[-2]
        last.weight.zero_()
        last.bias.copy_(torch.logit(image.flatten() / 255))

    saved: Path = save_vae(directory, change=repeat)
    return saved


def write_repeated(folder: Path, image: torch.Tensor, as_class: str, num: int) -> str:
    """Writes `num` times the same image as a generated set of one class; its folder."""
    source = save_repeater(folder / "snapshot", image)
    request = request_for(snapshot.load(source), "v", as_class, num=num)
    ray_generate.write(folder / "set", request, source, num_workers=0)
    return str(folder / "set")


def test_one_generator_a_class_makes_up_a_mix(digits: ImageSet, tmp_path: Path) -> None:
    firsts = [digits.images[int((digits.labels == label).nonzero()[0, 0])] for label in range(10)]
    sources = tuple(write_repeated(tmp_path / str(n), image, str(n), 15) for n, image in enumerate(firsts))
    mix = Mix(real_fraction=0.1, sources=sources)
    num_real = len(training_images(DIGITS, replace(mix, sources=())))
    mixed = training_images(DIGITS, mix)
    assert len(mixed) == 2 * num_real
    assert all(
        torch.equal(image, firsts[int(label)])
        for image, label in zip(mixed.images[num_real:], mixed.labels[num_real:], strict=True)
    )
    with pytest.raises(DataError, match=r"class '9' wants 14 generated images, and mix\.sources has 0 of it"):
        training_images(DIGITS, replace(mix, sources=sources[:9]))


def test_mix_leaves_out_copies_of_real_images(digits: ImageSet, made: tuple[Path, str], tmp_path: Path) -> None:
    mix = Mix(sources=(str(made[0]),), ratio=0.01, copy_quantile=0.2)
    copied = replace(mix, sources=(*mix.sources, write_repeated(tmp_path, digits.images[7], "0", 500)))
    plain, cleaned = training_images(DIGITS, mix), training_images(DIGITS, copied)
    assert plain.left_out == "0 of 1100 as copies of real ones"
    assert cleaned.left_out == "500 of 1600 as copies of real ones" and cleaned.digest == plain.digest
    assert training_images(DIGITS, replace(copied, copy_quantile=0)).digest != plain.digest


def test_copy_is_what_is_as_near_as_the_quantile_of_real_images_are_to_each_other(digits: ImageSet) -> None:
    pixels = digits.images.flatten(1).double()
    own = torch.cdist(pixels, pixels, compute_mode="donot_use_mm_for_euclid_dist").fill_diagonal_(torch.inf).amin(1)
    shifted = digits.images.clone()
    shifted[:, 0, 0, 0] += 40  # a corner that digits leave black: 40 away from the image itself
    near = (torch.cdist(shifted.flatten(1).double(), pixels)).amin(1)
    for quantile in (0.005, 0.05):
        threshold = own.sort().values[int(quantile * (len(own) - 1))]
        found = mix_module._original(Mix(sources=("a",), copy_quantile=quantile), digits.images, shifted)
        assert torch.equal(found, near > threshold)


def test_mix_of_nothing_but_copies_in_a_class_is_refused(digits: ImageSet, tmp_path: Path) -> None:
    source = write_repeated(tmp_path, digits.images[0], str(int(digits.labels[0])), 200)
    name = digits.classes[int(digits.labels[0])]
    with pytest.raises(DataError, match=rf"class '{name}' wants \d+ .* has 0 of it; .* or mix\.copy_quantile"):
        training_images(DIGITS, Mix(sources=(source,), copy_quantile=0.05))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": tuple("0123456798")}, r"tells 0, 1, 2, 3, 4, 5, 6, 7, 9, 8 apart on images \(1, 8, 8\)"),
        ({"data": Data(name="digits", image_size=(16, 16))}, r"apart on images \(1, 16, 16\), and 'digits' has"),
    ],
)
def test_judge_of_other_classes_or_another_size_is_refused(
    made: tuple[Path, str], tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    judge = save_classifier(tmp_path / "judge", **options)
    with pytest.raises(ConfigError, match=message):
        training_images(DIGITS, Mix(real_fraction=0.1, sources=(str(made[0]),), judge=str(judge)))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (Data(name="digits", image_size=(10, 10)), r"has images \(1, 8, 8\) in .* are \(1, 10, 10\) \(C, H, W\)"),
        (DIGITS, r"has classes ten in .*, which 'digits' has not \(0, 1, 2"),
    ],
)
def test_mix_refuses_images_that_do_not_fit(made: tuple[Path, str], tmp_path: Path, data: Data, message: str) -> None:
    source = made[0]
    if data is DIGITS:
        vae = save_vae(tmp_path / "vae")
        request = request_for(snapshot.load(vae), "v", "ten", num=4)
        ray_generate.write(tmp_path / "set", request, vae, num_workers=0)
        source = tmp_path / "set"
    with pytest.raises(DataError, match=message):
        training_images(data, Mix(sources=(str(source),)))


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"real_fraction": 0.0}, r"mix\.real_fraction=0\.0 must lie in \(0, 1\], e\.g\. 0\.1"),
        ({"ratio": -1.0}, r"mix\.ratio=-1\.0 must be at least 0"),
        ({"min_confidence": 1.1}, r"mix\.min_confidence=1\.1 must lie in \[0, 1\]"),
        ({"copy_quantile": 1.0}, r"mix\.copy_quantile=1\.0 must lie in \[0, 1\), e\.g\. 0\.05"),
        ({"copy_quantile": 0.1}, r"and mix\.sources names none; set it"),
        ({"balance": True}, r"and mix\.sources names none; set it"),
    ],
)
def test_mix_refuses_what_it_cannot_do(knobs: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Mix(**knobs)


def test_run_goes_on_when_its_generated_images_have_moved() -> None:
    here, there = (tiny_config(mix=Mix(sources=(place,), judge=place)) for place in ("/here", "/there"))
    assert differences(here, there) == []
    assert differences(here, replace(there, mix=replace(there.mix, ratio=2.0))) == ["mix.ratio: 1.0 -> 2.0"]


def test_mix_is_saved_with_the_config(made: tuple[Path, str]) -> None:
    config = tiny_config(mix=Mix(sources=(str(made[0]),), ratio=0.5))
    assert Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert np.isclose(config.to_dict()["mix"]["ratio"], 0.5)
