"""The paper's tasks answered by tiny random models: what answers depend on, and what they do not."""

from __future__ import annotations

import threading
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dllm_qbench.diffusion.by_model import generate
from dllm_qbench.errors import TaskError
from dllm_qbench.evaluation import adapter as adapter_module
from dllm_qbench.evaluation.adapter import DiffusionAdapter, Manner
from dllm_qbench.evaluation.benchmark import Answers, Benchmark
from dllm_qbench.evaluation.paper_benchmark import PaperBenchmark, paper_benchmark
from dllm_qbench.evaluation.paper_probe import LONGEST_ANSWER, LONGEST_CANVAS, LONGEST_DRAFT
from dllm_qbench.models.lm import DiffusionLM
from dllm_qbench.models.loading import load
from dllm_qbench.models.released import MODELS, ModelSpec
from dllm_qbench.models.small_tokenizer import write_tokenizer
from dllm_qbench.models.synthetic import write_checkpoint
from dllm_qbench.tasks.paper_lm_eval import PaperLmEvalTask
from tests.helpers.paper_data import record, write_jsonl, write_paper_data

LLADA, DREAM = MODELS["llada-8b-base"], MODELS["dream-7b-base"]
ALL = ("winogrande", "piqa", "arc_easy", "arc_challenge", "hellaswag", "mmlu")
WRITTEN = ("gsm8k", "minerva_math", "humaneval", "mbpp")


@pytest.fixture(scope="module")
def paper_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_paper_data(tmp_path_factory.mktemp("paper"), records=3)


def model(folder: Path, architecture: str, **overrides: Any) -> DiffusionLM:
    """A tiny random model that reads and writes bytes."""
    ids = write_tokenizer(folder, architecture, [], chat=True)
    tokens = {f"{role}_token_id": ids[role] for role in ("mask", "eos", "pad")}
    write_checkpoint(folder, architecture, size="tiny", dtype=torch.float32, **tokens, **overrides)
    return load(folder)


@pytest.fixture(scope="module")
def llada(tmp_path_factory: pytest.TempPathFactory) -> DiffusionLM:
    # Few positions: the longest prompts lose their beginning, which saves time.
    return model(tmp_path_factory.mktemp("llada"), "llada", n_layers=1, max_sequence_length=512)


@pytest.fixture(scope="module")
def dream(tmp_path_factory: pytest.TempPathFactory) -> DiffusionLM:
    return model(tmp_path_factory.mktemp("dream"), "Dream", num_hidden_layers=1)


def brief(task: str, folder: Path, spec: ModelSpec | None = LLADA) -> PaperBenchmark:
    return paper_benchmark(task, data_dir=folder, model=spec, profile="brief", run_programs=True)


@pytest.mark.filterwarnings("ignore:.*beginning was cut")
@pytest.mark.parametrize("task", ALL + WRITTEN)
def test_answers_do_not_depend_on_range_order_or_batch(
    task: str, llada: DiffusionLM, paper_data: Path
) -> None:
    benchmark: Benchmark = brief(task, paper_data)
    items = 2 if task in ("gsm8k", "mbpp") else 3
    whole = benchmark.answers(llada, 0, items, 7)
    assert len(whole.ids) == items
    parts = [benchmark.answers(llada, n, n + 1, 7, batch_size=3) for n in reversed(range(items))]
    joined = Answers()
    for part in reversed(parts):
        joined += part
    assert joined == whole
    if task in ALL:
        assert joined.scores == pytest.approx(whole.scores, abs=1e-9)


@pytest.mark.parametrize("task", ["piqa", "minerva_math"])
def test_dream_answers_too(task: str, dream: DiffusionLM, paper_data: Path) -> None:
    benchmark = brief(task, paper_data, DREAM)
    whole = benchmark.answers(dream, 0, 3, 0)
    assert benchmark.answers(dream, 1, 2, 0).texts == whole.texts[1:2]
    other = benchmark.answers(dream, 0, 3, 1)
    if task == "piqa":
        assert other.scores != whole.scores
    else:
        assert other == whole  # temperature 0: nothing is drawn


def test_items_run_through_the_subtasks_in_order(llada: DiffusionLM, paper_data: Path) -> None:
    benchmark = brief("mmlu", paper_data)
    assert benchmark.size() == 3 * 3 + 54
    found = benchmark.answers(llada, 8, 11, 0)
    assert found.ids == ("astronomy/2", "business_ethics/0", "clinical_knowledge/0")
    assert found.kinds == ("astronomy", "business_ethics", "clinical_knowledge")
    assert brief("piqa", paper_data).answers(llada, 0, 1, 0).kinds == ("piqa",)


def test_only_the_chosen_documents_are_prepared(
    llada: DiffusionLM, paper_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared: list[str] = []
    original = PaperLmEvalTask.fewshot_context

    def watched(self: PaperLmEvalTask, doc: Any, *args: Any, **kwargs: Any) -> Any:
        prepared.append(doc["id"])
        return original(self, doc, *args, **kwargs)

    monkeypatch.setattr(PaperLmEvalTask, "fewshot_context", watched)
    brief("mmlu", paper_data).answers(llada, 1, 2, 0)
    assert prepared == ["abstract_algebra/1"]


@pytest.mark.parametrize(("start", "end"), [(0, 0), (2, 1), (-1, 1), (0, 4), (3, 4)])
def test_items_that_are_not_there(
    start: int, end: int, llada: DiffusionLM, paper_data: Path
) -> None:
    with pytest.raises(TaskError, match=f"items {start} to {end} were asked for; there are 3"):
        brief("piqa", paper_data).answers(llada, start, end, 0)


@pytest.mark.parametrize("task", ALL + WRITTEN)
@pytest.mark.parametrize("kind", ["llada", "dream"])
def test_canvases_are_true_answers_partly_masked(
    task: str, kind: str, paper_data: Path, request: pytest.FixtureRequest
) -> None:
    lm: DiffusionLM = request.getfixturevalue(kind)
    benchmark = brief(task, paper_data, LLADA if kind == "llada" else DREAM)
    given = benchmark.canvases(lm, 5, 2)
    masked = given.ids == lm.mask_id
    assert given.ids.shape == given.truth.shape == given.attention_mask.shape
    assert given.ids.shape[1] <= LONGEST_CANVAS
    assert torch.equal(given.ids[~masked], given.truth[~masked])
    assert not (given.truth == lm.mask_id).any()
    assert bool(masked.any(1).all())
    assert not masked[:, 0].any()
    assert int(masked.sum(1).max()) <= LONGEST_ANSWER
    assert bool((given.attention_mask[masked] == 1).all())
    first = benchmark.canvases(lm, 5, 1)
    width = int(first.attention_mask.sum())
    assert torch.equal(first.ids[0], given.ids[0, :width])
    assert not torch.equal(benchmark.canvases(lm, 4, 2).ids, given.ids)


def test_a_canvas_shows_the_true_choice_after_its_question(
    llada: DiffusionLM, paper_data: Path
) -> None:
    assert llada.tokenizer is not None
    given = brief("piqa", paper_data).canvases(llada, 0, 3)
    for n, row in enumerate(given.truth):
        text = llada.tokenizer.decode(row[given.attention_mask[n].bool()])
        right = record("piqa", n)[f"sol{n % 2 + 1}"]
        question = f"Question: {record('piqa', n)['goal']}\nAnswer: "
        assert text == f"{question}{right}<|endoftext|>"


def test_drafts_are_as_long_as_the_true_choice(llada: DiffusionLM, paper_data: Path) -> None:
    assert llada.tokenizer is not None
    benchmark = brief("arc_easy", paper_data)
    found = benchmark.drafts(llada, 0, 3)
    lengths = [min(len(f" {text}"), LONGEST_DRAFT) for text in ("water", "stone", "salt")]
    assert [len(trace) for trace in found] == lengths
    assert all(len(commit.positions) == 1 for trace in found for commit in trace)
    assert benchmark.drafts(llada, 0, 1) == found[:1]
    (long,) = brief("piqa", paper_data).drafts(llada, 0, 1)
    assert len(long) == LONGEST_DRAFT


def test_a_digest_changes_with_what_answers_depend_on(paper_data: Path, tmp_path: Path) -> None:
    def made(task: str = "gsm8k", folder: Path = paper_data, **changes: Any) -> str:
        spec = replace(LLADA, **changes.pop("spec", {}))
        return paper_benchmark(task, data_dir=folder, model=spec, **changes).digest

    base = made()
    assert base == made(spec={"revision": "f" * 40, "name": "another"})
    other_data = write_paper_data(tmp_path, records=2)
    different = [
        made("minerva_math"),
        made(folder=other_data),
        made(profile="brief"),
        made(spec={"chat": True}),
        made(spec={"unconfident_ids": (7,)}),
        made(spec={"generation": {"temperature": 0.1}}),
        made(spec={"architecture": "Dream"}),
    ]
    assert len({base, *different}) == 1 + len(different)
    # How a model writes plays no part where it only scores.
    assert made("piqa") == made("piqa", spec={"chat": True, "unconfident_ids": (7,)})


def test_consent_is_no_part_of_a_digest(paper_data: Path) -> None:
    one, two = (
        paper_benchmark(t, data_dir=paper_data, model=None, run_programs=True)
        for t in ("mbpp", "mbpp")
    )
    assert one is two
    assert "run_programs" not in str(one.provenance)


def test_provenance_says_how_it_was_asked(paper_data: Path) -> None:
    found = paper_benchmark("gsm8k", data_dir=paper_data, model=LLADA).provenance
    assert found["sampler"] == {
        "gen_length": 256,
        "steps": 256,
        "block_length": 32,
        "temperature": 0.0,
    }
    assert (found["profile"], found["shots"], found["filter"]) == ("paper", 4, "flexible-extract")
    brief_one = brief("gsm8k", paper_data).provenance
    assert brief_one["sampler"]["gen_length"] == 16
    assert brief("piqa", paper_data).provenance["mask_samples"] == 2


def test_changed_files_are_read_again(tmp_path: Path) -> None:
    path = tmp_path / "piqa/validation.jsonl"
    for count in (2, 3):
        write_jsonl(path, [record("piqa", n) for n in range(count)])
        assert paper_benchmark("piqa", data_dir=tmp_path, model=None).size() == count


def test_models_that_are_asked_alike_share_a_benchmark(paper_data: Path) -> None:
    def made(name: str) -> PaperBenchmark:
        return paper_benchmark("gsm8k", data_dir=paper_data, model=MODELS[name])

    assert made("llada-8b-base") is made("illada-8b")
    assert made("llada-8b-base") is not made("dream-7b-base")
    assert made("llada-8b-base") is not made("llada-8b-instruct")


def test_unknown_names_list_the_known_ones(paper_data: Path) -> None:
    with pytest.raises(
        TaskError, match="'boolq' is not one of the paper's; tasks: winogrande, piqa"
    ):
        paper_benchmark("boolq", data_dir=paper_data, model=None)
    with pytest.raises(TaskError, match="profile 'quick' is unknown; profiles: paper, brief"):
        paper_benchmark("piqa", data_dir=paper_data, model=None, profile="quick")


def test_mathematics_is_scored_in_the_main_thread_only(
    llada: DiffusionLM, paper_data: Path
) -> None:
    caught: list[BaseException] = []

    def work() -> None:
        try:
            brief("minerva_math", paper_data).answers(llada, 0, 1, 0)
        except TaskError as error:
            caught.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert "main thread only" in str(caught)


# --- how models are asked


@pytest.fixture
def sampled(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Write down the sampler's arguments."""
    calls: list[dict[str, Any]] = []

    def watched(lm: DiffusionLM, prompts: Any, **settings: Any) -> Any:
        calls.append({"prompts": prompts, **settings})
        return generate(lm, prompts, **settings)

    monkeypatch.setattr(adapter_module, "generate", watched)
    return calls


def test_what_the_sampler_may_not_write_is_passed_on(
    llada: DiffusionLM, paper_data: Path, sampled: list[dict[str, Any]]
) -> None:
    chat = replace(LLADA, chat=True, forbidden_ids=(4,), unconfident_ids=(llada.eos_id,))
    found = brief("minerva_math", paper_data, chat).answers(llada, 0, 1, 0)
    assert sampled[0]["forbidden_ids"] == (4,)
    assert sampled[0]["unconfident_ids"] == (llada.eos_id,)
    assert all(4 not in commit.tokens for commit in found.traces[0])
    assert llada.tokenizer is not None
    text = llada.tokenizer.decode(sampled[0]["prompts"][0])
    assert text.startswith("<|startoftext|><|start_header_id|>user<|end_header_id|>\n\nProblem:")
    assert text.endswith("<|start_header_id|>assistant<|end_header_id|>\n\n")
    assert text.count("<|startoftext|>") == 1

    sampled.clear()
    brief("minerva_math", paper_data).answers(llada, 0, 1, 0)
    assert not {"forbidden_ids", "unconfident_ids"} & sampled[0].keys()


def test_dream_gets_its_own_settings_and_a_beginning(
    dream: DiffusionLM, paper_data: Path, sampled: list[dict[str, Any]]
) -> None:
    brief("humaneval", paper_data, DREAM).answers(dream, 0, 1, 0)
    call = sampled[0]
    assert {name: call[name] for name in ("algorithm", "top_p", "alg_temp", "block_length")} == {
        "algorithm": "entropy",
        "top_p": 0.95,
        "alg_temp": 0.0,
        "block_length": 16,
    }
    assert dream.tokenizer is not None
    assert call["prompts"][0][0] == dream.tokenizer.bos_token_id
    assert call["prompts"][0].count(dream.tokenizer.bos_token_id) == 1


def test_special_tokens_are_no_part_of_an_answer(llada: DiffusionLM) -> None:
    assert llada.tokenizer is not None
    ids = llada.tokenizer("a<|startoftext|>b<|eot_id|>c", add_special_tokens=False)["input_ids"]
    plain, clean = DiffusionAdapter(llada), DiffusionAdapter(llada, manner=Manner(clean=True))
    assert plain._text(ids, []) == "a<|startoftext|>b<|eot_id|>c"
    assert clean._text(ids, []) == "abc"
    assert clean._text(ids, ["<|eot_id|>"]) == "ab"


def test_prompts_that_are_too_long_lose_their_beginning(tmp_path: Path, paper_data: Path) -> None:
    short = model(tmp_path, "llada", n_layers=1, max_sequence_length=128)
    for task, count in (("mmlu", "8 of 8 prompts"), ("gsm8k", "2 of 2 prompts")):
        with pytest.warns(UserWarning, match=f"{count} are longer than .* their beginning was cut"):
            brief(task, paper_data).answers(short, 0, 2, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        brief("minerva_math", paper_data).answers(short, 0, 1, 0)
    with pytest.raises(TaskError, match=r"item .*: the answer alone fills the 128 positions"):
        paper_benchmark("minerva_math", data_dir=paper_data, model=LLADA).answers(short, 0, 1, 0)


def test_what_is_cut_is_the_beginning(tmp_path: Path, paper_data: Path) -> None:
    short = model(tmp_path, "llada", n_layers=1, max_sequence_length=128)
    adapter = DiffusionAdapter(short, manner=Manner(cut=True))
    from lm_eval.api.instance import Instance

    request = Instance("generate_until", {"id": "i"}, ("", {}), 0, ("a-task", 0, 1))
    assert adapter._fitted([1, 2, 3], 2, request) == [2, 3]
    assert adapter._fitted([1, 2, 3], 3, request) == [1, 2, 3]
