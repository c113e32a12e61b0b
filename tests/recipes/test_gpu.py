"""Training on a GPU, through the recipe; everything else stays on the CPU."""

import json
import subprocess

import pytest

from tests.fixtures import miniature


@pytest.mark.gpu
def test_trained_on_a_gpu_deployed_and_decoded_on_the_cpu(tmp_path):
    recipe, package, environment = miniature.make(tmp_path)
    config = miniature.write_config(recipe, "tiny", max_epoch=2, use_amp=True)
    words = ["--config", config, "--package", package, "--ngpu", "1", "--nj", "1"]
    ended = subprocess.run(
        [recipe / "run.sh", *words], cwd=recipe, env=environment, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr
    train = json.loads((recipe / "exp/tiny/train.json").read_text())
    assert (train["device"], train["epochs"]) == ("1 GPU", 2)
    assert "float16 autocast" in train["dtype"]
    deployed = json.loads((recipe / "exp/tiny/deploy/merged/deploy.json").read_text())
    assert deployed["verified"]["max_difference"] <= 1e-5
