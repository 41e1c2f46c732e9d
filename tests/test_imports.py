"""The core is the core: it needs neither Ray nor MLflow."""

import pkgutil
import subprocess
import sys

import genray

CORE = sorted(
    m.name
    for m in pkgutil.walk_packages(genray.__path__, "genray.")
    if not m.name.split(".")[-1].startswith(("ray_", "mlflow_", "__main__"))
)
BLOCK = "import sys; sys.modules.update(ray=None, mlflow=None); "


def test_every_core_module_imports_with_ray_and_mlflow_blocked():
    subprocess.run([sys.executable, "-c", BLOCK + "; ".join(f"import {name}" for name in CORE)], check=True)


def test_a_gan_and_a_vae_train_a_step_with_ray_and_mlflow_blocked(tmp_path):
    program = BLOCK + (
        "from dataclasses import replace; from genray.presets import preset; from genray.trainer import train; "
        "from genray.data.images import load_images; from genray.storage import RunFolder; "
        "from genray.distributed import current\n"
        "for name in ('digits-dcgan', 'digits-vae'):\n"
        "    config = preset(name)\n"
        "    config = replace(config, train=replace(config.train, num_steps=1))\n"
        f"    folder = RunFolder.open({str(tmp_path)!r}, name)\n"
        "    assert train(config, load_images(config.data, 'train'), folder, current(False)).step == 1\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
