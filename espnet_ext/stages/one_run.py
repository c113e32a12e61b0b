"""The folder of an experiment holds one run: a training of other settings is refused there."""

import json
from pathlib import Path
from typing import Any

from espnet_ext.config.schedule import EPOCHS
from espnet_ext.config.training import training_settings
from espnet_ext.errors import UserError
from espnet_ext.experiment import Experiment
from espnet_ext.files import quick_key, write_json


def refuse_other_run(experiment: Experiment, data: dict[str, str]) -> None:
    """Refuse to continue a run of another config or other data; record these otherwise.

    More epochs are no other run: they are added.

    Args:
        experiment: what is to be trained.
        data: digests of the files that decide the training.

    Raises:
        UserError: the folder holds a run of other settings.
    """
    path = experiment.settings
    settings = {"config": training_settings(experiment.config.as_dict()), "data": data}
    if any(experiment.folder.glob("checkpoint*.pth")) and path.exists():
        stored = json.loads(path.read_text(encoding="utf-8"))
        advice = f"give the config another name or remove {experiment.folder}"
        before = training_settings(stored["config"])
        now = json.loads(json.dumps(settings["config"]))
        other = [key for key in {**before, **now} if before.get(key) != now.get(key)]
        if other == ["max_epoch"] and _epochs(before) < _epochs(now):
            other = []
        if other:
            names = ", ".join(other)
            raise UserError(
                f"{experiment.folder} holds a run of other settings ({names}); {advice}"
            )
        for name, content in data.items():
            before = stored.get("data", {}).get(name, content)
            if before not in (content, quick_key(Path(name))):
                raise UserError(f"{experiment.folder} was trained before {name} changed; {advice}")
    write_json(path, settings)


def _epochs(config: dict[str, Any]) -> int:
    return config.get("max_epoch", EPOCHS)
