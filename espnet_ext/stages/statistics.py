"""Stage 4, before the training: statistics of the features, and the lengths of all utterances."""

import hashlib
import json
from pathlib import Path

from espnet_ext.experiment import Experiment
from espnet_ext.files import DONE, Stamp, lock

ROLES = ("train", "valid")  # ESPnet's names of the training set and the development set
# ESPnet's options that decide the features and the lengths of the texts.
_STATISTICS = (
    *("frontend", "frontend_conf", "input_size", "train_dtype"),
    *("speech_volume_normalize", "rir_scp", "noise_scp", "cleaner", "g2p"),
    *("non_linguistic_symbols", "use_preprocessor", "preprocessor", "preprocessor_conf"),
)


def target_of(experiment: Experiment) -> str:
    """ESPnet's name of what is learnt."""
    return "label" if experiment.recipe.task == "cls" else "text"


def collect_statistics(
    experiment: Experiment, command: list[str], data: dict[str, list[str]]
) -> Path:
    """Run ESPnet's collect_stats once for these features and tokens; return its folder.

    Args:
        experiment: whose statistics.
        command: ESPnet's options of the training, without those of its batches.
        data: ESPnet's data options by role.
    """
    from espnet_ext.bridge.trainer import run_task

    settings = {
        "data": data,
        "read": {key: experiment.espnet[key] for key in _STATISTICS if key in experiment.espnet},
        "tokens": str(experiment.token_folder),
    }
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
    folder = experiment.exp / f"stats_{digest}"
    # Two configs of one recipe may train at once and share this folder.
    with lock(folder / ".lock"):
        stamp = Stamp(folder / DONE, settings, experiment.corpus_files())
        if not stamp.is_current():
            print(f"train: collecting statistics into {folder}")
            # Statistics do not depend on batches of the training's size, nor on its model.
            own = ["--collect_stats", "true", "--output_dir", str(folder), "--normalize", "none"]
            own += ["--batch_type", "unsorted", "--batch_size", "32", "--ngpu", "0"]
            run_task([*command, *own], experiment.train_log, experiment.recipe.task)
            names = ("feats_stats.npz", "speech_shape", f"{target_of(experiment)}_shape")
            stamp.write(folder / role / name for role in ROLES for name in names)
    return folder
