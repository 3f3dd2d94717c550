"""Models from a hub: `hubmirror` serves them, and fresh processes fetch them with the unmodified clients.

A client reads HF_ENDPOINT when it is imported, so everything that is asked online is asked by one process, `online`.
"""

import hashlib
import io
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import hubmirror
import pytest

HERE = Path(__file__).parent
LLAMA = b'{"model_type": "llama"}'
CODE = {"AutoModel": "modeling_odd.OddModel"}
CHUNK = 10 * 2**20  # huggingface_hub writes, and so resumes, in steps of this many bytes
MARK = "the answers: "


def attempt(repo: str, revision: str | None = None, **how) -> dict | str:
    """Runs in the child: the snapshot, or the sentence that refuses it."""
    from mmlora.models import hub

    try:
        found = hub.download(repo, revision, **how)
    except hub.HubError as error:
        return str(error)
    return {"path": str(found.path), "revision": found.revision, "files": sorted(os.listdir(found.path))}


def online(old: str) -> dict:
    """Runs in the child: everything that needs the mirror, in the order in which the tests explain it."""
    from dataclasses import asdict

    import datasets
    from transformers import AutoConfig, AutoModelForImageTextToText

    import mmlora.smolbridge  # noqa: F401  (transformers learns the architecture)
    from mmlora.evaluation.answering import evaluate
    from mmlora.models import hub
    from mmlora.models.needs import plan
    from mmlora.models.vlm import load_vlm
    from mmlora.problems.load import load_problems
    from mmlora.problems.rows import DataError

    said = {"plan": str(plan("maker/planned")), "gated plan": str(plan("google/paligemma2-3b-pt-224"))}
    said["first"], said["second"] = attempt("maker/tiny"), attempt("maker/tiny")
    said["cached"] = attempt("maker/tiny", offline=True)
    said["sizes"] = asdict(hub.sizes("maker/tiny"))
    said["old"], said["tag"] = attempt("maker/moved", old), attempt("maker/moved", "v1")
    said["newest"], said["no revision"] = attempt("maker/moved"), attempt("maker/moved", "v9")
    makers = [f"maker/{name}" for name in ("broken", "spoiled", "code", "native", "new", "pickle", "nothing", "bare")]
    for name in ("unknown/smolvlm-256m-instuct", "smolvlm", "google/paligemma2-3b-pt-224", *makers):
        said[name] = attempt(name)
    said["spoiled again"] = attempt("maker/spoiled")
    os.environ["HF_TOKEN"] = "hf_stranger"
    said["stranger"], said["stranger, unknown"] = attempt("google/paligemma2-3b-pt-224"), attempt("unknown/odd")
    os.environ["HF_TOKEN"] = hubmirror.TOKEN
    said["admitted"] = attempt("google/paligemma2-3b-pt-224")
    model = AutoModelForImageTextToText.from_pretrained("maker/tiny")
    said["loaded"] = [AutoConfig.from_pretrained("maker/tiny").model_type, model.num_parameters()]
    problems = datasets.load_dataset("maker/questions", split="test")
    said["problems"] = [problems.column_names, problems[0]["choices"], problems[0]["answer"], problems[0]["image"].size,
                        problems[1]["image"]]
    vlm, records = load_vlm("maker/tiny"), load_problems("maker/questions", "test")
    said["vlm"] = [vlm.name, vlm.revision, vlm.model.num_parameters()]
    said["records"] = [(p.id, p.choices, p.answer, p.image is not None) for p in records]
    said["answered"] = [q.text for q in evaluate(vlm, records, progress=False)]
    for source, split in (("maker/questions", "train"), ("maker/nowhere", "test")):
        try:
            load_problems(source, split)
        except DataError as error:
            said[f"{source} {split}"] = str(error)
    return said


def from_cache(*names: str) -> dict:
    """Runs in the child: what is had without a hub."""
    return {name: attempt(name) for name in names}


def child(endpoint: str, home: Path, function: str, *arguments: str, **environment: str) -> SimpleNamespace:
    """Run one of the functions above in a new process; `answers` is what it returned, `screen` what it showed."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING_FACE_", "TRANSFORMERS_"))}
    code = f"import json, test_hub; print({MARK!r} + json.dumps(test_hub.{function}(*{arguments!r})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={
        **inherited, "PYTHONPATH": os.pathsep.join((str(HERE), str(HERE.parent))),
        "HF_ENDPOINT": endpoint, "HF_HOME": str(home), "MMLORA_HOME": str(home / "mmlora"), **environment,
    })
    assert MARK in done.stdout, done.stderr
    return SimpleNamespace(answers=json.loads(done.stdout.rpartition(MARK)[2]), screen=done.stderr)


def questions() -> bytes:
    """Two problems with ScienceQA's features, as parquet."""
    import tinyvlm
    from datasets import Dataset, Features, Image, List, Value

    text = ("question", "hint", "task", "grade", "subject", "topic", "category", "skill", "lecture", "solution")
    features = Features({"image": Image(), "choices": List(Value("string")), "answer": Value("int8"),
                         **{name: Value("string") for name in text}})
    words = {**dict.fromkeys(text, "?"), "subject": "natural science", "grade": "grade2"}
    rows = [{"image": tinyvlm.picture("red"), "choices": ["red", "blue"], "answer": 1, **words},
            {"image": None, "choices": ["yes", "no"], "answer": 0, **words}]
    file = io.BytesIO()
    Dataset.from_list(rows, features).to_parquet(file)
    return file.getvalue()


@pytest.fixture(scope="module")
def ran(tmp_path_factory, tiny_vlm):
    """The mirror after `online` has run against it: `hub`, `home`, `answers`, `screen`, `old` (a former commit)."""
    folder = tmp_path_factory.mktemp("tiny")
    tiny_vlm.model.save_pretrained(folder)
    tiny_vlm.processor.save_pretrained(folder)
    tiny = {file.name: file.read_bytes() for file in folder.iterdir()}
    weights = os.urandom(300_000)
    whole = {"config.json": LLAMA, "model.safetensors": weights}
    with hubmirror.HubMirror() as hub:
        hub.model("maker/tiny", {**tiny, "README.md": b"a card", "onnx/model.onnx": b"x", "pytorch_model.bin": b"x",
                                 "onnx/config.json": b"{}"})
        hub.model("maker/planned", tiny).parameters = 123_456
        moved = hub.model("maker/moved", whole)
        old = moved.refs["v1"] = moved.refs["main"]
        moved.commit({**whole, "tokenizer.json": b"{}"})
        hub.model("google/paligemma2-3b-pt-224", whole).gated = True
        long = os.urandom(CHUNK + 100_000)
        hub.model("maker/broken", {**whole, "model.safetensors": long}).break_once["model.safetensors"] = CHUNK + 50_000
        hub.model("maker/spoiled", whole).spoil_once.add("model.safetensors")
        for name, config in (("code", {"model_type": "odd", "auto_map": CODE}), ("new", {"model_type": "odd"}),
                             ("native", {"model_type": "llama", "auto_map": CODE})):
            hub.model(f"maker/{name}", {**whole, "config.json": json.dumps(config).encode(), "modeling_odd.py": b"1/0"})
        hub.model("maker/pickle", {"config.json": LLAMA, "pytorch_model.bin": weights})
        hub.model("maker/nothing", {"config.json": LLAMA})
        hub.model("maker/bare", {"model.safetensors": weights})
        hub.dataset("maker/questions", {"README.md": b"---\nlicense: cc-by-nc-sa-4.0\n---\n",
                                        "data/test-00000-of-00001.parquet": questions()})
        home = tmp_path_factory.mktemp("home")
        done = child(hub.url, home, "online", old)
    return SimpleNamespace(hub=hub, home=home, **vars(done), old=old, tiny=tiny, weights=weights, long=long)


def test_first_download_fetches_only_what_is_needed_and_shows_it(ran):
    first = ran.answers["first"]
    assert first["files"] == sorted(ran.tiny)  # no card, no pickle, no other folder
    assert first["revision"] == ran.hub.models["maker/tiny"].refs["main"]
    assert Path(first["path"], "model.safetensors").read_bytes() == ran.tiny["model.safetensors"]
    assert f"Fetching {len(ran.tiny)} files: 100%" in ran.screen


def test_nothing_is_fetched_twice(ran):
    """Not by the second download, nor offline, nor by transformers itself."""
    assert ran.answers["second"] == ran.answers["cached"] == ran.answers["first"]
    assert sorted(ran.hub.fetched("maker/tiny")) == sorted(ran.tiny)


def test_sizes_need_no_weights(ran):
    wanted = sum(map(len, ran.tiny.values()))
    assert ran.answers["sizes"] == {"files": wanted, "missing": 0, "parameters": None,
                                    "config": json.loads(ran.tiny["config.json"])}


def test_plan_asks_for_the_configuration_alone(ran):
    assert "123,456" in ran.answers["plan"] and "not measured yet" in ran.answers["plan"]
    assert ran.hub.fetched("maker/planned") == ["config.json"]
    assert "3,000,000,000" in ran.answers["gated plan"], "without access the catalogue's figure"


def test_a_revision_is_kept(ran):
    newest = ran.hub.models["maker/moved"].refs["main"]
    assert ran.answers["old"]["revision"] == ran.answers["tag"]["revision"] == ran.old != newest
    assert ran.answers["old"]["files"] == ["config.json", "model.safetensors"]
    assert ran.answers["newest"]["revision"] == newest and "tokenizer.json" in ran.answers["newest"]["files"]
    assert "no revision 'v9'" in ran.answers["no revision"]
    assert ran.hub.fetched("maker/moved").count("model.safetensors") == 1, "the same content under two commits"


def test_an_unknown_model_gives_the_nearest_names(ran):
    assert "did you mean smolvlm-256m" in ran.answers["unknown/smolvlm-256m-instuct"]
    assert "did you mean smolvlm-" in ran.answers["smolvlm"]
    assert "the hub has no model 'unknown/odd'" in ran.answers["stranger, unknown"]


def test_a_gated_model_says_how_to_get_access(ran):
    for word in ("gated", "/google/paligemma2-3b-pt-224", "hf auth login", "HF_TOKEN"):
        assert word in ran.answers["google/paligemma2-3b-pt-224"]
    assert "no access yet" in ran.answers["stranger"]
    assert ran.answers["admitted"]["files"] == ["config.json", "model.safetensors"]


def test_a_broken_connection_resumes_where_it_broke(ran):
    assert Path(ran.answers["maker/broken"]["path"], "model.safetensors").read_bytes() == ran.long
    assert ran.hub.fetched("maker/broken")[1:] == ["model.safetensors", f"model.safetensors bytes={CHUNK}-"]


def test_content_with_another_hash_is_refused_and_deleted(ran):
    right = hashlib.sha256(ran.weights).hexdigest()
    assert "sha256" in ran.answers["maker/spoiled"] and right[:16] in ran.answers["maker/spoiled"]
    assert Path(ran.answers["spoiled again"]["path"], "model.safetensors").read_bytes() == ran.weights
    assert ran.hub.fetched("maker/spoiled").count("model.safetensors") == 2


def test_code_from_the_hub_is_refused(ran):
    assert "never runs" in ran.answers["maker/code"] and "update transformers" in ran.answers["maker/new"]
    assert ran.hub.fetched("maker/code") == ran.hub.fetched("maker/new") == ["config.json"], "before any weights"
    assert ran.answers["maker/native"]["files"] == ["config.json", "model.safetensors"], "its code is not needed"


def test_what_holds_no_safe_weights_is_refused(ran):
    assert "pickles (pytorch_model.bin)" in ran.answers["maker/pickle"]
    assert "no model.safetensors" in ran.answers["maker/nothing"] and "no config.json" in ran.answers["maker/bare"]
    assert not ran.hub.fetched("maker/pickle")


def test_transformers_loads_the_snapshot(ran, tiny_vlm):
    from transformers import AutoModelForImageTextToText

    kind, parameters = ran.answers["loaded"]  # by name, through the mirror
    assert (kind, parameters) == ("smolbridge", tiny_vlm.model.num_parameters())
    model = AutoModelForImageTextToText.from_pretrained(ran.answers["first"]["path"])
    assert all(tensor.equal(model.state_dict()[name]) for name, tensor in tiny_vlm.model.state_dict().items())


def test_datasets_loads_problems_with_scienceqas_features(ran):
    columns, choices, answer, size, none = ran.answers["problems"]
    assert {"image", "question", "choices", "answer", "hint", "lecture", "solution"} <= set(columns)
    assert (choices, answer, size, none) == (["red", "blue"], 1, [90, 70], None)


def test_offline_the_cache_is_enough_and_is_checked(ran):
    damaged = Path(ran.answers["maker/broken"]["path"], "model.safetensors")
    damaged.write_bytes(ran.long[:-1] + bytes([ran.long[-1] ^ 1]))
    names = ("maker/moved", "maker/broken", "maker/never")
    got = child(ran.hub.url, ran.home, "from_cache", *names, HF_HUB_OFFLINE="1").answers
    assert got["maker/moved"] == ran.answers["newest"]
    assert "sha256" in got["maker/broken"] and not damaged.exists()
    assert "not wholly, in the cache" in got["maker/never"] and "offline mode is on" in got["maker/never"]


def test_without_network_the_cache_is_enough(ran):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound but not listening: refused at once
        nowhere = f"http://127.0.0.1:{unused.getsockname()[1]}"
        got = child(nowhere, ran.home, "from_cache", "maker/moved", "maker/never").answers
    assert got["maker/moved"] == ran.answers["newest"]
    assert f"{nowhere} cannot be reached" in got["maker/never"]


def test_a_vlm_and_its_problems_by_name(ran):
    """What a user calls: the model with the commit that it came from, and the data set as `Problem`s."""
    name, revision, parameters = ran.answers["vlm"]
    assert (name, revision) == ("maker/tiny", ran.hub.models["maker/tiny"].refs["main"])
    assert parameters == ran.answers["loaded"][1]
    assert ran.answers["records"] == [["test-0", ["red", "blue"], 1, True], ["test-1", ["yes", "no"], 0, False]]
    assert len(ran.answers["answered"]) == 2
    assert "has no train-*.parquet, only data/test-00000-of-00001.parquet" in ran.answers["maker/questions train"]
    assert "there is no folder maker/nowhere here, and" in ran.answers["maker/nowhere test"]
