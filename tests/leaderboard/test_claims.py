"""The table of the Adv-DPNP paper's claims: numbers of the boards, paired differences, places."""

from bench.leaderboard.paper import claims
from bench.leaderboard.paper.boards import Board
from bench.leaderboard.tables.build import build_table
from tests.support.example_results import example, featured, predictions, with_attack, with_run
from tests.support.markdown_tables import cells


def board(name, **results):
    named = {defense.replace("_", "-"): result for defense, result in results.items()}
    runs = tuple(with_run(result, model=name, defense=name) for name, result in named.items())
    return Board(name, runs, build_table(runs))


def test_each_measure_has_both_numbers_their_difference_and_a_place(monkeypatch):
    monkeypatch.setattr(claims, "MEASURES", {"attacks": ("Clean", "FGSM"), "spaces": ("FDR/M² ↓ clean", "MinSep ↑")})
    more = with_attack(example(), "FGSM", prediction=predictions(0, 1, 2, 3, 4, 5, 6, 7))
    less = with_attack(example(), "FGSM", prediction=predictions(0))
    attacks = board("attacks", adv_dpnp=example(), at=less, trades=more)
    tight, loose = (1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 80.0, 30.0), (2.0, 2.0, 3.0, 4.0, 5.0, 6.0, 90.0, 40.0)
    spaces = board("spaces", adv_dpnp=featured(tight), at=featured(loose))
    _, clean, fgsm, ratio, angle = cells(claims.claims_table([spaces, attacks]))
    assert clean == ["Clean", "10", "80.0", "80.0", "+0.0 [-23.1, +23.1], p = 1", "1-3 of 3"]
    # Of ten images, five are right under FGSM that the other has wrong: 2 / 2^5.
    assert fgsm[:4] == ["FGSM", "10", "60.0", "10.0"]
    assert fgsm[4].startswith("+50.0 [") and fgsm[4].endswith("], p = 0.062")
    assert fgsm[5] == "1-3 of 3"
    assert ratio == ["FDR/M² ↓ clean", "10", "0.010", "0.020", "", "1 of 2, not tested"]
    assert angle == ["MinSep ↑", "10", "30.0", "40.0", "", "2 of 2, not tested"]
