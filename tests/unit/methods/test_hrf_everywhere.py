"""HRF at every site, ratio and number of factors, on the three architectures of its paper.

Built and merged at a small width: outputs, parameters, shapes and operations of the plain model.
"""

import functools

import pytest
import torch
from espnet2.asr.encoder.conformer_encoder import ConformerEncoder
from espnet2.asr.encoder.transformer_encoder import TransformerEncoder
from torch import nn

from espnet_ext.bridge.configs.footprint import macs_per_second
from espnet_ext.encoders.compressed import compress_head, compressed_encoder
from espnet_ext.encoders.speechformer import SpeechFormerEncoder
from espnet_ext.methods.deploy import deploy, footprint, parameter_count
from espnet_ext.methods.registry import METHODS
from espnet_ext.models.cls import MLPDecoder

FEATURES, CLASSES = 12, 7
_TINY = {"output_size": 12, "attention_heads": 3, "linear_units": 10, "num_blocks": 1}
ENCODERS = {
    "convtransformer": (TransformerEncoder, {"input_layer": "conv2d", **_TINY}),
    "conformer": (
        ConformerEncoder,
        {
            "input_layer": "conv2d",
            "macaron_style": True,
            "rel_pos_type": "latest",
            "pos_enc_layer_type": "rel_pos",
            "selfattention_layer_type": "rel_selfattn",
            "cnn_module_kernel": 5,
            **_TINY,
        },
    ),
    "speechformer": (SpeechFormerEncoder, {**_TINY, "num_blocks": [1, 1, 1, 1]}),
}


class Classifier(nn.Module):
    """Encoder and head, named as in ESPnet's model."""

    classification_type = "multi-class"

    def __init__(self, name: str, hrf: dict | None):
        super().__init__()
        base, conf = ENCODERS[name]
        made = compressed_encoder(base, METHODS["hrf"]) if hrf else base
        self.encoder = made(FEATURES, **conf, **({"hrf": hrf} if hrf else {}))
        self.decoder = MLPDecoder(CLASSES, self.encoder.output_size(), num_layers=2)
        compress_head(self.encoder, self.decoder)

    def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        x, lengths, _ = self.encoder(x, lengths)
        return self.decoder(x, lengths)


def randomised(model: nn.Module) -> nn.Module:
    """Other parameters and statistics than those of initialisation; products keep their size."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            spread = parameter.std().item() if parameter.numel() > 1 else 0.1
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(noise * (0.5 * spread or 0.1))
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(0.3 * torch.randn(buffer.shape, generator=generator))
            if name.endswith("running_var"):
                buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator))
    return model.eval()


def shapes(model: nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in model.state_dict().items()}


@functools.cache
def operations_of_plain(name: str) -> int | str:
    return macs_per_second(Classifier(name, None).eval(), width=FEATURES)


@pytest.mark.parametrize("factors", [2, 3])
@pytest.mark.parametrize("ratio", [2, 4, 8, 16, 32])
@pytest.mark.parametrize("site", ["ffn", "qkv", "project", "cls", "all"])
@pytest.mark.parametrize("name", ENCODERS)
def test_merged_is_the_plain_model(name, site, ratio, factors):
    torch.manual_seed(0)
    model = randomised(Classifier(name, {"sites": [site], "ratio": ratio, "factors": factors}))
    plain = Classifier(name, None).eval()
    x, lengths = torch.randn(2, 140, FEATURES), torch.tensor([140, 97])
    with torch.no_grad():
        expected = model(x, lengths)
        merged = deploy(model)
        assert (merged(x, lengths) - expected).abs().max() < 1e-5
        assert (plain(x, lengths) - expected).abs().max() > 1e-2
        plain.load_state_dict(merged.state_dict(), strict=True)
        assert (plain(x, lengths) - expected).abs().max() < 1e-5
    assert shapes(merged) == shapes(plain)
    assert footprint(merged) == footprint(plain)
    assert parameter_count([model]) > parameter_count([merged])
    assert macs_per_second(merged, width=FEATURES) == operations_of_plain(name) > 0
