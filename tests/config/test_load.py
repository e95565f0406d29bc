"""Specs in, errors that name the key, the file and the way out."""

from pathlib import Path

import pytest

from bco_ray.config import JobSpec, apply_overrides, dump_spec, load_spec, parse_data, parse_spec
from bco_ray.errors import SpecError

SMALLEST = "name: bot\nmodel: {base: /m}\ndata: {feedback: logs/*.jsonl}\n"


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "spec.yaml"
    path.write_text(text)
    return path


def test_smallest_spec_and_defaults(tmp_path: Path) -> None:
    spec = load_spec(write(tmp_path, SMALLEST))
    assert spec.data.feedback == ["logs/*.jsonl"]
    assert (spec.objective.beta, spec.objective.shift.half_life_rows, spec.training.rows_per_step) == (0.1, 512, 128)
    assert spec.registry_name == "bot"


def test_a_dumped_spec_is_the_same_spec(tmp_path: Path) -> None:
    spec = load_spec(write(tmp_path, SMALLEST), ["model.adapter={type: lora, r: 8}", "training.learning_rate=1e-4"])
    assert spec.model.adapter is not None
    assert spec.training.learning_rate == 1e-4
    assert load_spec(write(tmp_path, dump_spec(spec))) == spec


def test_adapter_none_and_numbers_as_label_spellings(tmp_path: Path) -> None:
    text = SMALLEST.replace("/m}", "/m, adapter: none}").replace("jsonl}", "jsonl, label_map: {'yes': true, 0: false}}")
    spec = load_spec(write(tmp_path, text))
    assert spec.model.adapter is None
    assert spec.data.label_map == {"yes": True, "0": False}


@pytest.mark.parametrize(("given", "workers"), [("3", (3, 3)), ("[1, 4]", (1, 4)), ("[2, 2]", (2, 2))])
def test_a_number_of_workers_or_a_range(tmp_path: Path, given: str, workers: tuple[int, int]) -> None:
    spec = load_spec(write(tmp_path, SMALLEST), [f"training.num_workers={given}"])
    assert spec.training.workers == workers
    assert load_spec(write(tmp_path, dump_spec(spec))).training == spec.training


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.learning_rat=1", r"unknown key training.learning_rat; did you mean training.learning_rate\?"),
        ("objective.shift.halflife=1", r"did you mean objective.shift.half_life_rows\?"),
        ("objective.shift.by_source={shrinkage_rows: 0}", "by_source.shrinkage_rows"),
        ("objective.shift.by_source={most: 0}", "by_source.most"),
        ("objective={loss: kto, shift: {by_source: {}}}", r"shift.by_source: only loss bco has one \(kto: this loss"),
        ("objective={loss: bco_pair, shift: {by_source: {}}}", "pairs hold as many ups as downs"),
        ("model.adapter={rank: 3}", r"unknown key model.adapter.rank"),
        ("nonsense.x=1", "unknown key nonsense"),
        ("training.num_workers=0", "training.num_workers"),
        ("training.num_workers=[2, 1]", r"training.num_workers: .*\[fewest, most\] must be in that order"),
        ("training.num_workers=[0, 2]", "training.num_workers"),
        ("training.max_failures=-1", "training.max_failures"),
        ("training.checkpoint.storage=ftp://x", "ftp://x cannot be written to; use a directory, s3:// or gs://"),
        ("training.hang_seconds=0", "training.hang_seconds"),
        ("training.hang_seconds=.inf", "training.hang_seconds"),
        ("training.checkpoint.every_steps=0", "training.checkpoint.every_steps"),
        ("training.checkpoint.keep=0", "training.checkpoint.keep"),
        ("training.checkpoint.keep_best=-1", "training.checkpoint.keep_best"),
        ("training.checkpoint.best_by=luck", "training.checkpoint.best_by"),
        ("scoring.num_workers=[4, 2]", r"num_workers: \[least, most\] must be in that order"),
        ("scoring.num_workers=0", "scoring.num_workers"),
        ("data.conflicts=vote", "data.conflicts"),
        ("data.max_votes_per_user=0", "data.max_votes_per_user"),
        ("data.format={map: {}}", "data.format.map"),
        ("training.deepspeed.zero_stage=7", "zero_stage"),
        ("scoring.min_density_ratio=20", "min_density_ratio must not exceed"),
        ("name=a/b", "name: String should match"),
        ("output.register_as=../evil", "register_as"),
        ("training.learning_rate=-1", "learning_rate"),
        ("training.learning_rate=.nan", "learning_rate"),
        ("objective.desirable_weight=-1", "desirable_weight"),
        ("objective.label_noise=0.5", "objective.label_noise"),
        ("objective={loss: kto, label_noise: 0.1}", "label_noise: kto is no likelihood of labels.*use bco, bce, dpo"),
        ("scoring.length_matching=auto", "scoring.length_matching"),
        ("training.max_tokens_per_micro_batch=0", "max_tokens_per_micro_batch"),
        ("data.label_map={good: 'yes'}", "label_map.good"),
        ("data.label_map={yes: true, no: false}", "label_map: .*put labels such as 'yes', .* in quotes"),
        ("training.learning_rate=fast", r"training.learning_rate: .* \(got 'fast'\)$"),
        ("gate.auc={}", "gate.auc: .*say min, max or both"),
        ("gate.auc={min: 1, max: 0}", "min must not exceed max"),
        ("gate.auk={min: 1}", r"unknown key gate.auk; did you mean gate.auc\?"),
        ("gate.auc={mim: 1}", r"unknown key gate.auc.mim; did you mean gate.auc.min\?"),
        ("gate.difference={win_rate: {min: 1}}", "unknown key gate.difference.win_rate"),
        ("gate.regression=1.5", "say all, or the share that must pass"),
        ("gate.regression=some", "gate.regression"),
        ("gate.canary={promote_at: -0.1, rollback_at: 0.1}", "rollback_at must not exceed promote_at"),
        ("gate.canary={min_votes: 0}", "gate.canary.min_votes"),
        ("judge={}", "name one judge: a rule, or the base_url"),
        ("judge={rule: shorter, base_url: 'http://x', model: m}", "name one judge"),
        ("judge={base_url: 'http://x'}", "name the model that judges"),
        ("judge={rule: contains}", "the rules contains and regex need one"),
        ("judge={rule: shorter, pattern: x}", "the rules contains and regex need one, others have none"),
        ("judge={rule: regex, pattern: '('}", "no regular expression"),
        ("judge={base_url: 'http://x', model: m, prompt: '{a} or {b}'}", r"\{prompt\} is missing"),
        ("evaluation.resamples=10", "evaluation.resamples"),
        ("evaluation.confidence=95", "evaluation.confidence"),
        ("data.feedback=[a", "the value is not valid YAML"),
        ("data.validation", "write it as section.key=value"),
        ("name.x=1", "name is a value, not a section"),
    ],
)
def test_bad_fields_are_named(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        load_spec(write(tmp_path, SMALLEST), [override])


@pytest.mark.parametrize(
    ("text", "message"),
    [("- a\n- b\n", "is a YAML mapping"), ("a: [", "not valid YAML"), ("name: x\n", "missing key model")],
)
def test_bad_files_are_named(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(SpecError, match=message) as caught:
        load_spec(path)
    assert str(path) in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"nowhere.yaml: no such spec file"):
        load_spec(tmp_path / "nowhere.yaml")


def test_the_data_section_alone() -> None:
    data = parse_data({"feedback": ["a.jsonl"]}, ["data.label_map={'meh': null}", "data.validation=0"])
    assert (data.feedback, data.label_map, data.validation) == (["a.jsonl"], {"meh": None}, 0.0)
    with pytest.raises(SpecError, match="only fields of data"):
        parse_data({"feedback": ["a.jsonl"]}, ["training.seed=1"])


def test_overrides_leave_the_original_alone() -> None:
    values = {"a": {"b": 1}}
    assert apply_overrides(values, ["a.b=2", "c.d=[1, 2]"]) == {"a": {"b": 2}, "c": {"d": [1, 2]}}
    assert values == {"a": {"b": 1}}


def test_every_field_is_documented() -> None:
    """docs/spec.md names every field of the spec."""
    documented = (Path(__file__).parents[2] / "docs" / "spec.md").read_text()
    spec = parse_spec({"name": "x", "model": {"base": "m"}, "data": {"feedback": "f"}}, where="test")
    missing = [
        name
        for section, value in spec.model_dump().items()
        for name in ([f"{section}.{key}" for key in value] if isinstance(value, dict) else [section])
        if f"`{name}`" not in documented and f"`{name}." not in documented
    ]
    assert not missing
    assert set(spec.model_dump()) == set(JobSpec.model_fields)
