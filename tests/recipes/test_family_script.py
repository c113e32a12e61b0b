"""egs/fotaq/asr1/local/family.sh: every system of the family, alone and rounded, in one run."""

import re
import subprocess
from pathlib import Path

from espnet_ext.config.training import load_config
from espnet_ext.methods.nested_options import parse_name

RECIPE = Path(__file__).parents[2] / "egs" / "fotaq" / "asr1"


def test_each_member_is_compared_with_the_same_system_alone():
    script = RECIPE / "local" / "family.sh"
    done = subprocess.run([script, "--dry_run", "true"], capture_output=True, text=True, check=True)
    scored = [line.split() for line in done.stdout.splitlines() if "espnet-ext score" in line]
    family = load_config(RECIPE / "conf/nested" / "train_nested_conformer_xs.yaml")
    nested = family.espnet["encoder_conf"]["nested"]
    members = [words for words in scored if words[2] == f"conf/nested/{family.path.name}"]
    named = {words[words.index("--variant") + 1]: words[-1] for words in members}
    wanted = {f"{d}L-384-{b}b" for d in nested["depths"] for b in nested["bits"]}
    assert set(named) == wanted
    trained = {words[2] for words in scored if "--variant" not in words}
    for member, tag in named.items():
        alone = load_config(RECIPE / "conf/nested" / f"train_{tag}.yaml")
        assert f"conf/nested/{alone.path.name}" in trained
        conf, parsed = alone.espnet["encoder_conf"], parse_name(member)
        assert conf["num_blocks"] == len(parsed.layers) and conf["linear_units"] == parsed.width
        assert conf.get("nested", {"bits": [32]})["bits"] == [parsed.bits]
        assert alone.espnet["max_epoch"] == family.espnet["max_epoch"]
    first = next(line.split() for line in done.stdout.splitlines() if "espnet-ext train" in line)
    (start,) = family.espnet["init_param"]
    assert start.startswith(f"exp/{load_config(RECIPE / first[2]).tag}/")
    rounded = re.findall(r"score conf/nested/train_alone_xs_6l.yaml .*--variant (\S+)", done.stdout)
    assert rounded == ["merged+8b", "merged+4b", "merged+2b"]
