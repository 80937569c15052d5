from __future__ import annotations

import re

import pytest

from attacker.audit.record.privacy import AttackBound, CanaryAudit
from attacker.audit.record.schema import AuditRecord, Flag, LeakageSummary, PrivacyClaims, PrivacyGuarantee
from attacker.report.figures import accuracy_chart, error_chart, histogram, smallest_errors, trade_chart
from attacker.report.indices import Determined
from attacker.report.page import render_page
from attacker.report.panels import model_groups
from attacker.report.repeat import command
from tests.attacker.html_page import HOSTILE, Page
from tests.attacker.records import federation, record, summary
from tests.attacker.rich_records import rich_record


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[str, AuditRecord]:
    folder = tmp_path_factory.mktemp("rich")
    found = rich_record(folder, nodes=(HOSTILE, "8", "9", "10"))
    return render_page(found, folder), found


@pytest.fixture(scope="module")
def page(made) -> Page:
    return Page(made[0])


def between(page: Page, start: str, end: str) -> str:
    words = page.words.replace("\u00a0", " ")
    return words[words.index(start) :].split(end)[0]


def test_flags_stand_beside_the_verdict_and_only_once(page):
    card = between(page, "Verdict ", "Threat model: what")
    assert "Flags, which would count against a low score" in card  # all attacks together reconstructed every image
    assert card.count("Only 12 images were attacked.") == 1
    assert card.index("still-falling") < card.index("and 1 more")
    for spec in ("inverting-gradients:iterations=600", "dlg"):
        assert f"still falling at their end ({spec})." in card


def test_all_attacks_together_have_a_row_and_58_of_64_go_before_2_of_2(page, tmp_path):
    assert "Any attack all together 12 of 12" in between(page, "How often each attack", "The attacks ")
    few = [summary("f1", "dlg", 2, 2), summary("f1", "idlg", 58, 64)]
    found = record([federation("f1")], few)
    (group,) = model_groups(found)
    assert [one.attack for _, one in group.panels[0].best] == ["idlg"]
    alone = record([federation("f1")], few[:1])
    assert "Any attack" not in Page(render_page(alone, tmp_path)).words


def test_the_control_stands_in_its_federations_card_and_is_no_finding(made, page):
    card = between(page, "Verdict ", "Threat model: what")
    assert card.count("Undefended control") == 1
    assert "three federations" not in page.words
    control = [panel for group in model_groups(made[1]) for panel in group.panels if panel.control]
    assert [panel.name for panel in control] == ["Undefended control of PRECODE"]
    assert [panel.verdict for panel in control] == [None]
    assert "LeNet on faces, undefended control of PRECODE" in between(page, "How often each attack", "The attacks ")


def test_the_threat_model_is_named_with_what_is_granted_and_withheld(page):
    section = between(page, "Threat model: what the attacker knows", "The images, and what was reconstructed")
    assert "Parameter-Aware Eavesdropper, labels granted (in the words of Carletti" in section
    assert "The true labels of each client's images How many images are behind an update The defence that" in section


def test_the_plan_says_what_ran_and_why_the_rest_did_not(page):
    section = between(page, "The plan: what ran", "Failures and gaps")
    assert "SPEAR adaptive Not applicable : the first layer is a Conv2d" in section
    assert "Hybrid adaptive Refused, it needs more than is granted : it needs auxiliary images" in section
    assert "Left out, the budget was spent : it would take 20 minutes more" in section
    assert "Layer-wise inversion plain Ran 12 600 40.0 s 1.0 s" in section


def test_what_one_update_determines_is_said_in_words_and_layer_by_layer(page):
    section = between(page, "What one update determines These figures", "The plan: what ran")
    for wanted in (
        "One update of one image determines 2,900 of 3,072 numbers of the image (94 %); the other 172 leave no trace",
        "Gaussian noise of standard deviation 0.024 on each number of the update",
        "Noise of 0.06 puts this attacker off by 0.25. This is no advice",
        "conv1 Conv2d 3,072 900",
        "Client 7 3 about 0.2 about 0.4 hard to recognise",
        "Class <i>face</i> 6 about 0.1",
    ):
        assert wanted in section
    assert "0.40 (95 % interval 0.10 to 0.60)" in section


def test_hostile_names_are_text_everywhere(made, page):
    assert page.active == ["style", "script"]
    assert "class <b>0</b>" in page.words
    assert not {"b", "i"} & page.tags
    assert made[0].count("<script>") == 1
    assert f'data-node="{HOSTILE}"'.replace("<", "&lt;").replace(">", "&gt;") in made[0]


def test_an_older_record_has_no_empty_sections(tmp_path):
    old = record([federation("f1")], [summary("f1", "dlg", 1)])
    page = Page(render_page(old, tmp_path))
    for absent in ("Reasons to distrust", "The plan: what ran", "What one update determines", "Granted"):
        assert absent not in page.words
    assert "Undefended control" not in page.words.split("Terms Federated")[0]
    assert "Here it was also told what each attacked image shows" in page.words
    assert "No image was attacked." in page.words


def test_every_link_of_the_contents_has_its_place(made):
    targets = re.findall(r'href="#([a-z]+)"', made[0])
    assert len(targets) > 10
    assert all(f'id="{target}"' in made[0] for target in targets)


def test_every_chart_has_words(made):
    charts = re.findall(r'<svg class="(\w+)[^>]*role="img" aria-label="([^"]+)"', made[0])
    assert {kind for kind, _ in charts} == {"bar", "chart"}
    assert made[0].count("<svg") == len(charts)
    assert any("Smallest reconstruction error of each image by round" in label for _, label in charts)


def test_the_error_of_an_image_is_that_of_the_attack_that_came_closest(made):
    found = made[1]
    errors = smallest_errors(found, lambda _, number: number)
    own = [row.mse for row in found.results if row.victim_id == "f2-v4"]
    row = next(row for row in found.results if row.victim_id == "f2-v4")
    assert (row.round, pytest.approx(min(own) ** 0.5)) in errors["f2"]
    assert len(errors["f2"]) == 12
    chart = error_chart(errors, {"f2": 1}, "round")
    assert [len(line.dots) for line in chart.lines] == [3]
    assert chart.lines[0].style == 1
    assert len(chart.dots) == 12
    higher = error_chart({"f2": [(1, 0.1), (1, 0.3), (1, 0.2), (2, 0.4)]}, {"f2": 0}, "round")
    (_, first), (_, second) = higher.lines[0].dots
    place = {text: y for y, text in higher.y_ticks}
    assert (first, second) == (place["0.20"], place["0.40"])
    assert "median from 0.20 at 1 to 0.40 at 2" in higher.label


def test_error_over_local_steps_needs_different_steps(tmp_path):
    found = rich_record(tmp_path)
    steps = {"f1": 1, "f2": 8, "f3": 4}
    changed = [one.model_copy(update={"local_steps": steps[one.id]}) for one in found.federations]
    page = Page(render_page(found.model_copy(update={"federations": changed}), tmp_path))
    assert "By local steps" in page.words
    assert "By local steps" not in Page(render_page(found, tmp_path)).words
    assert "it was the same for all, 1." in Page(render_page(found, tmp_path)).words


def test_guarantees_stand_beside_what_is_claimed(tmp_path):
    one = {"delta": 1e-5, "classical": 1e5, "note": "its note"}
    guarantees = [
        PrivacyGuarantee(level="image", a_round=8.52e8, composed=8.5e9, sensitivity=2, noise_multiplier=2.4e-5, **one),
        PrivacyGuarantee(level="client", a_round=2.13e8, composed=None, sensitivity=1, noise_multiplier=4.8e-5, **one),
    ]
    holding = PrivacyClaims(
        claimed_epsilon=10, claimed_delta=1e-5, claimed_sensitivity=1e-4, guarantees=guarantees, holds=True, why_not="",
        notes=["the stated epsilon 10 does not follow"],
    )  # fmt: skip
    none = PrivacyClaims(
        claimed_epsilon=None, claimed_delta=None, claimed_sensitivity=None, guarantees=[], holds=False,
        why_not="pruning draws nothing at random", notes=[],
    )  # fmt: skip
    found = record([federation("f1", claims=holding), federation("f2", claims=none)], [])
    page = Page(render_page(found, tmp_path))
    section = between(page, "Differential privacy limits what any attack can learn", "Images")
    assert "epsilon 10 is claimed, and clip and noise give 213 million for one client in one round." in section
    assert (
        "one image one client Claimed epsilon, each round 10 By formula, one round 852 million 213 million" in section
    )
    assert "By formula, all 2 rounds 8.5 billion –" in section
    assert "Chance that it does not hold (delta) 1 in 100,000" in section
    assert "Noise, as a share of what one can change 0.0024 % 0.0048 % Holds against the server yes" in section
    assert "Canaries: epsilon is at least not measured Any attack reconstructs at most no bound" in section
    assert "The stated epsilon 10 does not follow. For one image: its note." in section
    assert "No guarantee: pruning draws nothing at random." in section
    assert "Claimed epsilon, each round nothing By formula no guarantee" in section
    without = Page(render_page(record([federation("f1")], []), tmp_path))
    assert "Differential privacy limits" not in without.words


def test_canaries_and_the_bound_stand_beside_the_guarantee(tmp_path):
    canaries = CanaryAudit(
        federation="f1", canaries=1000, norm=1, updates=4, scored=4000, lost=0, silent=[], unit="client", delta=1e-5,
        mu=1, mu_seen=2, mu_most=3, gaussian=87_123, guesses=800, right=500, counted=0.4, epsilon=87_123,
        notes=["each is left with a share of the clip"],
    )  # fmt: skip
    bound = AttackBound(
        federation="f1", unit="client", mu=1, rounds=1, delta=1e-5, claimed=10, formula=100, composed=100,
        prior_seen=0.1, prior=0.2, most=0.56, attack="dlg", measured=0.3, least=0.2, sentence="",
    )  # fmt: skip
    found = record([federation("f1")], []).model_copy(update={"canaries": [canaries], "bounds": [bound]})
    page = Page(render_page(found, tmp_path))
    assert "Canaries show that epsilon is at least 87,100 for one client in one round (95 % confidence)." in page.words
    assert (
        "at most 56 % of such images are reconstructed while clip and noise are what was announced; DLG " in page.words
    )
    assert "Canaries: epsilon is at least – 87,100 Any attack reconstructs at most 56 % of the images" in page.words
    assert "500 of 800 guesses right, which refutes epsilon 0.4 whatever the noise is." in page.words
    assert "A guess without the update reaches 10 %, at most 20 %" in page.words
    all_of_them = found.model_copy(update={"bounds": [bound.model_copy(update={"most": 1.0})]})
    assert "A bound of 100 % rules nothing out" in Page(render_page(all_of_them, tmp_path)).words
    nothing = canaries.model_copy(update={"epsilon": None, "reason": "the secret is not known"})
    none = bound.model_copy(update={"most": None, "reason": "no mechanism"})
    left = Page(render_page(found.model_copy(update={"canaries": [nothing], "bounds": [none]}), tmp_path))
    unseen = found.model_copy(update={"canaries": [canaries.model_copy(update={"epsilon": 0.0})]})
    assert "Canaries refute nothing: none of them shows." in Page(render_page(unseen, tmp_path)).words
    assert "Canaries measured nothing: the secret is not known." in left.words
    assert "Nothing bounds what attacks reconstruct: no mechanism." in left.words


def test_privacy_is_drawn_over_utility():
    own = federation("f1", final_accuracy=0.5)
    chart = trade_chart(
        [
            (2, "A", own, summary("f1", "dlg", 1)),
            (3, "B", federation("f2", final_accuracy=None), summary("f2", "dlg", 1)),
        ]
    )
    (dot,) = chart.dots
    assert dot.style == 2
    assert dot.x == {text: x for x, text in chart.x_ticks}["50 %"]
    assert dot.y == {text: y for y, text in chart.y_ticks}["25 %"]
    assert dot.whisker[0] > dot.y > dot.whisker[1]
    assert trade_chart([]) is None


def test_the_histogram_counts_every_image():
    found = histogram([-0.2, 0.0, 0.61, 0.61, 0.62, 1.0])
    assert found.bars == ((0.0, 2 / 3), (0.6, 1.0), (0.95, 1 / 3))
    assert found.median == 0.61
    assert found.label == "SSIM of 6 images: median 0.61, half of them between 0.15 and 0.62, the highest 1.00"
    assert histogram([0.3]).median == 0.3
    assert histogram([]) is None


def test_the_chart_spans_its_frame():
    chart = accuracy_chart(
        [federation("f1", accuracy=[{"round": r, "accuracy": r / 2, "loss": 1.0, "usable": 1} for r in range(3)])]
    )
    (line,) = chart.lines
    assert line.dots[0] == (chart.left, chart.bottom)
    assert line.dots[-1][0] == chart.right
    assert line.dots[-1][1] == chart.y_ticks[-1][0]
    assert [text for _, text in chart.x_ticks] == ["0", "1", "2"]
    assert accuracy_chart([federation("f1", accuracy=[])]) is None


def test_the_command_repeats_the_audit(tmp_path):
    settings = {"labels": "granted", "victims": 4, "attacks": "first-layer dlg:iterations=9,restarts=2"}
    tapes = [federation("f1", tape="/a b/tape"), federation("f2", "precode", tape="/c")]
    controls = [federation("f3", tape="/d", control_of="f2")]
    older = command(record(tapes + controls, [], settings=settings))
    attacks = "--attacks first-layer --attacks dlg:iterations=9,restarts=2"
    assert older == f"fl-precode audit '/a b/tape' /c --out audit {attacks} --victims 4 --labels granted --seed 0"
    more = {"rounds": "2:3", "threads": 2, "device": "cpu", "budget": 90.0, "control": False, "leakage": False}
    more |= {"candidates": 50}
    found = rich_record(tmp_path).model_copy(update={"settings": more, "federations": tapes})
    wanted = "--rounds 2:3 --threads 2 --device cpu --budget 90s --withhold buffers,learning-rate"
    assert command(found).endswith(f"/c --out audit {wanted} --no-control --no-leakage --candidates 50 --seed 0")
    by_default = {"rounds": "all", "budget": None, "control": True, "candidates": 1_000}
    usual = found.model_copy(update={"settings": by_default, "seeds": {}})
    assert command(usual).endswith("--out audit --withhold buffers,learning-rate")


def test_a_model_that_determines_everything_and_one_that_was_too_large(tmp_path):
    blank = LeakageSummary(
        federation="f1",
        unknowns=3072,
        jacobian_rank=3072,
        unit_rmse=50.0,
        solubility=0.0,
        layers=[],
        influence=[],
        correlation=None,
        correlation_interval=None,
        reason="Computed for 5 of 64 attacked images.",
    )
    large = blank.model_copy(
        update={"federation": "f2", "jacobian_rank": None, "unit_rmse": None, "reason": "too large for an audit"}
    )
    two = [federation("f1"), federation("f2", "precode")]
    page = Page(render_page(record(two, [], leakage=[large, blank]), tmp_path))
    section = between(page, "What one update determines These figures", "Failures and gaps")
    assert "determines all 3,072 numbers of the image. Gaussian noise of standard deviation" in section
    assert "Not computed: too large for an audit." in section
    assert section.count("too large for an audit") == 1
    assert "Computed for 5 of 64 attacked images." in section
    nearly = Determined(title="", found=blank.model_copy(update={"jacobian_rank": 3071}))
    assert "(99 %); the other one leaves no trace" in nearly.headline


@pytest.mark.parametrize(
    ("successes", "heading"), [(11, "Reasons to distrust a low score"), (12, "Flags, which would")]
)
def test_flags_are_no_reason_to_doubt_that_everything_was_reconstructed(tmp_path, successes, heading):
    flag = Flag(federation="f1", name="attack-left-out", attack="dlg", sentence="iDLG was left out.")
    found = record([federation("f1")], [summary("f1", "idlg", successes, 12)], flags=[flag])
    words = Page(render_page(found, tmp_path)).words
    assert [one for one in ("Reasons to distrust a low score", "Flags, which would") if one in words] == [heading]
