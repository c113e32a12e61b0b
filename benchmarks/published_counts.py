#!/usr/bin/env python
"""Count the compression of the two systems of arXiv 2406.10160, on their architectures.

The paper gives 12.8 times (Conformer) and 3.93 times (wav2vec 2.0) and does not say what it
counts. Both models are built here with random weights, as a family of sub-networks; nothing is
trained and nothing is timed.

Example:
    python benchmarks/published_counts.py --json results/benchmarks/published_counts.json
"""

import argparse
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from espnet_ext.config.training import Config, load_config
from espnet_ext.errors import run_cli
from espnet_ext.experiment import Experiment
from espnet_ext.results.benchmarks import finish

EGS = Path(__file__).resolve().parents[1] / "egs"
CONFORMER = EGS / "swbd/asr1/conf/train_nested_conformer_paper.yaml"
WAV2VEC2 = EGS / "librispeech_100/asr1/conf/train_nested_wav2vec2_base_m.yaml"
VOCABULARIES = {CONFORMER: 2000, WAV2VEC2: 32}  # BPE pieces; letters
PUBLISHED = {CONFORMER: 12.8, WAV2VEC2: 3.93}


def main() -> None:
    """Parse the command line, count, print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", metavar="FILE", help="write all counts there too")
    args = parser.parse_args()
    from espnet_ext.bridge.muted import muted

    with muted(), tempfile.TemporaryDirectory() as folder:
        counts = [
            *_counts(load_config(CONFORMER), ("12L-2048-4b", "12L-1024-4b"), CONFORMER),
            *_counts(_with_random_model(Path(folder)), ("12L-3072-8b",), WAV2VEC2),
        ]
    finish(table(counts), {"counts": counts}, args.json)


def table(counts: list[dict[str, Any]]) -> dict[str, Any]:
    """The table of what was counted."""
    return {
        "title": "Published counts of compression",
        "about": "Bits of the largest network at 32 bits over those of a member, with random "
        "weights. *Blocks*: the weights of all linear and convolutional layers of the encoder's "
        "blocks have fewer bits, and only blocks are counted. *Model*: the whole model is counted; "
        "these layers and all convolutions of the encoder have fewer bits, everything else has 32.",
        "header": ["system", "params", "member", "counted", "times fewer bits", "published"],
        "rows": [
            [
                row["system"],
                f"{row['parameters']:,}",
                row["member"],
                row["counted"],
                f"{row['compression']:.2f}",
                f"{row['published']:g}",
            ]
            for row in counts
        ],
        "notes": ["The paper says neither what it counts nor which members its numbers are of."],
    }


def _counts(config: Config, members: tuple[str, ...], path: Path) -> list[dict[str, Any]]:
    """Both counts of each member of a family."""
    from espnet_ext.bridge.build import build_model
    from espnet_ext.bridge.configs.footprint import encoder_compression
    from espnet_ext.methods.deploy import deploy, parameter_count
    from espnet_ext.methods.nested import nested_stack
    from espnet_ext.methods.nested_options import find_member

    model = build_model(Experiment.of(config), VOCABULARIES[path])
    parameters, stack = parameter_count([model]), nested_stack(model.encoder)
    rows = []
    for member in members:
        deployed = deploy(model, member)
        blocks = encoder_compression(model, deployed, member)["encoder_compression"]
        rounded = _in_fewer_bits(deployed.encoder)
        bits = find_member(stack.family, member).bits
        rest = parameter_count([deployed]) - rounded
        whole = 32 * parameters / (bits * rounded + 32 * rest)
        facts = {"system": config.tag, "parameters": parameters, "member": member}
        facts |= {"published": PUBLISHED[path]}
        rows += [
            {**facts, "counted": "blocks", "compression": blocks},
            {**facts, "counted": "model", "compression": whole},
        ]
    return rows


def _in_fewer_bits(encoder: Any) -> int:
    """Weights of the linear layers of the blocks, and of all convolutions."""
    from torch import nn

    from espnet_ext.methods.nested_precision import quantised_weights

    weights = quantised_weights(encoder)
    for name, layer in encoder.named_modules():
        if isinstance(layer, nn.Conv1d | nn.Conv2d):
            weights[f"{name}.weight"] = layer.weight
    return sum(weight.numel() for weight in weights.values())


def _with_random_model(folder: Path) -> Config:
    """The config of wav2vec 2.0 with a model of base size whose weights are random."""
    from transformers import Wav2Vec2Config, Wav2Vec2Model

    Wav2Vec2Model(Wav2Vec2Config()).save_pretrained(folder)
    config = load_config(WAV2VEC2)
    conf = {**config.conf("encoder"), "path": str(folder)}
    return replace(config, espnet={**config.espnet, "encoder_conf": conf})


if __name__ == "__main__":
    sys.exit(run_cli("published_counts.py", main))
