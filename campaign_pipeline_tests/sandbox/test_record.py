import time
from pathlib import Path

import pytest

from campaign_pipeline.sandbox.behaviour import Kind
from campaign_pipeline.sandbox.record import Entry, Record, RecordError


def sent(record: Record, text: str, message_id: str, track_id: str | None = None) -> Entry:
    entry = record.open("evolution", Kind.SEND, "POST /message/sendText/{instance}")
    entry["instance"], entry["number"], entry["jid"] = "loja", "5511", "5511@s.whatsapp.net"
    entry["text"], entry["track_id"] = text, track_id
    record.accept(entry, message_id, time.time(), 0.0)
    return entry


def test_the_next_record_knows_accepted_messages(tmp_path: Path) -> None:
    file = tmp_path / "record.jsonl"
    first = Record(file)
    kept = sent(first, "Olá", "A", "7:1")
    first.open("evolution", Kind.SEND, "POST /message/sendText/{instance}")  # never accepted
    # no close: a killed process does not close anything
    second = Record(file)
    assert second.entries == [kept]
    assert second.saved("evolution", "loja", message_id="A") == [kept]
    assert second.saved("evolution", "loja", track_id="7:1") == [kept]
    assert second.saved("evolution", "loja", jid="5511@s.whatsapp.net") == [kept]
    assert second.open("evolution", Kind.SEND, "")["seq"] > kept["seq"]
    first.close()
    second.close()


def test_half_a_line_of_a_killed_sandbox_is_dropped(tmp_path: Path) -> None:
    file = tmp_path / "record.jsonl"
    record = Record(file)
    sent(record, "Olá", "A")
    sent(record, "Oi", "B")
    record.close()
    file.write_bytes(file.read_bytes()[:-10])
    again = Record(file)
    sent(again, "E aí", "C")
    again.close()
    last = Record(file)
    assert [entry["provider_message_id"] for entry in last.entries] == ["A", "C"]
    last.close()


@pytest.mark.parametrize("content", ["hello\n", "[]\n", '{"seq": 1}\n'])
def test_a_file_that_is_no_record_is_refused_and_left_alone(tmp_path: Path, content: str) -> None:
    file = tmp_path / "notes.txt"
    file.write_text(content)
    with pytest.raises(RecordError, match="line 1, is not an entry"):
        Record(file)
    assert file.read_text() == content


def test_the_summary_lists_duplicate_sends_and_payments() -> None:
    record = Record()
    first, _, third = sent(record, "Olá", "A"), sent(record, "Oi", "B"), sent(record, "Olá", "C")
    for no in range(2):
        generation = record.open("openrouter", Kind.GENERATION, "POST /chat/completions")
        generation["prompt"], generation["cost"] = "digest", 0.25
        record.accept(generation, f"gen-{no}", time.time(), None)
    summary = record.summary()
    assert summary["accepted_twice"] == [
        {
            "provider": "evolution",
            "instance": "loja",
            "number": "5511",
            "text": "Olá",
            "seqs": [first["seq"], third["seq"]],
        }
    ]
    assert summary["generated_twice"] == [{"prompt": "digest", "seqs": [4, 5]}]
    assert summary["cost"] == 0.5
    assert summary["by_endpoint"] == {
        "evolution/send": {"received": 3, "accepted": 3},
        "openrouter/generation": {"received": 2, "accepted": 2},
    }


def test_a_request_that_was_under_way_during_a_reset_leaves_no_trace(tmp_path: Path) -> None:
    file = tmp_path / "record.jsonl"
    record = Record(file)
    sent(record, "Olá", "A")
    under_way = record.open("evolution", Kind.SEND, "")
    under_way["instance"] = "loja"
    record.reset()
    record.accept(under_way, "B", time.time(), 0.0)
    assert record.entries == []
    assert record.saved("evolution", "loja") == []
    assert file.read_bytes() == b""
    record.close()


def test_entries_are_chosen_by_all_that_is_named() -> None:
    record = Record()
    accepted = sent(record, "Olá", "A")
    refused = record.open("evolution", Kind.SEND, "")
    state = record.open("uazapi", Kind.STATUS, "")
    assert record.where(provider="evolution") == [accepted, refused]
    assert record.where(provider="evolution", accepted=False) == [refused]
    assert record.where(kind="status") == [state]
    assert record.where(instance="loja", number="5511") == [accepted]
    assert record.where(instance="filial") == []
