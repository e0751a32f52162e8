import json
import math
from collections import defaultdict
from itertools import chain, repeat
from random import Random
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from campaign_pipeline.sandbox.behaviour import (
    FAULTS,
    Behaviour,
    BehaviourError,
    Conduct,
    Fault,
    InstanceState,
    Kind,
    Latency,
    Subject,
)

kinds = st.sampled_from(Kind)
optional_texts = st.none() | st.text(min_size=1, max_size=8)
counts = st.none() | st.integers(1, 9)


@st.composite
def faults(draw: st.DrawFn) -> Fault:
    kind = draw(kinds)
    is_generation = kind is Kind.GENERATION
    return Fault(
        kind=kind,
        name=draw(st.sampled_from(sorted(FAULTS[kind]))),
        provider=draw(optional_texts),
        rate=draw(st.floats(0, 1)),
        phone=None if is_generation else draw(optional_texts),
        text=draw(optional_texts),
        instance=None if is_generation else draw(optional_texts),
        times=draw(counts),
        times_each=draw(counts),
        seconds=draw(st.none() | st.floats(0, 100)),
        accepts=draw(st.none() | st.booleans()) if kind is Kind.SEND else None,
    )


behaviours = st.builds(
    Behaviour,
    seed=st.integers(-(2**31), 2**31),
    latencies=st.dictionaries(kinds, st.builds(Latency, st.floats(0, 9), st.floats(0, 2))),
    faults=st.lists(faults(), max_size=4).map(tuple),
    instances=st.dictionaries(st.text(max_size=5), st.sampled_from(InstanceState)),
    saves_messages=st.booleans(),
    saved_after=st.floats(0, 100),
)


@given(behaviours)
def test_a_behaviour_survives_its_way_through_json(behaviour: Behaviour) -> None:
    assert Behaviour.from_json(json.dumps(behaviour.to_dict()).encode()) == behaviour


def test_an_update_replaces_what_it_names_and_keeps_the_rest() -> None:
    before = Behaviour(seed=3, instances={"loja": InstanceState.CLOSE}, latencies={Kind.SEND: Latency(1)})
    after = before.updated({"instances": {"filial": "connecting"}, "latencies": {"look-up": 0.5}})
    assert after == Behaviour(
        seed=3, instances={"filial": InstanceState.CONNECTING}, latencies={Kind.LOOK_UP: Latency(0.5)}
    )


def test_a_flag_names_provider_kind_fault_and_options() -> None:
    words = "evolution/send:server_error_500:rate=0.25:times=3:times_each=1:seconds=2.5:accepts=true:phone=5511:text=Oi"
    assert Fault.parse(words) == Fault(
        Kind.SEND,
        "server_error_500",
        provider="evolution",
        rate=0.25,
        times=3,
        times_each=1,
        seconds=2.5,
        accepts=True,
        phone="5511",
        text="Oi",
    )


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ("send:burns", "'burns' is not a fault of send"),
        ("sends:cut_after", "'sends' is not a kind of endpoint"),
        ("send", "'' is not a fault of send"),
        ("send:cut_after:rate", "expected key=value once for each key, found 'rate'"),
        ("send:cut_after:rate=1:rate=0", "expected key=value once for each key, found 'rate=0'"),
        ("send:cut_after:kind=status", "expected key=value once for each key, found 'kind=status'"),
        ("send:cut_after:rate=often", "rate must be a number"),
        ("send:cut_after:rate=1.5", "must lie between 0 and 1"),
        ("send:cut_after:rate=nan", "must lie between 0 and 1"),
        ("send:late:seconds=inf", "seconds of late must be a number of 0 or more"),
        ("send:cut_after:times=0", "times of cut_after must be 1 or more"),
        ("send:cut_after:accepts=perhaps", "accepts must be true or false"),
        ("send:cut_after:colour=red", "A fault has no colour"),
        ("generation:hang:phone=5511", "A generation has neither phone nor instance"),
        ("status:hang:accepts=true", "Only the fault of a send"),
    ],
)
def test_a_rule_that_makes_no_sense_is_refused_with_its_reason(words: str, complaint: str) -> None:
    with pytest.raises(BehaviourError) as refusal:
        Fault.parse(words)
    assert complaint in str(refusal.value)


@pytest.mark.parametrize(
    "raw",
    [
        [],
        {"colour": "red"},
        {"seed": "one"},
        {"seed": True},
        {"latencies": {"send": -1}},
        {"latencies": {"send": {"mean": 1, "median": 1}}},
        {"latencies": {"sending": 1}},
        {"latencies": {"send": math.inf}},
        {"faults": {"kind": "send"}},
        {"faults": ["send:cut_after"]},
        {"faults": [{"kind": "send"}]},
        {"faults": [{"kind": "send", "name": 5}]},
        {"instances": {"loja": "asleep"}},
        {"instances": {"loja": ["open"]}},
        {"saves_messages": 1},
        {"saved_after": -1},
    ],
)
def test_a_behaviour_that_makes_no_sense_is_refused(raw: object) -> None:
    with pytest.raises(BehaviourError):
        Behaviour.from_dict(raw)


@given(st.integers(0, 2**32), st.lists(st.sampled_from("abc"), max_size=40), st.randoms())
def test_the_same_seed_gives_the_same_message_the_same_faults_in_any_order(
    seed: int, asked: list[str], order: Random
) -> None:
    rules = (Fault(Kind.SEND, "cut_after", rate=0.5), Fault(Kind.SEND, "other_400", rate=0.5, times_each=2))
    behaviour = Behaviour(seed=seed, faults=rules, latencies={Kind.SEND: Latency(1, 0.5)})

    def lives(keys: list[str]) -> dict[str, list[tuple[str | None, float]]]:
        conduct = Conduct(behaviour)
        lived: defaultdict[str, list[tuple[str | None, float]]] = defaultdict(list)
        for key in keys:
            fault = conduct.fault("evolution", Kind.SEND, Subject(key))
            lived[key].append((fault.name if fault else None, conduct.latency(Kind.SEND, key)))
        return lived

    shuffled = asked.copy()
    order.shuffle(shuffled)
    assert lives(asked) == lives(shuffled)


def test_a_rate_is_met_over_many_messages() -> None:
    conduct = Conduct(Behaviour(faults=(Fault(Kind.SEND, "cut_after", rate=0.2),)))
    hit = sum(conduct.fault("evolution", Kind.SEND, Subject(str(no))) is not None for no in range(5000))
    assert 0.18 < hit / 5000 < 0.22


def test_log_normal_latencies_keep_their_mean_and_spread() -> None:
    conduct = Conduct(Behaviour(latencies={Kind.SEND: Latency(0.7, 0.5)}))
    drawn = [conduct.latency(Kind.SEND, str(no)) for no in range(20_000)]
    assert fmean(drawn) == pytest.approx(0.7, rel=0.02)
    assert fmean(each < 0.7 * math.exp(-0.125) for each in drawn) == pytest.approx(0.5, abs=0.02)  # its median


def test_a_rule_is_applied_so_often_in_all_and_so_often_for_each() -> None:
    in_all = Conduct(Behaviour(faults=(Fault(Kind.SEND, "cut_after", times=3),)))
    for_each = Conduct(Behaviour(faults=(Fault(Kind.SEND, "cut_after", times_each=2),)))
    keys = list(chain.from_iterable(repeat(("a", "b"), 4)))
    counted = {
        name: [conduct.fault("evolution", Kind.SEND, Subject(key)) is not None for key in keys]
        for name, conduct in (("in all", in_all), ("for each", for_each))
    }
    assert counted == {"in all": [True] * 3 + [False] * 5, "for each": [True] * 4 + [False] * 4}


@pytest.mark.parametrize(
    ("rule", "matches"),
    [
        ("send:cut_after", True),
        ("evolution/send:cut_after", True),
        ("uazapi/send:cut_after", False),
        ("send:cut_after:instance=loja", True),
        ("send:cut_after:instance=lo", False),
        ("send:cut_after:text=tudo", True),
        ("send:cut_after:text=nada", False),
        ("send:cut_after:phone=553187654321", True),  # the same account without its ninth digit
        ("send:cut_after:phone=5511987654321", False),
        ("status:cut", False),
    ],
)
def test_a_rule_matches_what_it_names(rule: str, matches: bool) -> None:
    subject = Subject("key", "loja", "5531987654321", "Olá, tudo bem?")
    conduct = Conduct(Behaviour(faults=(Fault.parse(rule),)))
    assert (conduct.fault("evolution", Kind.SEND, subject) is not None) is matches


def test_the_first_rule_that_applies_wins() -> None:
    conduct = Conduct(Behaviour(faults=(Fault(Kind.SEND, "cut_after", times=1), Fault(Kind.SEND, "other_400"))))
    names = [fault.name for _ in range(2) if (fault := conduct.fault("evolution", Kind.SEND, Subject("a")))]
    assert names == ["cut_after", "other_400"]


def test_a_scripted_answer_is_returned_and_readable() -> None:
    rule = Fault(Kind.SEND, "scripted", status=400, body={"response": {"message": ["x"]}}, accepts=True, saves=False)
    assert Fault.from_dict(rule.to_dict()) == rule
    for wrong in ({"name": "schema", "status": 400}, {"name": "scripted", "status": 99}):
        with pytest.raises(BehaviourError, match="scripted"):
            Fault.from_dict({"kind": "send", **wrong})
