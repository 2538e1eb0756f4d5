"""The hooks of a run and its seeded data: a bad loss stops it, a killed one can continue."""

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from aal_bench.detection.hooks import CHECK_EVERY, Resumable, StopOnBadLoss
from aal_bench.detection.seeded import SeededDataset
from aal_bench.errors import RunFailed


@pytest.fixture
def runner():
    """What the hooks read of MMEngine's Runner."""
    return SimpleNamespace(
        iter=0, epoch=0, max_iters=100, model=nn.Linear(2, 2), seed=7, rank=0, train_dataloader=None
    )


def step(hook, runner, loss):
    hook.after_train_iter(runner, 0, None, {"loss": torch.tensor(loss)})
    runner.iter += 1


class TestStopOnBadLoss:
    @pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
    def test_the_first_bad_step_is_named_at_the_next_look(self, runner, bad):
        hook = StopOnBadLoss()
        for number in range(CHECK_EVERY - 1):
            step(hook, runner, bad if number in (4, 9) else 1.0)
        with pytest.raises(RunFailed, match=r"the loss is not finite at step 5 of 100 \(epoch 1"):
            step(hook, runner, 1.0)

    def test_an_epoch_is_looked_at_before_it_is_saved(self, runner):
        hook = StopOnBadLoss()
        runner.epoch = 3
        for loss in (1.0, float("nan")):
            step(hook, runner, loss)
        with pytest.raises(RunFailed, match=r"step 2 of 100 \(epoch 4; epoch 3 is saved\)"):
            hook.after_train_epoch(runner)

    def test_broken_weights_are_seen_though_every_loss_was_finite(self, runner):
        hook = StopOnBadLoss()
        step(hook, runner, 1.0)
        hook.after_train_epoch(runner)
        with torch.no_grad():
            runner.model.bias[0] = torch.inf
        with pytest.raises(RunFailed, match="the weights are not finite at step 1 of 100"):
            hook.after_train_epoch(runner)

    def test_running_statistics_count_as_weights(self, runner):
        runner.model = nn.BatchNorm1d(2)
        runner.model.running_var[1] = torch.nan
        with pytest.raises(RunFailed, match="weights are not finite"):
            StopOnBadLoss().after_train_epoch(runner)

    def test_it_comes_before_what_saves(self):
        from mmengine.hooks import CheckpointHook
        from mmengine.runner.priority import get_priority

        assert get_priority(StopOnBadLoss.priority) < get_priority(CheckpointHook.priority)


class Counting:
    """A data set that draws from the generators that MMDetection's pipelines draw from."""

    metainfo = {"classes": ("a", "b")}  # noqa: RUF012

    def __len__(self):
        return 6

    def __getitem__(self, index):
        return index, random.random(), np.random.random()  # noqa: NPY002

    def get_data_info(self, index):
        return {"index": index}

    def full_init(self):
        pass


class TestResumable:
    def test_every_epoch_and_rank_has_draws_of_its_own_whatever_was_drawn(self, runner):
        data, seen = SeededDataset(Counting(), 7), {}
        runner.train_dataloader = SimpleNamespace(dataset=data)
        for _ in range(2):
            for epoch in (0, 1):
                for rank in (0, 1):
                    torch.rand(3)
                    runner.epoch, runner.rank = epoch, rank
                    Resumable().before_train_epoch(runner)
                    drawn = tuple(torch.rand(2).tolist())
                    assert seen.setdefault((epoch, rank), drawn) == drawn
                    assert data.epoch == epoch
        assert len(set(seen.values())) == 4

    def test_a_methods_state_is_in_the_checkpoint(self, runner):
        kept = {"delta": torch.ones(2)}
        method = SimpleNamespace(state_dict=lambda: kept, load_state_dict=kept.update)
        runner.model.adversarial = SimpleNamespace(method=method)
        checkpoint = {}
        Resumable().before_save_checkpoint(runner, checkpoint)
        assert checkpoint["aal_bench"] is kept
        Resumable().after_load_checkpoint(runner, {"aal_bench": {"delta": torch.zeros(2)}})
        assert kept["delta"].sum() == 0

    def test_a_detector_without_a_method_has_none(self, runner):
        checkpoint = {}
        Resumable().before_save_checkpoint(runner, checkpoint)
        Resumable().after_load_checkpoint(runner, checkpoint)
        assert checkpoint == {}


class TestSeededDataset:
    def test_a_sample_depends_on_seed_epoch_and_image_alone(self):
        data = SeededDataset(Counting(), seed=3)
        forwards = [data[i] for i in range(6)]
        random.seed(99)
        assert [data[i] for i in reversed(range(6))] == forwards[::-1]
        assert len({sample[1:] for sample in forwards}) == 6
        data.epoch = 1
        assert data[0] != forwards[0]
        data.epoch = 0
        assert data[0] == forwards[0]
        assert SeededDataset(Counting(), seed=4)[0] != forwards[0]

    def test_workers_change_nothing(self):
        def drawn(workers):
            loader = torch.utils.data.DataLoader(
                SeededDataset(Counting(), seed=3), batch_size=2, num_workers=workers
            )
            return [column.tolist() for batch in loader for column in batch]

        assert drawn(0) == drawn(2)

    def test_a_limit_takes_from_everywhere(self):
        data = SeededDataset(Counting(), limit=3)
        assert len(data) == 3
        assert [data[i][0] for i in range(3)] == [data.get_data_info(i)["index"] for i in range(3)]
        assert max(data[i][0] for i in range(3)) >= 3
        assert len(SeededDataset(Counting(), limit=60)) == 6
        assert data.metainfo == Counting.metainfo
