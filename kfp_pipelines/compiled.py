"""The pipeline as the YAML that Kubeflow takes."""

import json
import tempfile
from pathlib import Path

import yaml
from kfp import compiler

from kfp_pipelines.components import IMAGE
from kfp_pipelines.pipeline import retraining

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "pipeline.md"
COMPILED = Path(__file__).resolve().parent / "retraining.yaml"


def compile_yaml(image: str = IMAGE) -> str:
    """Compile the pipeline; its steps run in `image`."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "retraining.yaml"
        compiler.Compiler().compile(retraining, str(path))
        return path.read_text(encoding="utf-8").replace(IMAGE, image)


def parameter_table(compiled: str) -> str:
    """The parameters of a compiled pipeline as a Markdown table."""
    pipeline = next(yaml.safe_load_all(compiled))
    rows = ["| parameter | default | |", "|---|---|---|"]
    for name, entry in pipeline["root"]["inputDefinitions"]["parameters"].items():
        default = json.dumps(entry["defaultValue"]) if "defaultValue" in entry else "must be given"
        if entry["parameterType"] == "NUMBER_INTEGER" and "defaultValue" in entry:
            default = str(int(entry["defaultValue"]))
        rows.append(f"| `{name}` | {default} | {' '.join(entry['description'].split())} |")
    return "\n".join(rows)


def specification(image: str = IMAGE) -> dict[str, object]:
    """The pipeline as the API takes it within a run."""
    pipeline, platforms = yaml.safe_load_all(compile_yaml(image))
    return {"pipeline_spec": pipeline, "platform_spec": platforms}
