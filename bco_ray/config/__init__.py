"""The spec: one pydantic model that is the YAML file, `jobs/*.yaml` and the job API's hyper-parameters.

Imports neither torch nor ray, so that `bco --help`, an editor or a web form can use it for free.
"""

from bco_ray.config.evaluation import EvaluationSpec, JudgeSpec
from bco_ray.config.gate import GateSpec
from bco_ray.config.load import apply_overrides, dump_spec, load_spec, parse_data, parse_spec
from bco_ray.config.rounds import RoundsSpec
from bco_ray.config.spec import (
    DataSpec,
    FieldMap,
    JobSpec,
    LoraSpec,
    ModelSpec,
    ObjectiveSpec,
    OutputSpec,
    ScoringSpec,
    ShiftSpec,
)
from bco_ray.config.training import CheckpointSpec, TrainingSpec, ZeroSpec

__all__ = [
    "CheckpointSpec",
    "DataSpec",
    "EvaluationSpec",
    "FieldMap",
    "GateSpec",
    "JobSpec",
    "JudgeSpec",
    "LoraSpec",
    "ModelSpec",
    "ObjectiveSpec",
    "OutputSpec",
    "RoundsSpec",
    "ScoringSpec",
    "ShiftSpec",
    "TrainingSpec",
    "ZeroSpec",
    "apply_overrides",
    "dump_spec",
    "load_spec",
    "parse_data",
    "parse_spec",
]
