import numpy as np
import pytest

from jaxdiff import data, evaluate, pictures


def test_frechet_distance_of_gaussians_is_the_closed_form():
    """Dowson & Landau (1982): commuting covariances, so that the square root is known."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200_000, 3))
    x = (x - x.mean(0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(x.T))).T  # mean 0 and covariance 1 exactly
    a, b = x * [1.0, 2.0, 0.5] + [0, 0, 1], x * [3.0, 1.0, 0.5] + [1, 0, 0]
    assert evaluate.frechet_distance(a, b) == pytest.approx(1 + 1 + (1 - 3) ** 2 + (2 - 1) ** 2, rel=1e-9)
    assert evaluate.frechet_distance(a, a) == pytest.approx(0, abs=1e-6)


def test_frechet_distance_equals_scipys_square_root():
    linalg = pytest.importorskip("scipy.linalg")
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(500, 8)) @ rng.normal(size=(8, 8)), rng.normal(size=(400, 8)) + 0.5
    cov_a, cov_b = np.cov(a.T), np.cov(b.T)
    expected = np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(cov_a + cov_b - 2 * linalg.sqrtm(cov_a @ cov_b).real)
    assert evaluate.frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)


def test_report_compares_equal_numbers_of_samples_and_real_images(tfds_dir):
    """Judged by the nearest mean of the training images, whose features are the pixels."""
    train, test = (data.images("digits", split, (8, 8, 1), data_dir=tfds_dir) for split in ("train", "test"))
    pixels, labels = train.fetch(np.arange(train.num_examples))
    means = np.stack([data.normalized(pixels[labels == label]).mean(0) for label in range(10)])

    def name(images):
        distances = ((images[:, None] - means[None]) ** 2).sum((2, 3, 4))
        return distances.argmin(1), images.reshape(len(images), -1)

    held_out, truth = test.fetch(np.arange(test.num_examples))
    judge = evaluate.Judge(name, float(np.mean(name(data.normalized(held_out))[0] == truth)))
    reference = evaluate.reference(judge, train, test)
    real = evaluate.report(judge, reference, data.normalized(held_out), truth)
    assert real.agreement == judge.accuracy > 0.85
    assert real.frechet == real.frechet_real
    assert (real.num, real.num_real) == (299, 299)
    noise = np.random.default_rng(0).normal(size=(1000, 8, 8, 1)).astype(np.float32)
    bad = evaluate.report(judge, reference, noise, np.arange(1000) % 10)
    assert bad.agreement < 0.2
    assert bad.frechet > 5 * bad.frechet_real
    assert "label agreement: " in str(bad)


def test_grid_places_every_image_and_enlarges_by_whole_factors(tmp_path):
    images = np.linspace(-1, 1, 6)[:, None, None, None] * np.ones((6, 8, 8, 1))
    picture = pictures.grid(images, columns=3, min_size=16)
    assert picture.shape == (2 * 18 + 2, 3 * 18 + 2, 1)
    centres = picture[10::18, 10::18, 0]
    np.testing.assert_array_equal(centres.ravel(), np.round((np.linspace(-1, 1, 6) + 1) * 127.5))
    pictures.save_grid(tmp_path / "deep" / "grid.png", images, columns=3)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["grid.png"]
