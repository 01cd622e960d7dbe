"""Registering a bundle, and fetching it back."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.measured import measured_bundle
from training import fetch, register
from training.engine.tracking import tracked
from training.fetch import fetch_bundle
from training.register import find_evaluation
from training.release.registry import MODELS, aliases, find_version, parts_of
from vlmir.bundle import Bundle, load_bundle
from vlmir.errors import BundleError, OptionError
from vlmir.registry import ONNX_DIGEST, digest_of_onnx

if TYPE_CHECKING:
    from mlflow import MlflowClient

pytestmark = pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SAWarning")

FIRST = {"captioner": "1", "embedder": "1", "sampler": "1"}


@pytest.fixture
def bundle(small_bundle_folder: Path, tmp_path: Path) -> Bundle:
    return measured_bundle(small_bundle_folder, tmp_path / "small-1")


def files(version: str, part: str, folder: Path) -> set[str]:
    from mlflow.artifacts import download_artifacts

    folder.mkdir(parents=True)
    download_artifacts(f"models:/{MODELS[part]}/{version}", dst_path=str(folder))
    found = {str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file()}
    return found - {"registered_model_meta"}


def test_each_part_becomes_a_version_that_says_what_it_is(
    registry: MlflowClient, bundle: Bundle, tmp_path: Path
) -> None:
    from mlflow.models import get_model_info

    assert register.register(bundle, evaluation=find_evaluation(bundle)) == FIRST
    for part, name in MODELS.items():
        version = registry.get_model_version(name, "1")
        assert version.tags["digest"] == bundle.digests[part]
        assert (version.tags["part"], version.tags["release"]) == (part, "small-1")
        assert (ONNX_DIGEST in version.tags) == (part == "embedder")
        assert version.description.startswith("# Small")
        assert aliases(registry, part) == {"candidate": "1"}
    assert parts_of(find_version(registry, "candidate")) == FIRST

    weights = {f"{part}/model.safetensors" for part in MODELS}
    held = set.union(*(files("1", part, tmp_path / part) for part in MODELS))
    papers = {"bundle.json", "MODEL_CARD.md", "evaluation.json", "MLmodel"}
    onnx = {"onnx/clip_image.onnx", "onnx/clip_text.onnx"}
    assert held == weights | papers | onnx | {"captioner/tokenizer.json"}
    graphs = digest_of_onnx(tmp_path / "embedder" / "onnx")
    assert registry.get_model_version(MODELS["embedder"], "1").tags[ONNX_DIGEST] == graphs

    shapes = {}
    for name in MODELS.values():
        signature = get_model_info(f"models:/{name}/1").signature
        specs = [*signature.inputs.inputs, *signature.outputs.inputs]
        shapes |= {spec.name: (str(spec.type), spec.shape) for spec in specs}
    assert shapes["views"] == ("float32", (-1, 6, 64, 64)) and shapes["ids"] == ("int64", (-1, 12))
    assert shapes["x"] == shapes["output"] == ("float32", (-1, 3, -1, -1))
    assert shapes["f_D"] == ("float32", (-1, 32)) and shapes["degradations"][1] == (-1, 11)
    assert shapes["image"] == ("float32", (-1, 3, 32, 32)) and shapes["caption"][1] == (-1,)


def test_what_is_registered_is_not_registered_twice(
    registry: MlflowClient, bundle: Bundle, tmp_path: Path
) -> None:
    evaluation = find_evaluation(bundle)
    assert register.register(bundle, evaluation=evaluation) == FIRST
    assert register.register(bundle, evaluation=evaluation) == FIRST
    newer = measured_bundle(bundle.folder, tmp_path / "small-2", psnr=27.0, changed=("sampler",))
    assert register.register(newer) == FIRST | {"sampler": "2"}
    assert parts_of(find_version(registry, "candidate")) == FIRST | {"sampler": "2"}
    # Measured again, the same weights have other papers; the gate must see the new ones.
    again = measured_bundle(newer.folder, tmp_path / "small-3", psnr=28.0)
    assert register.register(again) == FIRST | {"sampler": "3"}
    assert register.register(bundle, evaluation=evaluation) == FIRST
    assert aliases(registry) == {"candidate": "1"}


def test_another_embedder_brings_another_version_of_the_sampler(
    registry: MlflowClient, bundle: Bundle, tmp_path: Path
) -> None:
    register.register(bundle)
    newer = measured_bundle(bundle.folder, tmp_path / "small-2", changed=("embedder",))
    assert register.register(newer) == {"captioner": "1", "embedder": "2", "sampler": "2"}
    assert fetch_bundle(1, tmp_path / "one").digests == bundle.digests
    assert fetch_bundle(2, tmp_path / "two").digests == newer.digests


def test_a_bundle_without_captioner_names_none(
    registry: MlflowClient, imported_bundle_folder: Path, bundle: Bundle, tmp_path: Path
) -> None:
    register.register(bundle)
    mute = measured_bundle(imported_bundle_folder, tmp_path / "mute")
    assert register.register(mute) == {"embedder": "2", "sampler": "2"}
    assert "captioner_version" not in find_version(registry, "candidate").tags
    assert aliases(registry, "captioner") == {}
    assert fetch_bundle("candidate", tmp_path / "fetched").digests == mute.digests


def test_versions_are_linked_to_the_runs_that_made_them(
    registry: MlflowClient, bundle: Bundle
) -> None:
    folders = {name: Path("runs") / name for name in ("pretrain", "stage1", "stage2")}
    before: dict[str, Path] = {}
    # Stage 2 names stage 1 alone, as it does with its defaults.
    for name, built_on in (
        ("pretrain", before),
        ("stage1", {"captioner": folders["pretrain"]}),
        ("stage2", {"embedder": folders["stage1"]}),
    ):
        with tracked("small", name, folders[name], params={}) as tracker:
            tracker.built_on(**built_on)
    runs = {n: json.loads((f / "run.json").read_text())["run"] for n, f in folders.items()}
    register.register(bundle, stage2=folders["stage2"])
    made_by = dict(zip(MODELS, runs.values(), strict=True))
    for part, name in MODELS.items():
        version = registry.get_model_version(name, "1")
        assert version.run_id == made_by[part]
        assert {p: version.tags[f"vlmir.{p}_run"] for p in MODELS} == made_by
        (output,) = registry.get_run(made_by[part]).outputs.model_outputs
        assert version.source == f"models:/{output.model_id}"
    kept = registry.download_artifacts(runs["stage2"], "bundle", ".")
    assert load_bundle(Path(kept).resolve()).digests == bundle.digests


def test_a_run_that_is_not_there_is_named_only(registry: MlflowClient, bundle: Bundle) -> None:
    deleted = registry.create_run("0").info.run_id
    registry.delete_run(deleted)
    Path("stage2").mkdir()
    for run in (deleted, "0" * 32):
        Path("stage2/run.json").write_text(json.dumps({"run": run, "parent": "1" * 32}))
        register.register(bundle, stage2=Path("stage2"))
        sampler = find_version(registry, "candidate")
        assert sampler.tags["vlmir.sampler_run"] == run and not sampler.run_id
        registry.delete_model_version(MODELS["sampler"], sampler.version)


def test_a_long_card_is_cut_where_a_paragraph_ends(registry: MlflowClient, bundle: Bundle) -> None:
    (bundle.folder / "MODEL_CARD.md").write_text("# Small\n\n" + "A paragraph.\n\n" * 500)
    register.register(bundle)
    text = find_version(registry, "candidate").description
    assert 4900 < len(text) <= 5000
    assert text.endswith("A paragraph.\n\n… (the rest is in the sampler's MODEL_CARD.md)")


def test_a_lost_connection_leaves_no_alias_and_the_next_try_goes_on(
    registry: MlflowClient, bundle: Bundle
) -> None:
    import mlflow
    from mlflow.exceptions import MlflowException

    whole = mlflow.register_model

    def breaks(uri: str, name: str, **how: object) -> object:
        if name == MODELS["sampler"]:
            raise MlflowException("connection lost")
        return whole(uri, name, **how)

    with pytest.MonkeyPatch.context() as broken:
        broken.setattr(mlflow, "register_model", breaks)
        with pytest.raises(MlflowException, match="connection lost"):
            register.register(bundle)
    assert [aliases(registry, part) for part in MODELS] == [{}, {}, {}]
    assert register.register(bundle) == FIRST


def test_what_does_not_belong_together_is_refused(
    registry: MlflowClient, bundle: Bundle, tmp_path: Path
) -> None:
    with pytest.raises(BundleError, match=r"has not been measured: run training\.evaluate"):
        register.register(dataclasses.replace(bundle, metrics={}))
    other = measured_bundle(bundle.folder, tmp_path / "other", changed=("sampler",))
    with pytest.raises(ValueError, match="is not of the bundle"):
        register.register(bundle, evaluation=other.folder / "evaluation.json")
    evaluation = bundle.folder / "evaluation.json"
    evaluation.write_text(evaluation.read_text().replace("26.0", "27.0"))
    with pytest.raises(ValueError, match="another number"):
        register.register(bundle, evaluation=evaluation)
    with pytest.raises(FileNotFoundError, match="no stage that MLflow recorded"):
        register.register(bundle, stage2=tmp_path)
    assert registry.search_registered_models() == []


def test_the_evaluation_is_found_where_it_was_written(bundle: Bundle, tmp_path: Path) -> None:
    own = bundle.folder / "evaluation.json"
    assert find_evaluation(bundle) == own
    other = measured_bundle(bundle.folder, tmp_path / "other", changed=("sampler",))
    own.write_bytes((other.folder / "evaluation.json").read_bytes())
    assert find_evaluation(bundle) is None


def test_damage_is_found_when_a_bundle_is_fetched(
    registry: MlflowClient, bundle: Bundle, tmp_path: Path
) -> None:
    register.register(bundle)
    out = tmp_path / "fetched"
    with pytest.raises(OptionError, match="alias 'champion'"):
        fetch_bundle("champion", out)
    with pytest.raises(OptionError, match="no version 7"):
        fetch_bundle(7, out)
    registry.set_model_version_tag(MODELS["sampler"], "1", "digest", "0" * 64)
    with pytest.raises(BundleError, match="not the one its tag names"):
        fetch_bundle(1, out)
    (weights,) = Path.cwd().glob("runs/mlflow/files/models/*/artifacts/embedder/model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    with pytest.raises(BundleError, match="The embedder in"):
        fetch_bundle(1, out)
    assert not out.exists() and not [*tmp_path.glob(".fetched*")]


def test_the_commands_say_what_they_did(
    registry: MlflowClient,
    bundle: Bundle,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["register", str(bundle.folder)])
    register.main()
    assert "vlmir-sampler version 1: candidate" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["fetch", "1", "fetched"])
    fetch.main()
    assert capsys.readouterr().out == "fetched: small-1\n"
    for module, arguments, said in (
        (register, ["nowhere"], "training.register: No bundle at 'nowhere'"),
        (fetch, ["candidate", "fetched"], "fetched is already there"),
    ):
        monkeypatch.setattr(sys, "argv", ["command", *arguments])
        with pytest.raises(SystemExit) as ended:
            module.main()
        assert ended.value.code == 2 and said in capsys.readouterr().err
