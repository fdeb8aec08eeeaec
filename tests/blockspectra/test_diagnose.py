"""Only this file sees a report that says something else than the spectra it was made from.

Oracle: quadratic losses whose block Hessians are given, so that λ_max, trace, gradient and JS⁰ are
known in closed form; and the page as a parser reads it.
"""

import io
import json
from html.parser import HTMLParser

import matplotlib as mpl
import numpy as np
import pytest
import torch
from torch import nn

from blockspectra import Problem, ProblemError, cross_entropy, partition
from blockspectra.diagnosis import diagnose
from blockspectra.diagnosis.block_table import robust_z
from blockspectra.distance import FLOOR, shift_divergence, signed_log
from browser import CHROMIUM, width


class Quadratic(nn.Module):
    """Weights of which the loss is ½ Σ wᵀA w plus what couples the first two."""

    def __init__(self, matrices, coupling=0.0):
        super().__init__()
        self.matrices = [torch.as_tensor(m, dtype=torch.float64) for m in matrices]
        generator = torch.Generator().manual_seed(0)
        self.weights = nn.ParameterList(
            torch.randn(2, len(m) // 2, generator=generator, dtype=torch.float64)
            for m in self.matrices
        )
        self.coupling = coupling

    def forward(self, x):
        w = [p.flatten() for p in self.weights]
        square = sum(v @ m @ v for v, m in zip(w, self.matrices, strict=True)) / 2
        return x.mean() * (square + self.coupling * w[0].sum() * w[1].sum())


def quadratic(matrices, **settings):
    batches = [torch.full((2,), 0.5), torch.full((6,), 1.5)]  # the mean of all x is 1.25
    model = Quadratic(matrices, **settings)
    return Problem(model, lambda model, x: model(x), batches)


def measured(problem, *args, **settings):
    return diagnose(problem, *args, quiet=True, progress=False, **settings)


def symmetric(size, seed):
    matrix = np.random.default_rng(seed).standard_normal((size, size))
    return matrix + matrix.T


@pytest.fixture(scope="module")
def report():
    """The diagnosis of a small network in float32, with a name that HTML must escape."""
    torch.manual_seed(0)
    layers = [nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3)]
    model = type("Net<b>&", (nn.Sequential,), {})(*layers).eval()
    batch = torch.randn(8, 5), torch.randint(0, 3, (8,))
    return measured(Problem(model, cross_entropy, [batch]))


class TestClosedForms:
    def test_largest_eigenvalue_and_gradient_of_known_blocks(self):
        matrices = [symmetric(6, seed) for seed in range(3)]
        problem = quadratic(matrices, coupling=0.7)  # which is no part of a diagonal block
        found = measured(problem).blocks
        w = [p.detach().numpy().ravel() for p in problem.model.weights]
        for i, matrix in enumerate(matrices):
            row = found.loc[f"weights.{i}"]
            top = 1.25 * np.linalg.eigvalsh(matrix)[-1]
            gradient = 1.25 * (matrix @ w[i] + (0.7 * w[1 - i].sum() if i < 2 else 0.0))
            assert row["lambda_max"] == pytest.approx(top, rel=1e-9)
            assert row["gradient_norm"] == pytest.approx(np.linalg.norm(gradient), rel=1e-9)
            assert row["size"] == 6

    def test_trace_is_exact_without_error_where_all_eigenvalues_are_equal(self):
        found = measured(quadratic([2 * np.eye(4), 3 * np.eye(8)])).blocks
        np.testing.assert_allclose(found["trace"], [1.25 * 8, 1.25 * 24], rtol=1e-12)
        np.testing.assert_allclose(found["trace_error"], 0, atol=1e-12)

    def test_trace_error_covers_the_trace(self):
        matrices = [symmetric(40, seed) for seed in range(12)]
        found = measured(quadratic(matrices), probes=4).blocks
        off = (found["trace"] - [1.25 * np.trace(m) for m in matrices]) / found["trace_error"]
        assert 0.3 < np.sqrt(np.mean(off**2)) < 3

    def test_js0_of_two_peaks_is_that_of_their_shift(self):
        diagnosis = measured(quadratic([np.eye(4), 10 * np.eye(6)]))
        low, high = signed_log(np.array([1.0, 10.0]), FLOOR * 10)
        assert diagnosis.js0.mean == pytest.approx(shift_divergence(high - low), rel=5e-3)
        assert diagnosis.js0.standard_error == pytest.approx(0, abs=1e-9)
        np.testing.assert_allclose(diagnosis.blocks["distance"], diagnosis.js0.mean, rtol=1e-9)
        assert diagnosis.divergences.iloc[0, 1] == pytest.approx(diagnosis.js0.mean)

    def test_the_heterogeneity_of_the_references_is_set_beside_it(self):
        diagnosis = measured(quadratic([np.eye(4), 10 * np.eye(6)]))
        row = diagnosis.references.loc["JS⁰ (nats)"]
        assert row["this model"] == diagnosis.js0.mean
        assert (row["below"], row["above"]) == (16, 0)  # none is as far apart as these


class TestStandingOut:
    def test_one_stiff_block_among_many_stands_out(self):
        scales = [1.0, 1.1, 0.9, 1.2, 1000.0, 1.05]
        found = measured(quadratic([s * np.eye(4) for s in scales])).blocks["stands_out"]
        assert "its λ_max is large (z = +" in found["weights.4"]
        assert "far from the others" in found["weights.4"]
        assert not any(found.drop("weights.4"))

    def test_a_soft_block_stands_out_as_small(self):
        scales = [1.0, 1.1, 0.9, 1.2, 1e-3, 1.05]
        found = measured(quadratic([s * np.eye(4) for s in scales])).blocks["stands_out"]
        assert "its λ_max is small (z = -" in found["weights.4"]

    def test_a_block_without_curvature_is_told(self):
        found = measured(quadratic([np.eye(4), 0 * np.eye(4), np.eye(6)])).blocks
        assert found.loc["weights.1", "stands_out"] == "its Hessian is zero"
        np.testing.assert_allclose(found["rms"], found["lambda_max"], rtol=1e-6, atol=1e-12)

    def test_robust_z_is_that_of_the_bulk(self):
        values = np.random.default_rng(0).standard_normal(4001)
        np.testing.assert_allclose(robust_z(values), values, atol=0.15)
        spoilt = np.append(values, [1e6] * 400)
        assert np.abs(robust_z(spoilt)[:4001] - values).max() < 0.7

    def test_few_or_equal_values_are_not_judged(self):
        assert np.isnan(robust_z([1, 2, 3, 100])).all()
        assert np.isnan(robust_z([1, 1, 1, 1, 1, 5])).all()
        assert np.isnan(robust_z([1, 2, 3, 4, 5, np.nan])[-1])


class TestAdviceAndNotes:
    @pytest.mark.parametrize(
        ("settings", "sentence"),
        [
            ({"probes": 2}, "measured with 2 probes and the reference models with 4"),
            ({"steps": 4}, "measured with 4 steps and the reference models with 30"),
        ],
    )
    def test_other_settings_than_the_references_keep_it_silent(self, settings, sentence):
        advice = measured(quadratic([np.eye(4), np.eye(6)]), **settings).advice
        assert advice.word == "cannot tell"
        assert sentence in advice.reasons[0]

    def test_other_blocks_keep_it_silent_and_the_usual_ones_given_do_not(self):
        problem = quadratic([np.eye(4), np.eye(6)])
        rows = measured(problem, partition(problem.model, "neuron"))
        assert "not those of partition(model)" in rows.advice.reasons[0]
        same = measured(problem, partition(problem.model))
        assert not any("partition(model)" in reason for reason in same.advice.reasons)

    def test_settings_say_how_many_samples_and_parameters(self):
        problem = quadratic([np.eye(4), np.eye(6), np.eye(2)])
        problem.model.weights[2].requires_grad_(False)
        diagnosis = measured(problem)
        wanted = {"samples": 8, "batches": 2, "parameters": 12, "trainable": 10}
        assert wanted.items() <= diagnosis.settings.items()
        assert diagnosis.notes[0] == "Left out because frozen: weights.2 (1 in all)."

    def test_another_number_of_samples_is_told(self):
        problem = quadratic([np.eye(4), np.eye(6)])
        more = Problem(problem.model, problem.loss, problem.batches * 2)
        (note,) = measured(more).notes
        assert "over 16 samples, those of the reference models over 32" in note


class TestRefused:
    def test_a_single_block_has_nothing_to_be_compared_with(self):
        with pytest.raises(ProblemError, match=r"has 1 \(weights.0\): give more with partition"):
            measured(quadratic([np.eye(4)]))

    def test_the_module_to_blame_is_named_and_nothing_was_printed(self, capsys):
        model = nn.Sequential(nn.EmbeddingBag(5, 4), nn.Linear(4, 2)).eval()
        batch = torch.tensor([[0, 1], [2, 3]]), torch.tensor([0, 1])
        with pytest.raises(ProblemError, match="it is in the EmbeddingBag '0'"):
            diagnose(Problem(model, cross_entropy, [batch]))
        assert capsys.readouterr().out == ""


def test_a_name_of_ones_own_is_used():
    assert measured(quadratic([np.eye(4), np.eye(6)])).name == "Quadratic"
    named = measured(quadratic([np.eye(4), np.eye(6)]), name="my model")
    assert str(named).startswith("my model: 2 blocks")


def test_the_cost_is_printed_first(capsys):
    diagnosis = diagnose(quadratic([np.eye(4), np.eye(6)]), progress=False)
    assert capsys.readouterr().out == f"2 blocks: {diagnosis.cost}\n"


def test_the_same_seed_gives_the_same_numbers_and_another_one_others():
    problem = quadratic([symmetric(40, 0), symmetric(40, 1)])
    first, again, other = (measured(problem, seed=seed) for seed in (0, 0, 1))
    assert first.js0 == again.js0
    assert first.js0 != other.js0


class Reader(HTMLParser):
    """Keeps tags, their attributes, and the text."""

    def __init__(self):
        super().__init__()
        self.tags, self.text = [], ""

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def saved(report, tmp_path_factory):
    return report.save(tmp_path_factory.mktemp("reports") / "new" / "folder")


@pytest.fixture(scope="module")
def page(saved):
    reader = Reader()
    reader.feed(saved[0].read_text(encoding="utf-8"))
    return reader


class TestPage:
    def test_needs_no_other_file_and_no_network(self, page):
        assert not [tag for tag, _ in page.tags if tag in ("script", "link", "iframe", "a")]
        sources = [a["src"] for _, a in page.tags if "src" in a]
        assert len(sources) == 3
        assert all(source.startswith("data:image/png;base64,") for source in sources)
        assert "url(" not in page.text

    def test_every_figure_says_in_words_what_it_shows(self, page):
        texts = [a["alt"] for tag, a in page.tags if tag == "img"]
        assert len(set(texts)) == 3
        assert all("Net<b>&" in text and len(text) > 80 for text in texts)

    def test_names_are_text_and_not_tags(self, page):
        assert "b" not in {tag for tag, _ in page.tags}
        assert "Hessian of Net<b>&, block by block" in page.text

    def test_says_what_the_advice_rests_on(self, report, page):
        text = " ".join(page.text.split())
        assert f"Advice: {report.advice.word}" in text
        for sentence in (*report.advice.reasons, *report.advice.evidence, *report.notes):
            assert sentence in text

    def test_numbers_are_those_of_the_diagnosis(self, report, saved):
        def refuse(constant):
            raise AssertionError(f"{constant} is not JSON")

        content = json.loads(saved[1].read_text(encoding="utf-8"), parse_constant=refuse)
        assert content["js0"]["mean"] == report.js0.mean
        assert content["settings"] == report.settings
        assert (
            content["environment"]["packages"]["torch"] == report.environment["packages"]["torch"]
        )
        measures = {row["measure"]: row["value"] for row in content["heterogeneity"]}
        assert measures == report.heterogeneity["value"].to_dict()
        for i, row in enumerate(content["blocks"]):
            top = np.max(content["spectra"]["nodes"][i])
            assert row["block"] == report.spectra.names[i]
            assert row["lambda_max"] == report.spectra.largest[i] == top
            assert row["z_distance"] is None  # three blocks are not judged


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_the_page_is_no_wider_than_a_phone(report, tmp_path):
    assert width(report.save(tmp_path)[0], tmp_path / "profile") <= 390


def test_text_and_notebook_say_the_same(report):
    for shown in (str(report), repr(report), report._repr_html_()):
        assert f"JS⁰ = {report.js0} nats" in shown
        assert f"Advice: {report.advice.word}" in shown
        assert report.advice.reasons[0].split("'")[0] in shown
    assert "Net&lt;b&gt;&amp;" in report._repr_html_()
    assert "not judged: fewer than 5 blocks" in report._repr_html_()


@pytest.mark.parametrize("encoding", ["latin-1", "ascii"])
def test_a_terminal_without_all_letters_shows_it_too(report, encoding, monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(written, encoding=encoding))
    print(report, flush=True)
    assert b"JS0 = " in written.getvalue()


def test_the_style_of_the_caller_stays(report):
    with mpl.rc_context({"font.size": 17.0}):
        report.drawings()
        assert mpl.rcParams["font.size"] == 17.0
