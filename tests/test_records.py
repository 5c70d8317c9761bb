"""Files that a command finds again: whatever is wrong in one is told in one sentence."""

import json
import os

import numpy as np
import pytest
from animatediff_lightning.distill.data import import_videos
from animatediff_lightning.distill.evaluate import fvd
from animatediff_lightning.distill.files import claim, records
from animatediff_lightning.distill.miniature import card, gates, sample
from animatediff_lightning.distill.train import config as train_config
from animatediff_lightning.distill.train import curves, validation
from animatediff_lightning.distill.train.run_folder import Place

NESTED = "[" * 100_000
LINE = {
    "stage": 0,
    "phase": 0,
    "iteration": 2,
    "base": "miniature:moss",
    "moved": 0.1,
    "frechet": 3.0,
    "guidance": [1.0],
    "landing": [0.5],
}
CHECK = {"what": "motion", "value": 1.0, "bound": 0.5, "at_most": False, "passed": True}
ROW = dict.fromkeys(sample._COLUMNS, "1")


@pytest.mark.parametrize("content", ["", "{", "[]", "3", NESTED, '{"a": ' + "9" * 5000 + "}"])
def test_a_damaged_record_of_a_folder_is_told(tmp_path, content):
    file = tmp_path / "run.json"
    file.write_text(content)
    with pytest.raises(ValueError, match=r"run\.json is damaged; restore it, or start again"):
        claim.read_record(file)


def test_a_record_that_is_a_pipe_or_too_large_is_not_read(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(ValueError, match=r"pipe\.json is not a regular file"):
        records.read(tmp_path / "pipe.json", dict)
    monkeypatch.setattr(records, "_MAX_BYTES", 2**20)
    (tmp_path / "large.json").write_text(" " * (2**20 + 1))
    with pytest.raises(ValueError, match=r"large\.json is larger than 1 MiB"):
        records.read(tmp_path / "large.json", dict)


@pytest.mark.parametrize(
    "content", ["[]", "{}", NESTED, '{"clips": "1", "bad": {}}', '{"clips": 1, "bad": []}']
)
def test_a_damaged_record_of_an_import_is_told(tmp_path, content):
    file = tmp_path / "000000.json"
    file.write_text(content)
    with pytest.raises(ValueError, match=r"000000\.json could not be read \(.*\); delete it, and"):
        import_videos._read_record(file)


@pytest.mark.parametrize("value", ["x", None])
@pytest.mark.parametrize("key", [*LINE, "lists"])
def test_a_damaged_line_of_a_validation_is_told(tmp_path, key, value):
    changes = {"lists": {"guidance": [value]}, "base": {"base": 3}}
    line = LINE | changes.get(key, {key: value})
    (tmp_path / validation.FILE).write_text(json.dumps(line) + "\n")
    with pytest.raises(ValueError, match=r"validation\.jsonl could not be read \(a line .*delete"):
        validation.Record(tmp_path, Place(0, 0, 5))


@pytest.mark.parametrize("line", ["[1}", '{"a":' + NESTED + "}", '{"stage": 0}'])
def test_a_line_of_a_validation_that_is_none_is_told(tmp_path, line):
    (tmp_path / validation.FILE).write_text(line + "\n")
    with pytest.raises(ValueError, match=r"validation\.jsonl could not be read"):
        validation.read_lines(tmp_path)


@pytest.mark.parametrize("changes", [{"frechet": 0}, {"iteration": 0}])
def test_a_stage_is_described_whatever_its_lines_tell(tmp_path, changes):
    config = train_config.read_config(train_config.find_config("miniature"))
    (tmp_path / validation.FILE).write_text(json.dumps(LINE | changes) + "\n")
    assert "the distance on miniature:moss" in validation.describe(tmp_path, config, 0)[0]


COLUMNS = ",".join(curves.COLUMNS)
CELLS = ",".join("0" for _ in curves.COLUMNS)


@pytest.mark.parametrize(
    "content",
    [
        "peak_gib\n1\n",
        f"{COLUMNS}\n{CELLS.replace('0', 'x', 1)}\n",
        f"{COLUMNS}\n{CELLS},0\n",
        f"{COLUMNS},other\n{CELLS},0\n",
        f"{COLUMNS}\n{CELLS}{'1' * 200_000}\n",
    ],
)
def test_damaged_curves_are_told_and_left_alone(tmp_path, content):
    file = tmp_path / "curves.csv"
    file.write_text(content)
    with pytest.raises(ValueError, match=r"curves\.csv could not be read .*; delete it; the run"):
        curves.Curves(tmp_path, Place(0, 0, 5))
    assert file.read_text() == content


@pytest.mark.parametrize(
    "arrays",
    [
        {"features": np.zeros(()), "shown": np.zeros(1)},
        {"features": np.zeros((2, 2), "<U3"), "shown": np.zeros((1, 1, 2, 2, 3), np.uint8)},
        {"features": np.zeros((2, 2), np.float32), "shown": np.zeros((1, 1, 2, 2, 3), "<U3")},
        {"features": np.zeros((2, 2), np.float32), "shown": np.zeros(3, np.uint8)},
        {"features": np.zeros((2, 2), np.float32)},
    ],
)
def test_damaged_features_are_told(tmp_path, arrays):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ValueError, match=r"a\.npz could not be read .*; delete it, and the same"):
        fvd._read(tmp_path / "a.npz")


@pytest.mark.parametrize(
    "content",
    ["[]", "{}", "[3]", NESTED, json.dumps([{"value": 1}]), json.dumps([CHECK | {"value": "x"}])],
)
def test_a_damaged_report_of_a_gate_is_told(tmp_path, content):
    (tmp_path / "b-cfg.json").write_text(content)
    for read in (gates.read_report, lambda file: list(card._gates(file.parent))):
        with pytest.raises(ValueError, match=r"b-cfg\.json could not be read .*; delete it, and"):
            read(tmp_path / "b-cfg.json")


def test_a_report_of_a_gate_tells_what_was_measured(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps([CHECK]))
    (check,) = gates.read_report(tmp_path / "a.json")
    assert check.as_dict() == CHECK


@pytest.mark.parametrize("change", ["short", "long", "steps", "cfg", "motion"])
def test_a_damaged_row_of_a_table_is_told(tmp_path, change):
    cells = list((ROW | ({change: "x"} if change in ROW else {})).values())
    cells = {"short": cells[:-1], "long": [*cells, "1"]}.get(change, cells)
    (tmp_path / "m.csv").write_text(f"{','.join(ROW)}\n{','.join(cells)}\n")
    with pytest.raises(ValueError, match=r"m\.csv could not be read .*; choose another --out"):
        sample.Table(tmp_path / "m.csv")
