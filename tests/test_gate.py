"""What files say: each leaf of a record replaced by odd values, given to all that reads records."""

import json
import math
import os
import random
import shutil
from contextlib import suppress
from dataclasses import replace

import pytest
import torch
from conftest import with_weights, write_and_read
from safetensors.torch import load as from_bytes
from safetensors.torch import save
from simulated import benchmark, of_run
from test_results import MEASUREMENT, RUN, place

from cifar_lightning.benchmark import candidates
from cifar_lightning.benchmark.load import load_data
from cifar_lightning.benchmark.network import build_network, load_backbone
from cifar_lightning.comparison import collect, markdown, section, tables, tensorboard, verdict
from cifar_lightning.comparison.choice import Need
from cifar_lightning.comparison.publish import publish
from cifar_lightning.comparison.records import Records
from cifar_lightning.deploy.card import Exported, card
from cifar_lightning.deploy.classifier import load
from cifar_lightning.errors import UserError
from cifar_lightning.runs.benchmark import BenchmarkRecord
from cifar_lightning.runs.carried_over import CarriedOver
from cifar_lightning.runs.completed import finished, show_files
from cifar_lightning.runs.find import find_run
from cifar_lightning.runs.folder import RunFolder
from cifar_lightning.runs.measurement import Measurement
from cifar_lightning.runs.results import RunResults, rows_of
from cifar_lightning.runs.run import Network, Run
from cifar_lightning.runs.weights import read_weights
from cifar_lightning.system import untrusted
from cifar_lightning.variants.agreement import Agreement

HARM = "harm-was-done"
ODD = (
    None,
    "",
    "x",
    "NaN",
    math.nan,
    math.inf,
    "17",
    0,
    -1,
    1.5,
    10**30,
    10**400,
    True,
    [],
    {},
    [[]],
    {"x": [None]},
    "../../x",
    "a" * 100_000,
    "\ud800",
    "\x1b[2J|=1+1\n",
    {"_target_": "os.mkdir", "path": HARM},
    [{"_target_": "os.mkdir", "path": HARM}],
    f"${{oc.create:{{_target_:os.mkdir,path:{HARM}}}}}",
    "${oc.env:HOME}",
)
MISSING = object()


def leaves(node, place=()):
    """List the places of all that a record holds, containers too."""
    if place:
        yield place
    items = node.items() if isinstance(node, dict) else ()
    items = enumerate(node[:2]) if isinstance(node, list) else items
    for key, inner in items:
        yield from leaves(inner, (*place, key))


def changed(record, place, value):
    copy = json.loads(json.dumps(record))
    node = copy
    for key in place[:-1]:
        node = node[key]
    if value is not MISSING:
        node[place[-1]] = value
    elif isinstance(node, dict):
        del node[place[-1]]
    return copy


@pytest.fixture
def outputs(finished_run, tmp_path):
    """Outputs with a trained run and another one."""
    outputs = tmp_path / "outputs"
    shutil.copytree(finished_run / "runs", outputs / "runs")
    place(outputs, replace(RUN, id="other"), MEASUREMENT)
    return outputs


@pytest.fixture
def folder(outputs):
    return find_run(outputs, "tiny")


def dump(record):
    """Write JSON as a stranger would: NaN and half characters too."""
    return json.dumps(record)


def read_by_all(outputs, folder, config):
    """Do what every command does with records, and see that the other run is as it was."""
    recorded = RunResults.read_all(outputs)
    rows = write_and_read(outputs)
    others = [row for row in rows if row.id == "other"]
    assert len(others) == 1
    assert others[0].lat_mean_ms == MEASUREMENT.latency.mean_ms
    assert find_run(outputs, "other").name == RUN.name
    found = collect.compare(Records(recorded), Need(85.0))
    assert any(
        entry.label == "other"
        for leaderboard in found.leaderboards
        for entry in leaderboard.entries
    )
    for leaderboard in found.leaderboards:
        for threads in leaderboard.threads:
            verdict.verdict(leaderboard, threads, Need(85.0))
        list(section._change_lines(leaderboard, leaderboard.entries))
        tables.in_order(leaderboard, "test_acc")
    markdown.unranked_lines(found)
    with suppress(UserError):
        finished(folder, config)
    with suppress(UserError):
        find_run(outputs, "tiny")
    with suppress(UserError):
        find_run(outputs, str(folder))
    return next((one for one in recorded if one.folder == folder), None)


def use(folder):
    """Do what is done with one run that has been read; a record of other data refuses in a line."""
    assert not publish(RunFolder(folder).outputs, [folder])
    show_files(folder)
    with suppress(UserError):
        load_data(folder)
    with suppress(UserError):
        load(folder)(torch.zeros(2, 3, 32, 32, dtype=torch.uint8))
    assert Network.of(Run.load(folder)).metadata
    exported = Exported("onnx", ["model.onnx"], "load()", Agreement(1, 0.0, 1), "test")
    assert card(candidates.of_run(folder, "fp32", 1), exported)


def reason_to_refuse(kind, path):
    try:
        kind.read(path)
    except ValueError as error:
        return str(error)
    return None


def test_changed_records(outputs, folder, resolved, caplog, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    config, _ = resolved("data=digits", f"outputs={outputs}")
    chance = random.Random(0)
    files = [RunFolder(folder).record, *sorted(RunFolder(folder).measurements.iterdir())[:1]]
    refused = kept = 0
    for path in files:
        good = path.read_text()
        record = json.loads(good)
        for leaf in leaves(record):
            for value in chance.sample((*ODD, MISSING), 2):
                path.write_text(dump(changed(record, leaf, value)))
                caplog.clear()
                one = read_by_all(outputs, folder, config)
                told = [line for line in caplog.messages if str(path) in line]
                kind = Run if path.name == "run.json" else Measurement
                reason = reason_to_refuse(kind, path)
                if reason is not None:
                    refused += 1
                    assert len(reason.splitlines()) == 1, (leaf, value)
                    assert len(reason) < 300
                    assert told, (leaf, value)
                else:
                    kept += 1
                    if kind is Run and one is not None and one.run is not None and kept % 6 == 0:
                        use(folder)
        path.write_text(good)
    assert refused > 100
    assert kept > 10
    assert not (tmp_path / HARM).exists()
    assert RunResults.read_all(outputs)


def test_drawing_changed_records(outputs, folder, tmp_path, monkeypatch):
    """What only the slower readers look at."""
    monkeypatch.chdir(tmp_path)
    path = RunFolder(folder).record
    record = json.loads(path.read_text())
    for leaf, value in (
        (("error",), "\x1b[2J"),
        (("classes",), ["$x_1$"] * 10),
        (("config", "augment"), {"x": {"y": 1}}),
        (("config", "trainer"), {}),
        (("config", "optim"), {"lr": 0.1, "x": [{"y": {}}]}),
        (("val_acc",), None),
    ):
        path.write_text(dump(changed(record, leaf, value)))
        assert Run.load(folder)
        tensorboard.draw(folder)
        use(folder)


def unreadable(path, kind):
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    elif kind == "link to nothing":
        path.symlink_to("nowhere")
    elif kind == "link to a device":
        path.symlink_to("/dev/zero")
    elif kind == "itself":
        path.symlink_to(path.name)
    elif kind == "brackets":
        path.write_text("[" * 100_000 + "]" * 100_000)
    elif kind == "nested":
        path.write_text('{"config": ' * 100_000)
    elif kind == "no text":
        path.write_bytes(b"\xff\xfe{}")
    elif kind == "large":
        with path.open("wb") as stream:
            stream.truncate(untrusted.MAX_BYTES + 2)
    else:
        path.write_text("")


KINDS = ("fifo", "directory", "link to nothing", "link to a device", "itself", "brackets",
         "nested", "no text", "large", "empty")  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_record_is_named_and_left_out(kind, outputs, folder, caplog, resolved):
    config, _ = resolved("data=digits", f"outputs={outputs}")
    odd = outputs / "runs" / "odd" / "run.json"
    odd.parent.mkdir()
    unreadable(odd, kind)
    measurement = RunFolder(folder).measurements / "odd@a-t1-full.json"
    unreadable(measurement, kind)
    one = read_by_all(outputs, folder, config)
    assert [row.variant for row, _ in one.lines] == ["fp32", "fused"]
    for path in (odd, measurement):
        (line,) = {line for line in caplog.messages if str(path) in line}
        assert len(line.splitlines()) == 1
        assert len(line) < 400


def test_another_users_file(outputs, folder, caplog):
    if os.geteuid() == 0:
        pytest.skip("root reads every file")
    path = outputs / "runs" / "odd" / "run.json"
    path.parent.mkdir()
    path.write_text("{}")
    path.chmod(0)
    assert len(write_and_read(outputs)) == 3
    assert f"{path} is damaged and left out (Permission denied)" in caplog.messages


def test_records_are_written_as_they_are_read():
    """Also with what JSON has no word for."""
    odd = replace(MEASUREMENT, notes={"error": math.nan}, reason="half \ud800")
    again = Measurement.decoded(odd.to_json())
    assert (again.notes, again.reason) == ({"error": None}, "half ?")
    assert replace(again, notes={}, reason=None) == MEASUREMENT
    # Bytes of a file name that are no UTF-8: two such names stay two.
    names = [os.fsdecode(b"a\xff"), os.fsdecode(b"a\xfe")]
    assert json.loads(untrusted.encode(names)) == ["a\\xff", "a\\xfe"]


def test_what_is_said_beside_the_figures_has_types():
    good = json.loads(MEASUREMENT.to_json())
    good["notes"] = {"fusing_error": 1e-7, "onnxruntime": "1.32.0"}
    good["environment"]["flags"] = {"cudnn.benchmark": True, "threads": 1}
    assert json.loads(Measurement.decoded(dump(good)).to_json()) == good
    for leaf, value in (
        (("notes", "fusing_error"), [1e-7]),
        (("environment", "flags", "threads"), {"one": 1}),
    ):
        with pytest.raises(ValueError, match=leaf[0]):
            Measurement.decoded(dump(changed(good, leaf, value)))


def test_what_a_benchmark_says_of_its_device_has_types():
    good = json.loads(benchmark([(of_run(RUN), 1.0)]).to_json())
    good["state"] = {"before": {"sm_mhz": 1980, "throttle_reasons": ["GpuIdle"]}, "after": {}}
    assert json.loads(BenchmarkRecord.decoded(dump(good)).to_json()) == good
    for leaf, value in (
        (("state", "before", "sm_mhz"), "fast"),
        (("state", "between"), {}),
    ):
        with pytest.raises(ValueError, match=leaf[0]):
            BenchmarkRecord.decoded(dump(changed(good, leaf, value)))


def test_figures_that_contradict_each_other_are_refused():
    good = replace(MEASUREMENT, test_acc=90.0, confusion=[[9, 1], [1, 9]])
    assert Measurement.decoded(good.to_json()) == good
    nowhere = replace(MEASUREMENT, test_acc=None, confusion=None, reason="no accuracy: no data")
    assert Measurement.decoded(nowhere.to_json()) == nowhere
    for wrong, what in (
        (replace(good, test_acc=91.0), "test_acc: 91"),
        (replace(good, confusion=[[9, 1]]), "not a square"),
        (replace(good, confusion=[[0, 0], [0, 0]]), "not a square"),
        (replace(good, latency=None), "latency: missing"),
        (replace(good, benchmark=None), "benchmark: missing"),
        (replace(good, relative=None), "relative: missing"),
        (replace(good, candidate="x"), "candidate"),
        (replace(good, recipe={"int8": 1}), "recipe: not of fp32"),
        (replace(good, latency=replace(good.latency, n=0)), "n"),
        (replace(good, test_acc=101.0), "test_acc"),
        (replace(MEASUREMENT, test_acc=None), "test_acc: missing"),
        (replace(nowhere, carried_over=CarriedOver("CPU", {})), "carried_over: without"),
    ):
        with pytest.raises(ValueError, match=what):
            Measurement.decoded(wrong.to_json())


def test_classes_that_contradict_each_other_are_refused(folder):
    run = Run.load(folder)
    data, model = run.config["data"], run.config["model"]
    for changed, what in (
        ({"data": data | {"num_classes": 7}}, "num_classes"),
        ({"model": model | {"num_classes": 7}}, "model.num_classes=7"),
        ({name: run.config[name] | {"num_classes": 7} for name in ("data", "model")}, "10 of 7"),
    ):
        with pytest.raises(ValueError, match=what):
            Run.decoded(replace(run, config=run.config | changed).to_json())
    network = Network.of(run)
    with pytest.raises(ValueError, match="9 of 10"):
        Network.decoded(replace(network, classes=network.classes[1:]).to_json())


# --- Another run's files ---------------------------------------------------------------------


def test_another_runs_measurement_is_named_and_left_out(outputs, folder, caplog):
    """Copied as it is, under another name, or of weights that are gone."""
    (first, _) = sorted(RunFolder(folder).measurements.iterdir())
    other = RunFolder.of(outputs, RUN.name).measurements / first.name
    shutil.copy(first, other)
    renamed = first.with_name("int8@a-t1-full.json")
    shutil.copy(first, renamed)
    old = replace(Measurement.read(first), threads=7, weights="0" * 64).save(folder)
    assert len(write_and_read(outputs)) == 3
    for path, reason in (
        (other, f"of the run {folder.name}"),
        (renamed, "not the measurement that its name says"),
        (old, "of other weights than the run's"),
    ):
        assert f"{path} is damaged and left out ({reason})" in caplog.messages
    assert not Measurement.exists(folder, "int8", 1, "full")
    assert not Measurement.exists(folder, "fp32", 7, "quick")
    assert Measurement.exists(folder, "fp32", 1, "quick")


def test_a_copied_run_is_one_row(outputs, folder, caplog):
    copy = shutil.copytree(folder, folder.with_name("copied"))
    rows = write_and_read(outputs)
    assert [row.run for row in rows].count(folder.name) == 2  # its two variants
    line = f"{copy} is left out: it holds a copy of the run {folder.name}"
    assert line in caplog.messages
    assert line in Records.read([outputs]).damaged
    assert find_run(outputs, "tiny") == folder
    # By its path it can be read, wherever it lies, and the outputs can move as a whole.
    assert find_run(outputs, str(copy)) == copy
    assert load_backbone(copy)
    assert len(rows_of(copy)) == 2
    moved = outputs.rename(outputs.with_name("moved"))
    assert len(write_and_read(moved)) == 3


def test_no_id_hides_another_runs_name(outputs, folder):
    other = find_run(outputs, "other")
    replace(Run.load(other), id=folder.name).save(other)
    assert find_run(outputs, folder.name) == folder
    assert find_run(outputs, other.name) == other


def test_another_runs_weights_are_refused(outputs, folder, resolved, tmp_path):
    weights = folder / "weights.safetensors"
    network = Network.from_weights(weights.read_bytes())
    assert network.run == folder.name
    assert load(weights).network.state_dict().keys() == load_backbone(folder).state_dict().keys()
    config, _ = resolved("data=digits", f"outputs={outputs}", "benchmark.variants=[]")
    assert finished(folder, config)
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    for use_it in (load_backbone, lambda folder: finished(folder, config)):
        with pytest.raises(UserError, match=r"they were changed\); rerun=true"):
            use_it(folder)
    from safetensors.torch import load_file, save_file

    save_file(load_file(weights), weights, metadata=replace(network, run="another").metadata)
    with pytest.raises(UserError, match="they are of another"):
        load_backbone(folder)
    weights.unlink()
    os.mkfifo(weights)
    with pytest.raises(UserError, match="not a regular file"):
        load_backbone(folder)


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64, torch.float64, torch.float16])
def test_weights_of_another_type_are_refused(dtype, folder):
    with_weights(folder, lambda tensor: tensor.to(dtype))
    with pytest.raises(UserError, match="not the weights of this run's network"):
        load_backbone(folder)


@pytest.mark.parametrize("classes", [10**7, 10**12, 10**18])
def test_a_network_of_any_size_costs_no_memory(classes, folder):
    """The record does not pass; whoever builds from other metadata is refused, too."""
    run = Run.load(folder)
    model = run.config["model"] | {"num_classes": classes}
    network = replace(Network.of(run), model=model)
    content = save(from_bytes(read_weights(folder, run)), network.metadata)
    with pytest.raises(UserError, match="not the weights of this run's network"):
        build_network(network, content, folder)
    replace(run, config=run.config | {"model": model}).save(folder)
    with pytest.raises(UserError, match=r"model\.num_classes"):
        load_backbone(folder)
