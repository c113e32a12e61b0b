"""The names that ESPnet's choices get, and the way back from them."""

import pytest


@pytest.mark.parametrize("base", ["conformer", "e_branchformer", "contextual_block_conformer"])
def test_stock_encoder_is_the_base_of_a_compressed_one(base):
    from espnet2.tasks import asr

    from espnet_ext.bridge.registry import install, stock_encoder

    install()
    choices = asr.encoder_choices.classes
    assert stock_encoder(f"hrf_{base}") == base == stock_encoder(base)
    assert issubclass(choices[f"hrf_{base}"], choices[base])


def test_every_compressed_encoder_leads_back_to_the_class_it_extends():
    from espnet2.tasks import asr

    from espnet_ext.bridge.registry import BASES, RECURRENT_BASES, install, stock_encoder
    from espnet_ext.methods.registry import METHODS

    install()
    choices = asr.encoder_choices.classes
    assert {name for name, method in METHODS.items() if method.recurrent} >= {"hrf"}
    for name, method in METHODS.items():
        for base in BASES:
            if not method.fits(base, base in RECURRENT_BASES):
                assert f"{name}_{base}" not in choices
                continue
            assert stock_encoder(f"{name}_{base}") == base
            assert issubclass(choices[f"{name}_{base}"], choices[base])


def test_a_method_may_have_underscores_in_its_name(monkeypatch):
    from espnet_ext.bridge.registry import stock_encoder
    from espnet_ext.methods.registry import METHODS

    monkeypatch.setitem(METHODS, "low_rank", METHODS["hrf"])
    assert stock_encoder("low_rank_e_branchformer") == "e_branchformer"
    assert stock_encoder("low_conformer") == "low_conformer"
