"""Steps are pure functions of their number, whatever the process count."""

from __future__ import annotations

import pytest
import torch
from training.toy import Stream, Toy, preferences, sample

from mmalign.objectives.scores import Needs
from mmalign.records import Preference, pair
from mmalign.training.batches import Plan, Steps, StreamedSteps

TOY = Toy()


def plan(**changes: object) -> Plan:
    settings = {"needs": Needs(), "batch_size": 6, "budget": 40} | changes
    return Plan(collate=TOY.collate, size=TOY.size, **settings)


def ids(step) -> list[str]:
    return sorted(i for micro in step.micro_batches for i in micro.ids)


def test_an_epoch_sees_every_preference_once():
    data = preferences(20)
    steps = Steps(data, plan())
    seen = [i for number in range(steps.per_epoch) for i in ids(steps[number])]
    assert sorted(seen) == sorted(p.id for p in data)


def test_epochs_differ_in_order():
    steps = Steps(preferences(20), plan())
    assert ids(steps[0]) != ids(steps[steps.per_epoch])


def test_processes_share_a_step_without_overlap():
    data = preferences(20)
    whole = ids(Steps(data, plan())[1])
    halves = [ids(Steps(data, plan(rank=r, processes=2))[1]) for r in range(2)]
    assert sorted(halves[0] + halves[1]) == whole


def test_a_row_has_the_same_seed_in_every_process_layout():
    data = preferences(20)
    one = Steps(data, plan())[0]
    two = [Steps(data, plan(rank=r, processes=2))[0] for r in range(2)]

    def seeds(*steps):
        return {
            key: seed
            for step in steps
            for micro in step.micro_batches
            for key, seed in zip(micro.candidates.keys, micro.candidates.seeds, strict=True)
        }

    assert seeds(one) == seeds(*two)


@pytest.mark.parametrize("processes", [1, 2])
def test_the_rows_of_a_step_are_spread_over_the_strata(processes):
    data, strata = preferences(20), 3
    shared = [
        Steps(data, plan(strata=strata, rank=rank, processes=processes))[0]
        for rank in range(processes)
    ]
    seeds = {s for step in shared for micro in step.micro_batches for s in micro.candidates.seeds}
    assert sorted(seed % strata for seed in seeds) == [0, 0, 1, 1, 2, 2]
    hashes = {s for micro in Steps(data, plan())[0].micro_batches for s in micro.candidates.seeds}
    assert {s // strata for s in seeds} == {s // strata for s in hashes}


def test_micro_batches_stay_within_the_budget_unless_one_preference_is_larger():
    steps = Steps(preferences(20), plan(budget=30))
    for micro in steps[0].micro_batches:
        assert micro.elements <= 30 or len(micro.ids) == 1


def test_lists_of_different_length_are_padded_with_empty_slots():
    three = Preference(tuple(sample("a", r) for r in ("aa", "ab", "bb")), (2.0, 1.0, 0.0))
    two = pair(sample("a", "aa"), sample("a", "b"))
    step = Steps([three, two], plan(batch_size=2, budget=1000))[0]
    (micro,) = step.micro_batches
    assert micro.candidates.slots.shape == (2, 3)
    assert (micro.candidates.slots == -1).sum() == 1
    assert torch.equal(micro.grades.isnan(), micro.candidates.slots == -1)


def test_mismatched_view_pairs_a_prompt_with_the_next_records_response():
    data = [pair(sample(p, p * 2), sample(p, p * 3)) for p in "abcdef"]
    step = Steps(data, plan(needs=Needs(views=frozenset({"mismatched"}))))[0]
    own = {key for micro in step.micro_batches for key in micro.candidates.keys}
    other = {key for micro in step.micro_batches for key in micro.views["mismatched"].keys}
    assert not own & other


def test_only_the_cells_that_a_loss_reads_are_computed():
    data = [pair(sample(p, p * 2), sample(p, p * 3)) for p in "abcdef"]
    cells = frozenset({"rejected@mismatched"})
    needs = Needs(views=frozenset({"mismatched"}), cells=cells)
    step, whole = (Steps(data, plan(needs=n))[0] for n in (needs, Needs(views=needs.views)))
    [micro, *_], [all_of_it, *_] = step.micro_batches, whole.micro_batches
    seen = micro.views["mismatched"]
    assert (seen.slots >= 0).tolist() == [[False, True]] * len(micro.ids)
    assert seen.keys[0] == all_of_it.views["mismatched"].keys[1]
    assert micro.elements / len(micro.ids) < all_of_it.elements / len(all_of_it.ids)
    together = needs | Needs(views=needs.views)
    assert together.candidates("mismatched", 3) == [0, 1, 2]
    both = needs | Needs(views=needs.views, cells=frozenset({"candidate1@mismatched"}))
    assert both.candidates("mismatched", 3) == [1, 2]


def test_an_unusable_record_is_refused_with_its_reason_and_the_rest_is_used():
    data = [*preferences(5), pair(sample("a", "b?"), sample("a", "c"))]
    step = Steps(data, plan())[0]
    assert len(ids(step)) == 5
    assert [(r.row, "'?'" in r.reason) for r in step.refused] == [(5, True)]


def test_a_step_without_a_usable_record_is_an_error():
    data = [pair(sample("a", "b?"), sample("a", "c"))]
    with pytest.raises(ValueError, match="no record of step 0 can be used"):
        Steps(data, plan())[0]


def test_missing_aux_is_refused_by_name():
    data = [*preferences(1), *preferences(1)]
    with pytest.raises(ValueError, match="annotator"):
        Steps(data, plan(needs=Needs(aux=frozenset({"annotator"}))))[0]


def test_a_resumed_stream_continues_with_the_very_steps():
    data = Stream(preferences(20))
    whole = [ids(s) for s in StreamedSteps(data, plan(), start=0, stop=9, buffer=8)]
    resumed = [ids(s) for s in StreamedSteps(data, plan(), start=5, stop=9, buffer=8)]
    assert len(whole) == 9
    assert resumed == whole[5:]


def test_a_streamed_epoch_sees_every_record_once():
    records = preferences(20)
    steps = StreamedSteps(Stream(records), plan(batch_size=5), start=0, stop=4, buffer=8)
    assert sorted(i for step in steps for i in ids(step)) == sorted(p.id for p in records)
