"""The page of a leakage analysis and the command that makes it."""

from __future__ import annotations

import base64
import io
import json
import re
import stat

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner

from attacker.cli.main import app
from attacker.leakage import ImageLeak, LayerRank, Leakage, NoiseRanks
from attacker.report.leakage_page import lost_picture, render_leakage, spectrum_chart, write_leakage
from attacker.report.leakage_words import advice, headline
from fl_precode.defences.registry import apply_defence
from fl_precode.models import InputSpec, build_model

SMALL = ["analyse", "lenet:init=uniform", "--input", "1x6x6", "--classes", "4"]
SPEC = InputSpec(channels=1, height=6, width=6, classes=4, mean=(0.0,), std=(1.0,))


def record(**changes):
    layer = LayerRank(
        name="conv<1>", kind="Conv2d", unknowns=16, weight_rows=9, gradient_rows=4, dependent_rows=1, untouched=0,
        predicted=12, rank=None, gap=None,
    )  # fmt: skip
    image = ImageLeak(
        index=0, label=1, gradient_norm=2.5, unknowns=16, rank=12, largest=4.0, smallest=0.1, unit_rmse=3.0
    )
    fields = {
        "model": "lenet", "defence": "none", "weights": "w.safetensors", "images_from": "photos", "shape": (1, 4, 4),
        "parameters": 99, "std": 0.01, "layers": (layer,), "solubility": -4.0, "images": (image,),
        "eigenvalues": (1.0, 0.1, 1e-3, 0.0), "lost": ((0.0,) * 4, (0.0,) * 4, (0.0,) * 4, (1.0,) * 4), "seconds": 2.0,
    }  # fmt: skip
    return Leakage(**{**fields, **changes})


def test_the_page():
    page = render_leakage(record())
    assert "The gradient determines 12 of 16 numbers of the image." in page
    assert "4 of 16 numbers of the image leave no trace in the gradient (25%)" in page
    assert "conv&lt;1&gt;" in page
    assert "12 (counted)" in page
    assert "c(M) = -4.0" in page
    assert "no measure of security" in page
    assert "RMSE of about 0.03 of the part that is determined" in page
    assert "25 % of the image is lost" in page.replace("\xa0", " ")
    assert not re.search(r"https?://|<script", page)


def test_a_page_without_spectrum():
    image = ImageLeak(index=0, label=1, gradient_norm=2.5, unknowns=16, exact=False, largest=4.0, unit_rmse=3.0)
    page = render_leakage(record(images=(image,), eigenvalues=(), lost=()))
    assert "Too large for exact ranks" in page
    assert "<svg" not in page
    assert "not computed" in page
    nothing = ImageLeak(index=0, label=1, gradient_norm=0.0, unknowns=16, reason="the gradient is zero")
    assert "the gradient is zero" in render_leakage(record(images=(nothing,), eigenvalues=(), lost=()))


def test_the_chart():
    chart = spectrum_chart((1.0, 0.1, 1e-3, 0.0), unknowns=400, rank=300)
    assert chart is not None
    points = [tuple(map(float, point.split(","))) for point in chart.lines[0].path.split()]
    assert points[0] == (chart.left, chart.top)
    assert points[-1] == (chart.right, chart.bottom)  # zero lies on the floor
    assert points[1][1] - points[0][1] == pytest.approx((chart.bottom - chart.top) / 16, abs=0.1)
    limit = float(chart.lines[1].path.partition(",")[0])
    assert limit == pytest.approx(chart.left + 0.75 * (chart.right - chart.left), abs=0.1)
    assert [chart.y_ticks[0], chart.y_ticks[-1]] == [(chart.top, "1"), (chart.bottom, "10⁻¹⁶")]
    full = spectrum_chart((1.0, 0.01), unknowns=2, rank=2)
    assert full is not None
    assert len(full.lines) == 1
    assert spectrum_chart((), unknowns=2, rank=2) is None


def test_the_map():
    uri = lost_picture(((0.0, 1.0),))
    assert uri is not None
    picture = Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))
    assert picture.size == (2, 1)
    assert picture.getpixel((0, 0)) == (255, 255, 255)
    red, green, _ = picture.getpixel((1, 0))
    assert red > 150 > 100 > green
    assert lost_picture(()) is None


def noisy(fitted: int) -> Leakage:
    ranks = NoiseRanks(
        unknowns=16, noise=5, known=16, fitted=fitted, before=16, known_rmse=3.0, fitted_rmse=6.0, sampling=0.2
    )
    image = ImageLeak(index=0, label=1, gradient_norm=2.5, unknowns=16, rank=16, unit_rmse=3.0)
    return record(defence="precode", noise=ranks, images=(image,))


def test_words_about_bottlenecks():
    assert "does not stop an attacker" in headline(noisy(16))
    assert "determines 11 of 16 numbers" in headline(noisy(11))
    told = " ".join(advice(noisy(11)))
    assert "with errors 2 times as large" in told
    assert "RMSE of about 0.2: hard to recognise" in told
    assert "Recoverable exactly" not in told


@pytest.mark.parametrize(
    ("std", "words"),
    [(1e-3, "hardly to be told"), (0.02, "noisy, and plain"), (0.05, "hard to recognise"), (1.0, "more than 1")],
)
def test_words_about_errors(std, words):
    assert any(words in one for one in advice(record(std=std)))


def test_words_about_images():
    images = tuple(
        ImageLeak(index=i, label=0, gradient_norm=1.0, unknowns=4, rank=4, unit_rmse=value)
        for i, value in enumerate((1.0, 1.1, 0.9, 20.0, 1.0))
    )
    told = " ".join(advice(record(images=images)))
    assert "largest error is 22.2 times the smallest" in told
    assert "Far less: image 3." in told


def test_only_the_owner_reads_the_page(tmp_path):
    path = write_leakage(record(), tmp_path / "new" / "page.html")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def run(*arguments: str):
    return CliRunner().invoke(app, [*SMALL, *arguments])


def test_the_command(tmp_path):
    out = tmp_path / "found.json"
    done = run("--images", "2", "--noise", "0.0001", "--out", str(out))
    assert done.exit_code == 0, done.output
    assert "determines the whole image" in done.output
    assert "conv1" in done.output
    found = Leakage.from_dict(json.loads(out.read_text()))
    assert (found.model, found.std, len(found.images), found.shape) == ("lenet:init=uniform", 1e-4, 2, (1, 6, 6))
    assert found.images_from == "random smooth images"


def test_the_command_writes_a_page_and_takes_weights(tmp_path):
    model = apply_defence("precode:latent=3", build_model("lenet", SPEC, seed=7), SPEC, seed=7)
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, tmp_path / "w.safetensors")
    page = tmp_path / "page.html"
    arguments = ["--defence", "precode:latent=3+prune:share=0.5", "--weights", str(tmp_path / "w.safetensors")]
    done = run(*arguments, "--out", str(page))
    assert done.exit_code == 0, done.output
    text = page.read_text()
    assert "w.safetensors" in text
    assert "RMSE under the defence" in text
    wrong = run("--weights", str(tmp_path / "w.safetensors"))
    assert wrong.exit_code == 1
    assert "do not fit the model with its defence" in wrong.output


def test_the_command_takes_data():
    done = CliRunner().invoke(app, ["analyse", "mlp", "--data", "digits", "--images", "1", "--estimate"])
    assert done.exit_code == 0, done.output
    assert "Too large for exact ranks" in done.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["analyse", "lenet"], "--input"),
        ([*SMALL, "--data", "digits"], "--input"),
        ([*SMALL, "--out", "page.txt"], "--out"),
    ],
)
def test_bad_usage(arguments, message):
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 2
    assert message in done.output


def test_exact_analysis_of_what_is_too_large():
    done = CliRunner().invoke(app, ["analyse", "lenet", "--input", "3x64x64", "--classes", "4", "--exact"])
    assert done.exit_code == 1
    assert "up to 4096 numbers" in done.output


def test_the_seed_counts(tmp_path):
    records = []
    for seed in ("0", "0", "1"):
        path = tmp_path / f"{len(records)}.json"
        assert run("--seed", seed, "--out", str(path)).exit_code == 0
        records.append(Leakage.from_dict(json.loads(path.read_text())).images)
    assert records[0] == records[1] != records[2]
    assert torch.get_num_threads() == 1
