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
CARD = b"---\nlicense: apache-2.0\ntags:\n- tiny\n---\n# A card\n"


def attempt(repo: str, revision: str | None = None, **how) -> dict | str:
    """Runs in the child: the snapshot, or the sentence that refuses it."""
    from mmlora.models import hub

    try:
        found = hub.download(repo, revision, **how)
    except hub.HubError as error:
        return str(error)
    return {
        "path": str(found.path),
        "revision": found.revision,
        "files": sorted(os.listdir(found.path)),
        "licence": found.licence,
        "weights": found.weights,
    }


def online(old: str, first: str, adapter: str) -> dict:
    """Runs in the child: everything that needs the mirror, in the order in which the tests explain it."""
    from dataclasses import asdict

    import datasets
    from transformers import AutoConfig, AutoModelForImageTextToText

    from mmlora.adapters.files import load_vlm
    from mmlora.evaluation.answering import evaluate
    from mmlora.models import hub
    from mmlora.models.vlm import load_base
    from mmlora.needs import needs
    from mmlora.problems.load import load_problems
    from mmlora.problems.rows import DataError

    said = {"needs": str(needs("maker/planned")), "gated needs": str(needs("google/paligemma2-3b-pt-224"))}
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
    said["problems"] = [
        problems.column_names,
        problems[0]["choices"],
        problems[0]["answer"],
        problems[0]["image"].size,
        problems[1]["image"],
    ]
    vlm, records = load_vlm("maker/tiny"), load_problems("maker/questions", "test")
    said["vlm"] = [vlm.name, asdict(vlm.base), vlm.model.num_parameters()]
    said["base before"] = asdict(load_base("maker/family", revision=first).base)
    said["ours"] = save_adapter_on("maker/family", adapter)
    said["records"] = [(p.id, p.choices, p.answer, p.image is not None) for p in records]
    said["answered"] = [q.text for q in evaluate(vlm, records, progress=False)]
    for source, split in (("maker/questions", "train"), ("maker/nowhere", "test")):
        try:
            load_problems(source, split)
        except DataError as error:
            said[f"{source} {split}"] = str(error)
    return said


def save_adapter_on(name: str, folder: str) -> dict:
    """Runs in the child: an adapter on a model of the hub, and beside it what the two make of one picture."""
    import tinyvlm
    import torch
    from safetensors.torch import save_file

    from mmlora.adapters.files import load_vlm, save_adapter
    from mmlora.adapters.lora import attach

    torch.set_num_threads(1)
    vlm = load_vlm(name)
    model = attach(vlm.model, rank=4)
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(0))
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Which colour?"}]}]
    text = vlm.processor.apply_chat_template(chat, add_generation_prompt=True)
    data = vlm.processor(images=[tinyvlm.picture("red")], text=[text], return_tensors="pt")
    save_adapter(model, folder, {}, processor=vlm.processor, data_licence="cc-by-nc-sa-4.0")
    with torch.inference_mode():
        adapted = model.eval()(**data).logits
        again = load_vlm(folder).model(**data).logits  # our own way back
        with model.disable_adapter():
            plain = model(**data).logits
    save_file({**data, "adapted": adapted}, Path(folder, "ours.safetensors"))
    return {"again": torch.equal(again, adapted), "adapter changes": (adapted - plain).abs().max().item()}


def with_plain_peft(folder: str) -> dict:
    """Runs in the child: what somebody who has never heard of mmlora gets from the adapter."""
    import torch
    from peft import PeftConfig, PeftModel
    from safetensors.torch import load_file
    from transformers import AutoModelForImageTextToText, AutoProcessor

    torch.set_num_threads(1)
    config, data = PeftConfig.from_pretrained(folder), load_file(Path(folder, "ours.safetensors"))
    expected = data.pop("adapted")
    base = AutoModelForImageTextToText.from_pretrained(
        config.base_model_name_or_path, revision=config.revision, dtype=torch.float32
    )
    processor = AutoProcessor.from_pretrained(folder)
    with torch.inference_mode():
        model = PeftModel.from_pretrained(base, folder).eval()
        found = model(**data).logits
    return {
        "base": config.base_model_name_or_path,
        "revision": config.revision,
        "equal": torch.equal(found, expected),
        "strangers": [m for m in sys.modules if m.startswith("mmlora")],
        "processor": type(processor).__name__,
    }


def from_cache(*names: str) -> dict:
    """Runs in the child: what is had without a hub."""
    return {name: attempt(name) for name in names}


def data_from_cache(name: str) -> list[str]:
    """Runs in the child: a split that was fetched before, and one that there is none of."""
    from mmlora.problems.load import load_problems
    from mmlora.problems.rows import NoSplit

    try:
        load_problems(name, "transfer")
    except NoSplit as error:
        return [*(problem.id for problem in load_problems(name, "test")), str(error)]
    return []


def child(
    endpoint: str, home: Path, function: str, *arguments: str, module: str = "test_hub", **environment: str
) -> SimpleNamespace:
    """Run one of the functions above in a new process; `answers` is what it returned, `screen` what it showed."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING_FACE_", "TRANSFORMERS_"))}
    code = f"import json, {module}; print({MARK!r} + json.dumps({module}.{function}(*{arguments!r})))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={
            **inherited,
            "PYTHONPATH": os.pathsep.join((str(HERE), str(HERE.parent))),
            "HF_ENDPOINT": endpoint,
            "HF_HOME": str(home),
            "MMLORA_HOME": str(home / "mmlora"),
            **environment,
        },
    )
    assert MARK in done.stdout, done.stderr
    return SimpleNamespace(answers=json.loads(done.stdout.rpartition(MARK)[2]), screen=done.stderr)


def weights_hash(*files: bytes) -> str:
    """As `models.base` defines it: over the SHA-256 of each weights file."""
    return hashlib.sha256("".join(hashlib.sha256(data).hexdigest() for data in files).encode()).hexdigest()


def questions() -> bytes:
    """Two problems with ScienceQA's features, as parquet."""
    import tinyvlm
    from datasets import Dataset, Features, Image, List, Value

    text = ("question", "hint", "task", "grade", "subject", "topic", "category", "skill", "lecture", "solution")
    features = Features(
        {
            "image": Image(),
            "choices": List(Value("string")),
            "answer": Value("int8"),
            **{name: Value("string") for name in text},
        }
    )
    words = {**dict.fromkeys(text, "?"), "subject": "natural science", "grade": "grade2"}
    rows = [
        {"image": tinyvlm.picture("red"), "choices": ["red", "blue"], "answer": 1, **words},
        {"image": None, "choices": ["yes", "no"], "answer": 0, **words},
    ]
    file = io.BytesIO()
    Dataset.from_list(rows, features).to_parquet(file)
    return file.getvalue()


@pytest.fixture(scope="module")
def ran(tmp_path_factory, tiny_vlm):
    """The mirror after `online` has run against it: `hub`, `home`, `answers`, `screen`, `old` (a former commit)."""
    import families

    folder = tmp_path_factory.mktemp("tiny")
    tiny_vlm.model.save_pretrained(folder)
    tiny_vlm.processor.save_pretrained(folder)
    tiny = {file.name: file.read_bytes() for file in folder.iterdir()}
    family = families.save(families.build("smolvlm"), tmp_path_factory.mktemp("family"))
    family = {file.name: file.read_bytes() for file in family.iterdir()}
    weights = os.urandom(300_000)
    whole = {"config.json": LLAMA, "model.safetensors": weights}
    with hubmirror.HubMirror() as hub:
        hub.model(
            "maker/tiny",
            {**tiny, "README.md": CARD, "onnx/model.onnx": b"x", "pytorch_model.bin": b"x", "onnx/config.json": b"{}"},
        )
        grown = hub.model("maker/family", family)
        hub.model("maker/planned", tiny).parameters = 123_456
        moved = hub.model("maker/moved", whole)
        old = moved.refs["v1"] = moved.refs["main"]
        moved.commit({**whole, "tokenizer.json": b"{}"})
        hub.model("google/paligemma2-3b-pt-224", whole).gated = True
        long = os.urandom(CHUNK + 100_000)
        hub.model("maker/broken", {**whole, "model.safetensors": long}).break_once["model.safetensors"] = CHUNK + 50_000
        hub.model("maker/spoiled", whole).spoil_once.add("model.safetensors")
        for name, config in (
            ("code", {"model_type": "odd", "auto_map": CODE}),
            ("new", {"model_type": "odd"}),
            ("native", {"model_type": "llama", "auto_map": CODE}),
        ):
            hub.model(f"maker/{name}", {**whole, "config.json": json.dumps(config).encode(), "modeling_odd.py": b"1/0"})
        hub.model("maker/pickle", {"config.json": LLAMA, "pytorch_model.bin": weights})
        hub.model("maker/nothing", {"config.json": LLAMA})
        hub.model("maker/bare", {"model.safetensors": weights})
        hub.dataset(
            "maker/questions",
            {"README.md": b"---\nlicense: cc-by-nc-sa-4.0\n---\n", "data/test-00000-of-00001.parquet": questions()},
        )
        home = tmp_path_factory.mktemp("home")
        first, adapter = grown.refs["main"], tmp_path_factory.mktemp("adapter")
        grown.commit({**family, "README.md": CARD})
        done = child(hub.url, home, "online", old, first, str(adapter))
        plain = child(hub.url, home, "with_plain_peft", str(adapter)).answers
    return SimpleNamespace(
        hub=hub,
        home=home,
        **vars(done),
        plain=plain,
        adapter=adapter,
        first=first,
        old=old,
        tiny=tiny,
        weights=weights,
        long=long,
    )


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
    assert ran.answers["sizes"] == {
        "files": wanted,
        "missing": 0,
        "parameters": None,
        "config": json.loads(ran.tiny["config.json"]),
    }


def test_needs_asks_for_the_configuration_alone(ran):
    assert "123,456" in ran.answers["needs"] and "not measured yet" in ran.answers["needs"]
    assert ran.hub.fetched("maker/planned") == ["config.json"]
    assert "3,000,000,000" in ran.answers["gated needs"], "without access the catalogue's figure"


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
    names = ("maker/moved", "maker/broken", "maker/never", "maker/tiny")
    got = child(ran.hub.url, ran.home, "from_cache", *names, HF_HUB_OFFLINE="1").answers
    assert got["maker/moved"] == ran.answers["newest"]
    assert got["maker/tiny"] == ran.answers["first"], "its weights and its licence too"
    assert "sha256" in got["maker/broken"] and not damaged.exists()
    damaged.write_bytes(ran.long)  # other tests look at it too
    assert "not wholly, in the cache" in got["maker/never"] and "offline mode is on" in got["maker/never"]


def test_without_network_the_cache_is_enough(ran):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound but not listening: refused at once
        nowhere = f"http://127.0.0.1:{unused.getsockname()[1]}"
        got = child(nowhere, ran.home, "from_cache", "maker/moved", "maker/never").answers
    assert got["maker/moved"] == ran.answers["newest"]
    assert f"{nowhere} cannot be reached" in got["maker/never"]


def test_without_network_a_data_set_that_lacks_a_split_is_still_read(ran):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        nowhere = f"http://127.0.0.1:{unused.getsockname()[1]}"
        for hub, setting in ((nowhere, {}), (ran.hub.url, {"HF_HUB_OFFLINE": "1"})):
            *ids, why = child(hub, ran.home, "data_from_cache", "maker/questions", **setting).answers
            assert ids == ["test-0", "test-1"] and "only files that cannot be listed without a network" in why


def test_a_vlm_and_its_problems_by_name(ran):
    """What a user calls: the model with the commit that it came from, and the data set as `Problem`s."""
    name, base, parameters = ran.answers["vlm"]
    commit, weights = ran.hub.models["maker/tiny"].refs["main"], weights_hash(ran.tiny["model.safetensors"])
    assert (name, base) == (
        "maker/tiny",
        {"name": "maker/tiny", "revision": commit, "licence": "apache-2.0", "weights": weights},
    )
    assert parameters == ran.answers["loaded"][1]
    assert ran.answers["records"] == [["test-0", ["red", "blue"], 1, True], ["test-1", ["yes", "no"], 0, False]]
    assert len(ran.answers["answered"]) == 2
    assert "has no train-*.parquet, only data/test-00000-of-00001.parquet" in ran.answers["maker/questions train"]
    assert "there is no folder maker/nowhere here, and" in ran.answers["maker/nowhere test"]


# Which base it is, and what a stranger makes of an adapter on it.


def test_a_snapshot_knows_its_weights_and_the_licence_of_its_card(ran):
    first, moved = ran.answers["first"], ran.answers["newest"]
    assert first["licence"] == "apache-2.0" and first["weights"] == weights_hash(ran.tiny["model.safetensors"])
    assert moved["licence"] == "other", "it has no card"
    assert moved["weights"] == ran.answers["old"]["weights"] == weights_hash(ran.weights), "the same under two commits"
    assert ran.answers["spoiled again"]["weights"] == moved["weights"]


def test_the_weights_are_known_offline_too(ran):
    """From the record of the download (see above); and where that was lost, from the files alone."""
    bare = {"HF_HUB_OFFLINE": "1", "MMLORA_HOME": str(ran.home / "elsewhere")}
    found = child(ran.hub.url, ran.home, "from_cache", "maker/tiny", **bare).answers["maker/tiny"]
    assert found["weights"] == ran.answers["first"]["weights"] and found["licence"] == "other"


def test_the_revision_that_was_asked_for_is_the_bases(ran):
    before = ran.answers["base before"]
    assert (before["name"], before["revision"], before["licence"]) == ("maker/family", ran.first, "other")
    assert before["revision"] != ran.hub.models["maker/family"].refs["main"]


def test_plain_peft_finds_the_base_of_an_adapter_and_computes_the_same(ran):
    assert ran.answers["ours"]["again"] and ran.answers["ours"]["adapter changes"] > 0.1
    assert ran.plain == {
        "base": "maker/family",
        "revision": ran.hub.models["maker/family"].refs["main"],
        "equal": True,
        "strangers": [],
        "processor": "Idefics3Processor",
    }
    config = json.loads((ran.adapter / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == (ran.plain["base"], ran.plain["revision"])


def test_the_card_of_an_adapter_names_its_base_and_the_stricter_licence(ran):
    card = (ran.adapter / "README.md").read_text(encoding="utf-8")
    assert 'base_model: "maker/family"' in card and 'license: "cc-by-nc-sa-4.0"' in card
    assert ran.plain["revision"] in card and "(base apache-2.0, data cc-by-nc-sa-4.0)" in card
