import re

import pytest
from conftest import ROOT
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.utils import get_object
from omegaconf import OmegaConf

from cifar_lightning.cli.arguments import rename
from cifar_lightning.config import components, options, rules, schema, texts
from cifar_lightning.config.presets import set_over_options
from cifar_lightning.errors import UserError
from cifar_lightning.runs import identity, resolve
from cifar_lightning.system import processor
from cifar_lightning.training.build import build

OPTIONS = {
    group: sorted(path.stem for path in (ROOT / "conf" / group).glob("[!_]*.yaml"))
    for group in ("model", "optim", "scheduler", "augment", "benchmark", "trainer", "experiment")
}


def name_of(resolved, *overrides):
    return identity.run_name(*resolved(*overrides))


@pytest.mark.parametrize(
    "override",
    [
        f"{group}={option}"
        for group in OPTIONS
        for option in OPTIONS[group]
        if option not in ("d1", "repvgg_90")  # need a finished teacher
    ],
)
def test_every_configuration_is_instantiated(override, resolved, tmp_path):
    on_cpu = ("data.device=cpu", "compile=false")
    more = {
        "model=timm": ("model.name=test_resnet",),
        "experiment=best": on_cpu,
        "experiment=gpu": on_cpu,
    }
    settings, _ = resolved(override, "trainer.accelerator=cpu", *more.get(override, ()))
    rules.check(settings)
    experiment = build(settings, tmp_path)
    assert experiment.trainer.max_epochs == settings["epochs"]


def test_any_preset_is_trained_on_a_gpu(resolved):
    alone, _ = resolved("experiment=fast94")
    both, choices = resolved("experiment=[fast94,gpu]")
    assert both["compile"] is False
    assert resolved("experiment=best")[0]["compile"] == "reduce-overhead"
    assert (both["data"]["device"], both["trainer"]["accelerator"]) == ("gpu", "gpu")
    same = resolved("experiment=fast94", "precision=bf16-mixed")
    assert identity.run_name(both, choices) == identity.run_name(*same)
    assert both["optim"] == alone["optim"] | {"fused": True}


@pytest.mark.parametrize(
    ("features", "precision"), [({"avx512f"}, "32-true"), ({"avx512_bf16"}, "bf16-mixed")]
)
def test_short_presets_train_in_what_the_cpu_has(features, precision, resolved, monkeypatch):
    monkeypatch.setattr(processor, "cpu_features", lambda: frozenset(features))
    assert resolved("experiment=fast94")[0]["precision"] == precision
    assert resolved("experiment=fast94", "precision=32-true")[0]["precision"] == "32-true"
    assert resolved("experiment=b1")[0]["precision"] == "32-true"


@pytest.mark.parametrize("path", sorted((schema.CONF_DIR / "experiment").glob("*.yaml")), ids=str)
def test_a_preset_gives_a_reason_for_each_value(path):
    assert not bare_values(path.read_text())


def bare_values(text):
    bare = re.findall(r"^ *(?!id:)\w+: *[^#\s][^#\n]*$", text, re.M)
    return [line for line in bare if "override" not in line]


def test_a_value_without_a_reason_is_seen():
    preset = "id: x\ndefaults:\n  - override /a: b\nepochs: 3\nlr: 1  # so\n"
    assert bare_values(preset) == ["epochs: 3"]


@pytest.mark.parametrize(
    ("preset", "teacher"), [("d1", "B2"), ("repvgg_90", "cifarnet-sgd-linear-e36-s0")]
)
def test_what_is_distilled_needs_its_teacher(preset, teacher, resolved):
    with pytest.raises(UserError, match=rf"distill\.teacher={teacher}: no such run"):
        resolved(f"experiment={preset}")


@pytest.mark.parametrize("option", ["cifar10", "cifar100", "imagefolder", "digits"])
def test_every_data_configuration_is_instantiated(option, resolved, tmp_path):
    extra = ("data.name=mine", "data.root=there") if option == "imagefolder" else ()
    settings, _ = resolved(f"data={option}", *extra, "trainer.accelerator=cpu")
    rules.check(settings)
    assert build(settings, tmp_path).data.name in ("cifar10", "cifar100", "mine", "digits")


def composed(name, *overrides):
    resolve.register()
    with initialize_config_dir(str(schema.CONF_DIR), version_base="1.3"):
        return compose(name, list(overrides))


def test_a_command_gets_its_schemas_object():
    config = rules.typed(composed("measure", "run=[A,B]", "threads=[1,2]"), schema.MeasureConfig)
    assert (config.run, config.threads) == (["A", "B"], [1, 2])
    assert config.variants == ["fp32"]
    with pytest.raises(UserError, match="top=0: "):
        rules.typed(composed("predict", "run=A", "images=[x]", "top=0"), schema.PredictConfig)


def test_the_first_missing_value_is_named_with_an_example():
    for overrides, line in (((), "run: needs a value, say run=B1"), (("run=B1",), "images: needs")):
        with pytest.raises(UserError, match=line):
            rules.typed(composed("predict", *overrides), schema.PredictConfig)


@pytest.mark.parametrize(
    ("kind", "single", "lists", "paths"),
    [
        (
            schema.TrainConfig,
            {
                "id", "outputs", "precision", "distill.teacher", "init", "model.name", "data.name",
                "data.root", "data.cache_dir", "data.md5", "data.device",
            },
            {"data.mirrors"},
            {"outputs", "distill.teacher", "init", "data.root", "data.cache_dir"},
        ),
        (
            schema.MeasureConfig,
            {"protocol", "device", "outputs", "data_root"},
            {"run", "networks", "variants"},
            {"outputs", "data_root", "run"},
        ),
        (
            schema.ReportConfig,
            {"to", "stat", "baseline", "sort", "detail"},
            {"outputs", "filter"},
            {"outputs", "to"},
        ),
    ],
)  # fmt: skip
def test_texts_are_told_by_their_types(kind, single, lists, paths):
    found = texts.text_keys(kind).items()
    own = {key: text for key, text in found if not key.startswith(("hydra.", "logger."))}
    assert {key for key, text in own.items() if not text.several} == single
    assert {key for key, text in own.items() if text.several} == lists
    assert {key for key, text in own.items() if text.path} == paths


def test_what_the_components_take_as_texts_is_known():
    """Their builders' types say so, too; importing those takes too long for a command line."""
    known = texts.text_keys(schema.TrainConfig)
    missing = {}
    for group in ("model", "data", "distill", "logger"):
        for option in schema.options_of(group):
            nodes = OmegaConf.to_container(
                options.read_option(ROOT / "conf" / group / f"{option}.yaml")
            )
            for prefix, node in nodes.items() if group == "logger" else [("", nodes)]:
                path = ".".join(filter(None, (group, prefix)))
                for name, one in components.parameters_of(get_object(node["_target_"])).items():
                    text = texts.text_of(one.annotation) or str(one.annotation).count("Path")
                    if text and f"{path}.{name}" not in known:
                        missing[f"{path}.{name}"] = one.annotation
    assert not missing


def test_names_are_stable(resolved):
    # Changing these renames every run that users have: they would be trained again.
    assert name_of(resolved) == "mobilenetv3-sgd-cosine-e30-s0-f13a5722"
    assert name_of(resolved, "experiment=demo") == "mobilenetv3-sgd-cosine-e12-s0-fde59c50"


@pytest.mark.parametrize(
    "override",
    [
        "id=B1",
        "outputs=elsewhere",
        "benchmark=quick",
        "benchmark.threads=[1,2]",
        "channels_last=false",
        "compile=true",
        "compile=reduce-overhead",
        "rerun=true",
        "data.root=elsewhere",
        "data.num_workers=2",
        "data.eval_batch_size=10",
        "trainer.accelerator=cpu",
        "trainer.deterministic=true",
        "trainer.profiler=simple",
        "data.device=gpu",
        "+optim.fused=true",
        "ema=null",
    ],
)
def test_what_leaves_the_weights_alone_leaves_the_name(override, resolved):
    assert name_of(resolved, override) == name_of(resolved)


@pytest.mark.parametrize(
    ("one", "same"),
    [
        ("model.width=1", "model.width=1.0"),
        ("model.dropout=0", "model.dropout=0.0"),
        ("optim.lr=1e-1", "optim.lr=0.1"),
        ("optim.lr=1", "optim.lr=1.0"),
        ("+optim.dampening=0", "+optim.dampening=0.0"),
        ("+trainer.gradient_clip_val=1", "+trainer.gradient_clip_val=1.0"),
        ("data.mean=[0,0,0]", "data.mean=[0.0,0.0,0]"),
        ("scheduler.warmup=0", "scheduler.warmup=0.0"),
        ("label_smoothing=0", "label_smoothing=0.0"),
        ("label_smoothing=0", "label_smoothing=-0.0"),
        ("+optim.dampening=0", "+optim.dampening=-0.0"),
        ("+optim.x=[1,[2,{a: 3}]]", "+optim.x=[1.0,[2.0,{a: 3.0}]]"),
        ("trainer.devices=auto", "trainer.devices=1"),
    ],
)
def test_equal_values_give_one_name(one, same, resolved):
    cpu = "trainer.accelerator=cpu"
    assert name_of(resolved, one, cpu) == name_of(resolved, same, cpu)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("+optim.x=1", "+optim.x=true"),
        ("+optim.x=0", "+optim.x=false"),
        ("+optim.x=1", "+optim.x='1'"),
        ("+optim.x=9007199254740993", "+optim.x=9007199254740992"),
        ("trainer.devices=1", "trainer.devices=2"),
    ],
)
def test_other_values_give_another_name(one, other, resolved):
    assert name_of(resolved, one) != name_of(resolved, other)


@pytest.mark.parametrize("devices", ["auto", "-1", "2", "'2'", "[0,1]", "'0,1'"])
def test_the_number_of_processes_is_in_the_name(devices, resolved, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    name = name_of(resolved, f"trainer.devices={devices}")
    assert name == name_of(resolved, "trainer.devices=2")
    assert name != name_of(resolved)
    # Written as it was resolved, it can be read on another machine.
    settings, choices = resolved(f"trainer.devices={devices}")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert identity.run_name(settings, choices) == name
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert name_of(resolved, "trainer.devices=auto") == name


def test_all_of_a_cpu_is_no_number_of_processes(resolved):
    with pytest.raises(UserError, match=r"trainer\.devices=-1: must be auto or a number"):
        resolved("trainer.devices=-1", "trainer.accelerator=cpu")


def test_what_changes_the_weights_changes_the_name(resolved):
    overrides = [
        "model=mobilenetv2",
        "model.output_stride=16",
        "model.bn_momentum=0.01",
        "optim=adamw",
        "optim.lr=0.2",
        "scheduler=step",
        "scheduler.warmup=0",
        "augment=none",
        "augment=crop",
        "augment=[flip,crop]",
        "data=digits",
        "data.name=other",
        "data.val_fraction=0.2",
        "data.mean=[0,0,0]",
        "epochs=31",
        "batch_size=127",
        "seed=1",
        "precision=bf16-mixed",
        "label_smoothing=0",
        "ema=0.9",
        "augment=[crop,flip,cutout]",
        "model.zero_init=true",
        "trainer.devices=2",
        "+trainer.gradient_clip_val=1",
    ]
    names = {name_of(resolved, override) for override in overrides} | {name_of(resolved)}
    assert len(names) == len(overrides) + 1


def test_a_feature_that_is_off_renames_nothing(resolved):
    assert name_of(resolved, "+model.drop_path=null") == name_of(resolved)


def test_a_module_may_move(resolved):
    config, choices = resolved()
    name = identity.run_name(config, choices)
    config["model"]["_target_"] = (
        "cifar_lightning.elsewhere." + config["model"]["_target_"].rpartition(".")[2]
    )
    assert identity.run_name(config, choices) == name
    config["model"]["_target_"] = "another.package.build"
    assert identity.run_name(config, choices) != name


def test_no_digest_is_a_number(resolved):
    config, choices = resolved()
    for seed in range(200):
        digest = identity.run_name(config | {"seed": seed}, choices).rpartition("-")[2]
        assert re.fullmatch("[a-f][0-9a-f]{7}", digest)
        with pytest.raises(ValueError, match="could not convert"):
            float(digest)


def test_name_shows_choices_epochs_and_seed(resolved):
    name = name_of(
        resolved, "model=resnet18", "optim=adamw", "scheduler=step", "epochs=7", "seed=3"
    )
    assert name.startswith("resnet18-adamw-step-e7-s3-")


def takes(number: float, names: list[str], flag: bool = False, limit: int | None = None) -> None:
    """A component for the tests below."""


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"number": 1, "names": ["a"], "flg": True}, "part.flg: no such key; did you mean flag?"),
        ({"number": "x", "names": ["a"]}, "part.number=x: must be float"),
        ({"number": float("nan"), "names": ["a"]}, "part.number=nan: must be float"),
        ({"number": True, "names": ["a"]}, "part.number=True: must be float"),
        ({"number": 1, "names": "a"}, "part.names=a: must be list"),
        ({"number": 1, "names": [1]}, "part.names=[1]: must be list"),
        ({"number": 1, "names": [], "limit": 1.5}, "part.limit=1.5: must be int or null"),
        ({"names": []}, "part.number: needed by"),
    ],
)
def test_a_component_takes_what_its_signature_says(settings, message):
    with pytest.raises(UserError) as caught:
        components.check_component("part", {"_target_": f"{__name__}.takes", **settings})
    assert str(caught.value).startswith(message)


def passes_on(number: int, **settings: int) -> None:
    """A component whose other keys its signature does not name."""


def test_what_a_signature_hands_on_is_told_by_calling_it():
    node = {"_target_": f"{__name__}.passes_on", "number": 1, "width": 2}
    components.check_component("part", node)
    with pytest.raises(UserError, match=r"part\.number=x: must be int"):
        components.check_component("part", node | {"number": "x"})
    with pytest.raises(UserError, match=r"part\.number: needed by"):
        components.check_component("part", {"_target_": f"{__name__}.passes_on", "width": 2})


def test_a_good_component_passes():
    node = {"_target_": f"{__name__}.takes", "number": 1, "names": ["a"], "limit": None}
    components.check_component("part", node)


def test_a_target_that_is_not_there():
    with pytest.raises(UserError, match=r"part\._target_=no\.such\.thing"):
        components.check_component("part", {"_target_": "no.such.thing"})


def test_networks_are_called_model_on_the_command_line():
    """Hydra would take that name for its group."""
    names = schema.renamed_arguments(schema.MeasureConfig)
    assert names == {"model": "networks"}
    assert rename("model=[resnet8]", names) == "networks=[resnet8]"
    assert rename("run=model=x", names) == "run=model=x"
    assert rename("model", names) == "networks"
    assert not schema.renamed_arguments(schema.TrainConfig)


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ("experiment=quick", []),
        ("experiment=quick epochs=2 optim.lr=0.3 model.width=0.5", []),
        ("optim=adamw optim.lr=0.3", []),
        ("experiment=quick optim=adamw optim.lr=1e-3 optim.weight_decay=0.1", []),
        (
            "experiment=quick optim=adamw optim.weight_decay=0.1",
            ["experiment=quick sets optim.lr=0.2 where optim=adamw has 0.002"],
        ),
        (
            "experiment=fast94 model=cifarnet_85 seed=1",
            ["experiment=fast94 sets model.channels=[64,256,256] where model=cifarnet_85 has [16,"],
        ),
        ("experiment=fast85 augment=[crop] augment.crop={padding:3,mode:reflect}", []),
        (
            "experiment=[fast85,gpu] augment=[flip,crop]",
            [
                "experiment=[fast85,gpu] sets augment.crop.padding=2 where augment=crop has 4, "
                "augment.crop.mode=reflect where augment=crop has null"
            ],
        ),
    ],
)
def test_what_a_preset_sets_over_an_option_is_told(typed, told, monkeypatch):
    resolve.register()
    with initialize_config_dir(str(schema.CONF_DIR), version_base="1.3"):
        config = compose("train", typed.split(), return_hydra_config=True)
    monkeypatch.setattr(HydraConfig.instance(), "cfg", config)
    lines = set_over_options(config)
    assert len(lines) == len(told), lines
    for line, begins in zip(lines, told, strict=True):
        assert line.startswith(begins), line
