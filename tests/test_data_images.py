"""Named sets, folders and zips -> splits of uint8 pixels."""

import socket
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from image_folders import break_image, folder_data, make_folder, make_zip, paint
from PIL import Image

from genray.config import Data
from genray.data import DATASETS, cache
from genray.data.folder import list_folder
from genray.data.images import ImageSet, load_images
from genray.data.pixels import decode
from genray.data.splits import stratified_split
from genray.errors import CorruptImageError, DataError

EXTENSIONS = "avif, bmp, gif, jpeg, jpg, pgm, png, ppm, tif, tiff, webp"
LAYOUT = "[train/ | test/]<class>/<image>"
SKIP = "repair or remove it, or leave such images out with --data.on-corrupt skip"


@pytest.fixture(autouse=True)
def no_data_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GENRAY_DATA", raising=False)


def pets(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "pets", [f"{c}/{i}.png" for c in ("cat", "dog") for i in range(5)])


def message(data: Data, split: str = "train", error: type[DataError] = DataError) -> str:
    with pytest.raises(error) as raised:
        load_images(data, split)
    assert raised.type is error
    return str(raised.value)


def pixel_files(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache").glob("*.pixels"))


def digits(split: str, **changes: Any) -> ImageSet:
    return load_images(Data(name="digits", **changes), split)


def test_digits_equal_those_of_scikit_learn() -> None:
    from sklearn.datasets import load_digits

    ours, theirs = digits("all"), load_digits()
    assert np.array_equal(ours.images[:, 0].numpy(), np.rint(theirs.images * 255 / 16))
    assert np.array_equal(ours.labels.numpy(), theirs.target)


def test_digits_split_has_the_asked_share_of_each_class() -> None:
    train, every = digits("train").labels.bincount(), digits("all").labels.bincount()
    assert torch.equal(train, (0.8 * every).round().long())


def test_digits_train_and_test_are_disjoint_and_complete() -> None:
    parts = stratified_split(digits("all").labels.numpy(), 0.8, 0)
    assert sorted([*parts["train"], *parts["test"]]) == list(range(1797))


def test_digits_split_is_deterministic() -> None:
    assert digits("train").digest == digits("train").digest


def test_digits_split_depends_on_its_seed() -> None:
    assert digits("train").digest != digits("train", split_seed=1).digest


def test_digits_are_uint8_of_the_announced_shape() -> None:
    train = digits("train")
    assert (train.images.dtype, train.labels.dtype) == (torch.uint8, torch.int64)
    assert train.images.shape[1:] == DATASETS["digits"].shape


def test_digits_resized_and_coloured_have_that_shape() -> None:
    assert digits("test", image_size=(16, 12), channels=3).images.shape[1:] == (3, 16, 12)


def test_digits_without_such_a_split_say_which_there_are() -> None:
    assert message(Data(name="digits"), "val") == "'digits' has no split 'val'; choose from all, test, train"


def test_split_of_a_class_of_one_image_is_train() -> None:
    parts = stratified_split(np.array([0, 0, 1]), 0.5, 0)
    assert (len(parts["train"]), len(parts["test"])) == (2, 1)
    assert 2 in parts["train"]


@pytest.mark.data
def test_mnist_has_the_known_shape_and_first_labels(data_root: Path, tmp_path: Path) -> None:
    test = load_images(Data(name="mnist", root=str(data_root), cache=str(tmp_path)), "test")
    assert test.images.shape == (10_000, 1, 28, 28)
    assert test.labels[:8].tolist() == [7, 2, 1, 0, 4, 1, 4, 9]
    assert test.images[0].sum() == 18_454


@pytest.mark.data
def test_mnist_is_found_by_the_environment_variable(
    data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GENRAY_DATA", str(data_root))
    assert len(load_images(Data(name="mnist", cache=str(tmp_path)), "test")) == 10_000


@pytest.mark.data
@pytest.mark.slow
def test_cifar10_zip_is_read_whole(data_root: Path, tmp_path: Path) -> None:
    data = Data(name="cifar10", root=str(data_root), cache=str(tmp_path))
    train, test = load_images(data, "train"), load_images(data, "test")
    assert (train.images.shape, test.images.shape) == ((50_000, 3, 32, 32), (10_000, 3, 32, 32))
    assert train.labels.bincount().tolist() == [5000] * 10
    assert train.classes[:3] == ("airplane", "automobile", "bird")


@pytest.mark.data
def test_cifar10_images_of_the_zip_equal_pillows(data_root: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(data_root / "cifar10-jpeg.zip") as whole, zipfile.ZipFile(tmp_path / "part.zip", "w") as part:
        names = [name for name in whole.namelist() if name.endswith(("000.jpg", "001.jpg"))]
        for name in names:
            part.writestr(name, whole.read(name))
        with whole.open("cifar10/test/frog/0000.jpg") as file, Image.open(file) as image:
            frog = np.asarray(image)
    data = Data(name="cifar10", root=str(tmp_path / "part.zip"), cache=str(tmp_path))
    test = load_images(data, "test")
    first = int((test.labels == test.classes.index("frog")).nonzero()[0])
    assert np.array_equal(test.images[first].permute(1, 2, 0).numpy(), frog)


def test_cifar10_folder_with_other_classes_is_refused(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "pets", ["train/cat/1.png"])
    assert message(Data(name="cifar10", root=str(root), cache=str(tmp_path))) == (
        f"data.root='{root}' has 1 classes, and 'cifar10' has 10; give another --data.root, or say --data.name folder"
    )


def test_missing_root_names_the_cure(tmp_path: Path) -> None:
    assert message(Data(name="mnist", cache=str(tmp_path))) == (
        "data.root is not set, and neither is $GENRAY_DATA: 'mnist' is read from disk; "
        "give its folder with --data.root or set GENRAY_DATA, or fetch it with --data.download"
    )


def test_missing_files_are_named(tmp_path: Path) -> None:
    assert message(Data(name="fashion-mnist", root=str(tmp_path), cache=str(tmp_path))) == (
        f"'fashion-mnist' is not under '{tmp_path}': FashionMNIST/raw/train-images-idx3-ubyte is missing; "
        "give its folder with --data.root or set GENRAY_DATA, or fetch it with --data.download"
    )


def test_unknown_split_of_a_named_set_is_refused(tmp_path: Path) -> None:
    data = Data(name="mnist", root=str(tmp_path))
    assert message(data, "val") == "'mnist' has no split 'val'; choose from test, train"


def test_folder_and_zip_give_equal_sets(tmp_path: Path) -> None:
    root = pets(tmp_path)
    one = load_images(folder_data(root, tmp_path), "train")
    two = load_images(folder_data(make_zip(root), tmp_path), "train")
    assert torch.equal(one.images, two.images)
    assert (one.digest, one.classes) == (two.digest, two.classes)


def test_folder_without_splits_is_split_class_by_class(tmp_path: Path) -> None:
    data = folder_data(pets(tmp_path), tmp_path)
    counts = {split: load_images(data, split).labels.bincount().tolist() for split in ("train", "test", "all")}
    assert counts == {"train": [4, 4], "test": [1, 1], "all": [5, 5]}


def test_large_folder_keeps_the_order_of_its_files(tmp_path: Path) -> None:
    names = [f"cat/{i:03}.bmp" for i in range(500)]
    root = make_folder(tmp_path / "cats", names)
    found = load_images(folder_data(root, tmp_path), "all").images.permute(0, 2, 3, 1).numpy()
    assert np.array_equal(found, np.stack([decode((root / name).read_bytes(), (3, 8, 8)) for name in names]))


def test_folder_splits_are_its_directories(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "pets", ["top/train/cat/1.png", "top/train/dog/1.jpg", "top/test/dog/2.png"])
    data = folder_data(root, tmp_path)
    assert load_images(data, "train").labels.tolist() == [0, 1]
    assert load_images(data, "test").labels.tolist() == [1]


def test_folder_with_train_only_has_no_test(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "pets", ["train/cat/1.png"])
    assert message(folder_data(root, tmp_path), "test") == f"'{root}' has no split 'test'; choose from train"


def test_folder_with_a_class_called_train_has_no_splits(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "vehicles", ["bus/1.png", "train/1.png"])
    assert list_folder(root).classes == ("bus", "train")


def test_folder_of_one_class_keeps_it(tmp_path: Path) -> None:
    assert list_folder(make_folder(tmp_path / "pets", ["cat/1.png", "cat/2.png"])).classes == ("cat",)


def test_folder_leaves_out_hidden_and_other_files(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "pets", ["cat/1.png", "cat/.2.png", ".dog/3.png"])
    (root / "README.txt").write_text("pets")
    assert list_folder(root).splits == {"": (("cat/1.png", 0),)}


def test_empty_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pets" / "cat").mkdir(parents=True)
    assert message(folder_data(tmp_path / "pets", tmp_path)) == (
        f"data.root='{tmp_path / 'pets'}' holds no images ({EXTENSIONS}); expected {LAYOUT}"
    )


def test_absent_folder_is_refused(tmp_path: Path) -> None:
    assert message(folder_data(tmp_path / "pets", tmp_path)) == (
        f"data.root='{tmp_path / 'pets'}' does not exist; give a directory or zip with {LAYOUT}"
    )


def test_file_that_is_no_zip_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pets.zip").write_bytes(b"cats")
    assert message(folder_data(tmp_path / "pets.zip", tmp_path)) == (
        f"data.root='{tmp_path / 'pets.zip'}' is not a readable zip (File is not a zip file); "
        f"give a directory or zip with {LAYOUT}"
    )


@pytest.mark.parametrize("names", [["1.png", "cat/2.png"], ["top/1.png", "top/cat/2.png", "top/dog/3.png"]])
def test_image_outside_a_class_is_refused(tmp_path: Path, names: list[str]) -> None:
    root = make_folder(tmp_path / "pets", names)
    assert message(folder_data(root, tmp_path)) == (
        f"data.root='{root}' has '{names[0]}' outside any class; expected {LAYOUT}"
    )


def test_class_beside_a_split_is_refused(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "pets", ["train/cat/1.png", "dog/2.png"])
    assert message(folder_data(root, tmp_path)) == (
        f"data.root='{root}' has 'dog/2.png' beside the split 'train'; expected {LAYOUT}"
    )


def test_class_of_one_image_each_leaves_no_test(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "pets", ["cat/1.png", "dog/1.png"])
    assert message(folder_data(root, tmp_path), "test") == (
        "'folder' has one image a class, so its split 'test' is empty; add images or say 'all'"
    )


def test_corrupt_image_of_a_folder_is_named(tmp_path: Path) -> None:
    root = pets(tmp_path)
    (root / "cat" / "3.png").write_bytes(b"meow")
    assert message(folder_data(root, tmp_path), "all", CorruptImageError) == (
        f"{root}/cat/3.png does not decode (4 bytes that are no image); {SKIP}"
    )


def test_truncated_image_of_a_zip_is_named(tmp_path: Path) -> None:
    root = pets(tmp_path)
    break_image(root, "dog/0.png")
    assert message(folder_data(make_zip(root), tmp_path), "all", CorruptImageError) == (
        f"{root}.zip!dog/0.png does not decode (image file is truncated); {SKIP}"
    )


def test_corrupt_image_leaves_no_cache(tmp_path: Path) -> None:
    root = pets(tmp_path)
    break_image(root, "dog/0.png")
    message(folder_data(root, tmp_path), "all", CorruptImageError)
    assert [path.suffix for path in (tmp_path / "cache").iterdir() if path.suffix in (".pixels", ".part")] == []


def test_skipped_images_are_counted_and_the_rest_stays_in_order(tmp_path: Path) -> None:
    root = pets(tmp_path)
    whole = load_images(folder_data(root, tmp_path), "all")
    break_image(root, "cat/3.png")
    rest = load_images(folder_data(root, tmp_path, on_corrupt="skip"), "all")
    kept = [i for i in range(10) if i != 3]
    assert rest.num_skipped == 1
    assert torch.equal(rest.images, whole.images[kept])
    assert torch.equal(rest.labels, whole.labels[kept])


def test_cache_with_skipped_images_still_stops_who_asks_to_stop(tmp_path: Path) -> None:
    root = pets(tmp_path)
    (root / "cat" / "3.png").write_bytes(b"meow")
    load_images(folder_data(root, tmp_path, on_corrupt="skip"), "all")
    assert message(folder_data(root, tmp_path), "all", CorruptImageError) == (
        f"{root}/cat/3.png does not decode (4 bytes that are no image); {SKIP}"
    )


def test_set_without_one_whole_image_is_refused(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "pets", ["cat/1.png"])
    break_image(root, "cat/1.png")
    assert message(folder_data(root, tmp_path, on_corrupt="skip")) == (
        f"data.root='{root}': not one image of split 'train' decodes; check the files"
    )


def test_cached_set_equals_the_first_one(tmp_path: Path) -> None:
    data = folder_data(pets(tmp_path), tmp_path)
    one, two = load_images(data, "train"), load_images(data, "train")
    assert torch.equal(one.images, two.images)
    assert torch.equal(one.labels, two.labels)
    assert one.digest == two.digest


def test_cached_digest_is_that_of_the_pixels(tmp_path: Path) -> None:
    found = load_images(folder_data(pets(tmp_path), tmp_path), "train")
    pixels = found.images.permute(0, 2, 3, 1).contiguous().numpy()
    assert found.digest == cache.pixel_digest(pixels, found.labels.numpy())


def test_changed_image_is_decoded_anew(tmp_path: Path) -> None:
    data = folder_data(pets(tmp_path), tmp_path)
    before = load_images(data, "all").digest
    paint(99).save(tmp_path / "pets" / "cat" / "0.png")
    assert load_images(data, "all").digest != before


def test_copy_of_a_folder_shares_its_cache(tmp_path: Path) -> None:
    names = ["cat/1.png", "dog/2.png"]
    for name in ("a", "b"):
        load_images(folder_data(make_folder(tmp_path / name, names), tmp_path), "all")
    assert len(pixel_files(tmp_path)) == 1


@pytest.mark.parametrize("damage", ["truncated", "flipped", "foreign", "empty"])
def test_damaged_cache_is_rebuilt(tmp_path: Path, damage: str) -> None:
    data = folder_data(pets(tmp_path), tmp_path)
    one = load_images(data, "train")
    whole = one.images.clone()
    (path,) = pixel_files(tmp_path)
    content = path.read_bytes()
    flipped = bytes([content[0] ^ 1]) + content[1:]
    path.unlink()
    path.write_bytes({"truncated": content[:-1], "flipped": flipped, "foreign": b"x" * 999, "empty": b""}[damage])
    two = load_images(data, "train")
    assert torch.equal(two.images, whole)
    assert cache.load(path) is not None
    assert two.digest == one.digest


def test_leftover_of_a_killed_process_is_removed(tmp_path: Path) -> None:
    data = folder_data(pets(tmp_path), tmp_path)
    load_images(data, "train")
    (path,) = pixel_files(tmp_path)
    path.rename(path.with_name(f"{path.name}.{socket.gethostname()}-1.part"))
    load_images(data, "train")
    assert list(path.parent.glob("*.part")) == []


def test_cache_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("")
    path = tmp_path / "cache"
    found = message(folder_data(pets(tmp_path), tmp_path))
    assert found.startswith(f"data.cache='{path}' cannot be used (")
    assert found.endswith("); give a folder with free space as --data.cache")


LOAD = """
import sys, time
from pathlib import Path
from genray.config import Data
from genray.data.images import load_images
root, folder, me = sys.argv[1:]
Path(folder, me).touch()
while not Path(folder, "go").exists():
    time.sleep(0.001)
found = load_images(Data(name="folder", root=root, image_size=(8, 8), cache=folder), "all")
(path,) = Path(folder).glob("*.pixels")
print(found.digest, path.stat().st_ino)
"""


def test_two_processes_at_once_decode_once(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "many", [f"{c}/{i}.png" for c in ("a", "b") for i in range(200)])
    folder = tmp_path / "cache"
    folder.mkdir()
    command = [sys.executable, "-c", LOAD, str(root), str(folder)]
    running = [subprocess.Popen([*command, me], stdout=subprocess.PIPE, text=True) for me in ("one", "two")]
    while not all((folder / me).exists() for me in ("one", "two")):
        assert all(process.poll() is None for process in running)
        time.sleep(0.01)
    (folder / "go").touch()
    outputs = [process.communicate()[0] for process in running]
    assert outputs[0] == outputs[1] != ""
    assert len(pixel_files(tmp_path)) == 1
