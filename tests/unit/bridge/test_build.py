"""Models that cannot be built: one line."""

import pytest

from espnet_ext.errors import UserError
from espnet_ext.experiment import Experiment


@pytest.mark.parametrize(
    "option",
    [
        "attention_heads: 0",
        "num_blocks: 1000000000",
        "num_blocks: 9999999",
        "linear_units: 9000000",
    ],
)
def test_a_model_that_cannot_be_is_one_line(tmp_path, option):
    from espnet_ext.bridge.build import build_model

    path = tmp_path / "train_x.yaml"
    small = "output_size: 2, linear_units: 1, cnn_module_kernel: 1, attention_heads: 1"
    conf = ", ".join([*(word for word in small.split(", ") if word[:9] != option[:9]), option])
    path.write_text(f"encoder: conformer\nencoder_conf: {{{conf}}}\ntoken_type: char\n")
    with pytest.raises(UserError, match=r"train_x.yaml: the model does not build") as error:
        build_model(Experiment.load(path))
    assert "\n" not in str(error.value)
