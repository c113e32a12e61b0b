"""Stage 5: the averaged model deployed as a variant, or all members of a family in one file."""

from pathlib import Path
from typing import Any

from espnet_ext.config.pretrained import pretrained_files
from espnet_ext.config.training import UNTRAINED
from espnet_ext.data.kaldi_dir import read_table
from espnet_ext.data.ssl_model import SSLModel
from espnet_ext.errors import UserError
from espnet_ext.experiment import FAMILY, Experiment
from espnet_ext.files import DEPLOYED, Stamp, in_use, read_json, refuse_changed_output, write_json
from espnet_ext.formats.digests import KEY, digests

_UTTERANCES = 8  # that a deployed model is verified on


def deploy_stamp(experiment: Experiment, checkpoint: Path) -> Stamp:
    """The stamp of a deployed model that is made from ``checkpoint``."""
    settings: dict[str, Any] = {"variant": experiment.variant, "digests": 2}  # 2: can be moved
    if experiment.config.has_layer_features:
        settings["features"] = 1  # the model of the features is in the folder
    if experiment.recipe.huffman:
        settings["huffman"] = 1
    return Stamp(experiment.deploy_stamp, settings, [checkpoint, experiment.espnet_config])


def deployed_checkpoint(experiment: Experiment) -> Path:
    """The checkpoint that a deployed model was made from.

    Raises:
        UserError: its stamp does not say so.
    """
    try:
        return Path(read_json(experiment.deploy_stamp)["inputs"][0])
    except (OSError, ValueError, KeyError, IndexError, TypeError):
        raise UserError(
            f"no {experiment.deploy_stamp} that names a checkpoint; run stage 5"
        ) from None


def deploy(experiment: Experiment, checkpoint: Path | None = None) -> None:
    """Write the deployed model of an experiment, or as variant ``family`` its family file.

    Args:
        experiment: names the variant.
        checkpoint: default: the averaged model.

    Raises:
        UserError: stage 4 has not run, an unknown variant, or a model that does not pass
            its verification.
    """
    if checkpoint is None:
        untrained = experiment.variant == UNTRAINED
        checkpoint = _pretrained_weights(experiment) if untrained else experiment.averaged_model
    stamp = deploy_stamp(experiment, checkpoint)
    if stamp.is_current():
        print(f"deploy: {experiment.deployed} is up to date")
        return
    with in_use(experiment.folder):
        again = "run stage 4 again (espnet-ext train)"
        refuse_changed_output(experiment.espnet_config, experiment.train_stamp, again)
        write = _write_family if experiment.variant == FAMILY else _write_model
        stamp.write(write(experiment, checkpoint))


def _pretrained_weights(experiment: Experiment) -> Path:
    """The weights that the training started from."""
    for path in pretrained_files(experiment.config, experiment.root):
        if path.suffix == ".safetensors":
            return path
    raise UserError(f"{experiment.config.path}: the variant {UNTRAINED} is of a pretrained model")


def _write_model(experiment: Experiment, checkpoint: Path) -> list[Path]:
    """Write the folder of the deployed model; return its files."""
    from espnet_ext.bridge.muted import muted

    with muted():
        from espnet_ext.bridge.deployed.folder import deploy_experiment

    made = deploy_experiment(experiment, checkpoint, _speech(experiment))
    print(
        f"deploy: {experiment.weights}: {made['parameters']['total']:,} parameters "
        f"(training model {made['training_parameters']['total']:,}), {made['bytes']:,} bytes, "
        f"largest difference {made['verified']['max_difference']:.1e} in "
        f"{made['verified']['computed_in']} "
        f"on {made['verified']['utterances']} utterances"
    )
    return _files(experiment.deployed)


def _write_family(experiment: Experiment, checkpoint: Path) -> list[Path]:
    """Write the family file and its list; return their paths."""
    from espnet_ext.bridge.muted import muted

    with muted():
        from espnet_ext.bridge.deployed.bundle import FEATURES, about
        from espnet_ext.bridge.deployed.family import write_family_models
        from espnet_ext.encoders.pretrained.features import save_model

    path, listed = (experiment.deployed / f"family.{kind}" for kind in ("safetensors", "json"))
    speech = _speech(experiment)
    said = about(experiment, speech.source)
    made = write_family_models(experiment.espnet_config, checkpoint, speech, path, said)
    if isinstance(experiment.features, SSLModel):
        features = experiment.deployed / FEATURES
        save_model(experiment.features, features)
        write_json(features / DEPLOYED, {KEY: digests(features)})
    size = path.stat().st_size
    write_json(listed, {"bytes": size, "members": made})
    separate = sum(member["bytes"] for member in made)
    worst = max(member["max_difference"] for member in made)
    print(
        f"deploy: {path}: {len(made)} members, {size:,} bytes ({separate:,} in separate files), "
        f"largest difference {worst:.1e} on {len(speech.waves)} utterances"
    )
    return [path, listed, *_files(experiment.deployed / FEATURES)]


def _files(folder: Path) -> list[Path]:
    """All files of a deployed model, those of pretrained models in it too."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _speech(experiment: Experiment) -> Any:
    """The first utterances of the development set, for the verification.

    Waves; where a self-supervised model made the features, its features.
    """
    import torch

    from espnet_ext.bridge.deployed.folder import Speech
    from espnet_ext.bridge.deployed.speech_input import SHORT, SpeechInput
    from espnet_ext.data.arks import read_matrix
    from espnet_ext.data.audio import read_wave

    from_arks = experiment.config.has_layer_features
    name = experiment.recipe.dev_set
    scp = experiment.audio_list(name) if from_arks else experiment.set_folder(name) / "wav.scp"
    if not scp.is_file():
        raise UserError(f"no {scp}; run stage {2 if from_arks else 1}")
    source, waves = SpeechInput.of(experiment), []
    for utterance, path in read_table(scp).items():
        wave = (
            read_matrix(path, utterance)
            if from_arks
            else read_wave(path, utterance, experiment.rate)
        )
        if not source.is_short(wave):
            waves.append(torch.from_numpy(wave.copy()))
        if len(waves) == _UTTERANCES:
            break
    if not waves:
        raise UserError(f"{scp}: no utterance of {SHORT} s in it, for the verification")
    return Speech(waves, source)
