"""Files of adversarials as strangers write them; and what one forward says of each image."""

import numpy as np
import pytest
import torch

from aal_bench.errors import RunFailed, UserError
from aal_bench.verification.stored import read, replay


@pytest.fixture
def case(submitted):
    return submitted()


def test_images_come_in_the_order_of_the_rows_whatever_the_files_is(case, tmp_path):
    kept, evidence = case.kept(), case.entry.evidence()
    shuffled = np.random.default_rng(0).permutation(len(kept["index"]))
    np.savez(tmp_path / "a.npz", **{name: values[shuffled] for name, values in kept.items()})
    stored = read(tmp_path / "a.npz", evidence, 16)
    np.testing.assert_array_equal(evidence.index[stored.rows], kept["index"])
    np.testing.assert_array_equal(stored.x, kept["x"])
    np.testing.assert_array_equal(stored.stage, kept["stage"])
    np.testing.assert_array_equal(shuffled[stored.place], np.arange(len(shuffled)))
    assert (np.diff(stored.rows) > 0).all()


@pytest.mark.parametrize("kind", ["i1", "u4", "i8", "u8"])
def test_an_index_is_any_whole_number_and_stage_may_be_missing(case, tmp_path, kind):
    index = case.entry.evidence().index
    small = index[index < 100][:2]
    images = np.zeros((2, 3, 16, 16), np.float32)
    np.savez_compressed(tmp_path / "a.npz", index=small.astype(kind), x=images)
    stored = read(tmp_path / "a.npz", case.entry.evidence(), 16)
    assert stored.stage is None
    assert stored.rows.tolist() == [0, 1]


IMAGE = np.zeros((1, 3, 16, 16), np.float32)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"index": None}, "has x; adversarials are index and x"),
        ({"labels": np.zeros(1)}, "has index, labels, x; adversarials are"),
        ({"index": np.array([0.0])}, r"index is float64 \(1,\), not whole numbers"),
        ({"index": np.array([True])}, "index is bool"),
        ({"index": np.array([[0]])}, r"index is int64 \(1, 1\)"),
        ({"index": np.zeros(0, int), "x": IMAGE[:0]}, "holds no images: its index is empty"),
        ({"index": np.zeros(0), "x": IMAGE[:0]}, "holds no images: its index is empty"),
        (
            {"x": IMAGE.astype(np.float64)},
            r"x is float64 \(1, .*, not float32 \(1, 3, 16, 16\): x.astype\(\"float32\"\)$",
        ),
        ({"x": IMAGE[:, :, :8]}, r"x is float32 \(1, 3, 8, 16\), not float32 \(1, 3, 16, 16\)"),
        ({"x": np.repeat(IMAGE, 2, 0)}, r"x is float32 \(2, 3, 16, 16\)"),
        ({"x": IMAGE * np.nan}, r"image {first} \(row 0\) is not finite"),
        ({"x": IMAGE + np.inf}, r"image {first} \(row 0\) is not finite"),
        ({"stage": np.array([3])}, "stage is int64"),
        ({"stage": np.array(["fgsm", "fgsm"])}, "stage is <U4"),
        ({"index": np.array([-1])}, "index -1 is none of the test images"),
        ({"index": np.array([2**64 - 1], np.uint64)}, "is none of the test images"),
        ({"x": np.zeros((99, 3, 64, 64), np.float32)}, "bytes; at most"),
        ({"x": np.array([{}])}, "not a readable file of adversarials"),
    ],
)
def test_what_is_no_file_of_adversarials_is_one_line(case, tmp_path, change, match):
    first = case.entry.evidence().index[:1]
    arrays = {"index": first, "x": IMAGE} | change
    path = tmp_path / "a.npz"
    np.savez(path, **{name: value for name, value in arrays.items() if value is not None})
    with pytest.raises(UserError, match=match.format(first=first[0])) as error:
        read(path, case.entry.evidence(), 16)
    assert "\n" not in str(error.value)
    assert str(error.value).startswith(str(path))


def test_an_image_occurs_once(case, tmp_path):
    first = case.entry.evidence().index[0]
    np.savez(tmp_path / "a.npz", index=[first, first], x=np.repeat(IMAGE, 2, 0))
    with pytest.raises(UserError, match=f"index {first} occurs twice"):
        read(tmp_path / "a.npz", case.entry.evidence(), 16)


def test_a_replay_is_the_models_word_on_each_image_and_its_distance(case, tmp_path):
    """Against the network itself in one batch, and against numpy."""
    rebuilt, kept = case.rebuilt(), case.kept()
    count = len(kept["index"])
    assert count > rebuilt.run.task.evaluation.batch_size  # more than one batch
    kept["x"][3, 1, 5, 5] = abs(kept["x"][3, 1, 5, 5] - 0.25)
    kept["x"][7, 0, 0, 0] = -0.5
    np.savez(tmp_path / "a.npz", **kept)
    stored = read(tmp_path / "a.npz", rebuilt.evidence, 16)
    found = replay(stored, rebuilt)
    logits = rebuilt.model(torch.from_numpy(kept["x"]))
    np.testing.assert_array_equal(found.pred, logits.argmax(1))
    original = rebuilt.adapter.test.pixels(torch.from_numpy(stored.rows)).numpy() / 255
    norm = np.abs(kept["x"].astype(float) - original).reshape(count, -1).max(1)
    np.testing.assert_allclose(found.norm, norm, atol=1e-7)
    np.testing.assert_allclose(found.over, np.maximum(norm - 2 / 255, 0), atol=1e-7)
    assert np.flatnonzero(found.over > 1e-6).tolist() == [3, 7]
    assert np.flatnonzero(found.outside).tolist() == [7]
    assert found.outside[7] == 0.5


def test_a_model_without_an_answer_is_no_proof(case):
    rebuilt = case.rebuilt()
    stored = read(case.adversarials, rebuilt.evidence, 16)
    rebuilt.model.network.classifier.bias[0] = torch.nan
    with pytest.raises(RunFailed, match="logits on the stored images are not finite"):
        replay(stored, rebuilt)
