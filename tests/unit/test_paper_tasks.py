"""The paper's ten tasks: settings, prompts, choices and scoring, on records of our own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from lm_eval.api.instance import Instance
from lm_eval.api.samplers import ContextSampler

from dllm_qbench.errors import TaskError
from dllm_qbench.evaluation import paper_benchmark as module
from dllm_qbench.evaluation.paper_benchmark import paper_benchmark
from dllm_qbench.models.lm import DiffusionLM
from dllm_qbench.models.released import MODELS, ModelSpec
from dllm_qbench.tasks import paper_lm_eval
from dllm_qbench.tasks.paper import PAPER_TASKS, definitions, sources
from dllm_qbench.tasks.paper_code import first_block, listed_samples
from dllm_qbench.tasks.paper_lm_eval import InOrder
from dllm_qbench.tasks.paper_settings import SETTINGS, mask_samples, sampler_settings
from tests.helpers.oracle import Oracle, Text, oracle
from tests.helpers.paper_data import record, write_jsonl, write_paper_data
from tests.helpers.worded import worded_llada

CHAT = replace(MODELS["llada-8b-instruct"], forbidden_ids=(), unconfident_ids=())
DREAM = MODELS["dream-7b-base"]


@pytest.fixture(scope="module")
def worded() -> DiffusionLM:
    """Any model with a tokenizer: these tests answer in its place."""
    return worded_llada()


@pytest.fixture(scope="module")
def paper_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_paper_data(tmp_path_factory.mktemp("paper"))


def test_settings_are_the_papers() -> None:
    """DESIGN.md section 5: task -> shots, masks or (gen_length, steps, block_length)."""
    expected = {
        **dict.fromkeys(("winogrande", "piqa", "arc_easy", "arc_challenge", "hellaswag"), (0, 128)),
        "mmlu": (5, 1),
        "gsm8k": (4, (256, 256, 32)),
        "minerva_math": (0, (256, 256, 64)),
        "humaneval": (0, (512, 512, 32)),
        "mbpp": (3, (512, 512, 32)),
    }
    found = {
        name: (task.shots, task.samples or (task.gen_length, task.steps, task.block_length))
        for name, task in SETTINGS.items()
    }
    assert found == expected
    assert tuple(expected) == PAPER_TASKS


def test_what_decides_is_the_metric_that_is_published() -> None:
    assert {name: (task.metric, task.filter) for name, task in SETTINGS.items()} == {
        "winogrande": ("acc", "none"),
        "piqa": ("acc_norm", "none"),
        "arc_easy": ("acc_norm", "none"),
        "arc_challenge": ("acc_norm", "none"),
        "hellaswag": ("acc_norm", "none"),
        "mmlu": ("acc", "none"),
        "gsm8k": ("exact_match", "flexible-extract"),
        "minerva_math": ("math_verify", "none"),
        "humaneval": ("pass@1", "run"),
        "mbpp": ("pass@1", "run"),
    }


def test_sampler_settings_follow_profile_and_release() -> None:
    gsm8k = SETTINGS["gsm8k"]
    plain = {"gen_length": 256, "steps": 256, "block_length": 32, "temperature": 0.0}
    assert sampler_settings(gsm8k, "paper", {}, one_block=False) == plain
    assert sampler_settings(gsm8k, "paper", DREAM.generation, one_block=True) == {
        **plain,
        "block_length": 256,
        "algorithm": "entropy",
        "top_p": 0.95,
        "alg_temp": 0.0,
    }
    for task in (t for t in SETTINGS.values() if t.gen_length):
        brief = sampler_settings(task, "brief", {}, one_block=False)
        assert brief["gen_length"] % brief["block_length"] == 0
        assert brief["steps"] % (brief["gen_length"] // brief["block_length"]) == 0


def test_masks_follow_profile_and_model() -> None:
    piqa, mmlu, gsm8k = (SETTINGS[name] for name in ("piqa", "mmlu", "gsm8k"))
    assert [mask_samples(t, "paper", dream=False) for t in (piqa, mmlu, gsm8k)] == [128, 1, 0]
    assert [mask_samples(t, "brief", dream=False) for t in (piqa, mmlu, gsm8k)] == [2, 1, 0]
    # One mask of Dream's may hide nothing, and then every choice ties.
    assert [mask_samples(t, "paper", dream=True) for t in (piqa, mmlu, gsm8k)] == [128, 128, 0]


def test_definitions_are_lm_evals_own() -> None:
    counts = {name: len(definitions(task)) for name, task in SETTINGS.items()}
    assert counts == {name: {"mmlu": 57, "minerva_math": 7}.get(name, 1) for name in PAPER_TASKS}
    for task in SETTINGS.values():
        for path in definitions(task):
            assert path.parts[-4 if task.name == "mmlu" else -3] == "tasks"
            assert "lm_eval" in path.parts


# --- prompts


def asked(
    task: str,
    lm: DiffusionLM,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    model: ModelSpec | None = None,
) -> list[Instance]:
    """Return the requests of a task's first two items."""
    told = oracle(lambda *_: "")
    monkeypatch.setattr(module, "DiffusionAdapter", told)
    paper_benchmark(task, data_dir=folder, model=model, run_programs=True).answers(lm, 0, 2, 0)
    return told.asked


def test_likelihood_prompts(
    worded: DiffusionLM, paper_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first two requests of each: context, continuation."""
    expected = {
        "winogrande": [
            ("Ines lent Otto 2 books because Ines", " had read them all."),
            ("Ines lent Otto 2 books because Otto", " had read them all."),
        ],
        "piqa": [
            ("Question: Keep 3 slices of bread fresh.\nAnswer:", " Close them in a tin."),
            (
                "Question: Keep 3 slices of bread fresh.\nAnswer:",
                " Leave them out in the rain all night.",
            ),
        ],
        "arc_easy": [
            (
                "Question: Ines puts 2 ice cubes in warm tea. What do they become?\nAnswer:",
                f" {text}",
            )
            for text in ("water", "stone")
        ],
        "hellaswag": [
            ("Washing a bicycle: Ines fills bucket number 0 with water. Then they", f" {text}")
            for text in ("rub the frame with a sponge.", "eat the saddle.. Lunch")
        ],
    }
    for task, pairs in expected.items():
        found = asked(task, worded, paper_data, monkeypatch)
        assert [request.args for request in found[:2]] == pairs
        assert len(found) == 2 * (2 if task in ("winogrande", "piqa") else 4)


def test_mmlu_shows_the_first_five_of_its_subject(
    worded: DiffusionLM, paper_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = asked("mmlu", worded, paper_data, monkeypatch)[0]
    context, continuation = first.args
    assert continuation == " A"
    subject = (
        "The following are multiple choice questions (with answers) about abstract algebra.\n\n"
    )
    assert context.startswith(subject + "Which number is 100 plus two?\nA. 102\nB. 103\n")
    *shots, question = context.removeprefix(subject).split("\n\n")
    assert len(shots) == 5
    assert all(shot.endswith("\nAnswer: A") for shot in shots)
    assert question == "Which number is 0 plus two?\nA. 2\nB. 3\nC. 5\nD. 7\nAnswer:"


def test_generation_prompts(
    worded: DiffusionLM, paper_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context, settings = asked("gsm8k", worded, paper_data, monkeypatch)[0].args
    *shots, question = context.split("\n\n")
    assert len(shots) == 4
    assert all(shot.startswith("Question: ") and "\nAnswer: There are " in shot for shot in shots)
    assert (
        question == "Question: Ines has 2 pens and buys 3 more. How many pens are there?\nAnswer:"
    )
    assert settings["until"] == ["Question:", "</s>", "<|im_end|>"]
    assert settings["gen_length"] == 256

    context, settings = asked("minerva_math", worded, paper_data, monkeypatch)[0].args
    assert context == "Problem:\nWhat is $2 \\cdot 3$?\n\nSolution:"
    assert settings["until"] == ["Problem:"]

    context, settings = asked("humaneval", worded, paper_data, monkeypatch)[0].args
    assert context == record("humaneval", 0)["prompt"]
    assert settings["until"] == ["\nclass", "\ndef", "\n#", "\nif", "\nprint"]

    context, settings = asked("mbpp", worded, paper_data, monkeypatch)[0].args
    assert context.count("[BEGIN]") == 4
    assert context.count("\n[DONE]") == 3
    assert context.endswith(
        "You are an expert Python programmer, and here is your task: Write a function that multiplies a"
        " number by 2. Your code should pass these tests:\n\nassert scaled(0) == 0\nassert scaled(1) == 2\n"
        "assert scaled(7) == 14\n[BEGIN]\n"
    )
    assert settings["until"] == ["[DONE]"]


def test_a_documents_examples_are_those_of_a_whole_run_of_lm_eval() -> None:
    pool = [{"n": n} for n in range(50)]
    official = ContextSampler(pool).set_rnd(1234)
    expected = [official.sample(4) for _ in range(6)]
    ours = InOrder(pool)
    for number in (5, 0, 3, 5):
        ours.number = number
        assert ours.sample(4) == expected[number]


def test_chat_models_get_turns_for_what_they_write_and_plain_text_for_choices(
    worded: DiffusionLM, paper_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert worded.tokenizer is not None
    template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% if not loop.last or"
        " add_generation_prompt %}</s>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    monkeypatch.setattr(worded.tokenizer, "chat_template", template)
    context, settings = asked("gsm8k", worded, paper_data, monkeypatch, CHAT)[0].args
    assert context.count("<user>Question: ") == 5
    assert context.count("<assistant>There are ") == 4
    assert context.endswith("How many pens are there?\nAnswer:</s><assistant>")
    assert settings["until"][-2:] == ["<|eot_id|>", "<|im_end|>"]

    context, _ = asked("humaneval", worded, paper_data, monkeypatch, CHAT)[0].args
    prompt = record("humaneval", 0)["prompt"]
    assert context.startswith("<user>Write a solution to the following problem")
    # The turn is the model's to continue; whether it keeps the last line end is up to the template.
    assert context.rstrip().endswith(
        f"<assistant>Here is the completed function:\n```python\n{prompt}".rstrip()
    )

    context, _ = asked("mbpp", worded, paper_data, monkeypatch, CHAT)[0].args
    assert context.count("<user>") == 4
    assert context.count("</s>") == 7

    plain = asked("piqa", worded, paper_data, monkeypatch)[0].args
    assert asked("piqa", worded, paper_data, monkeypatch, CHAT)[0].args == plain


def test_a_chat_model_without_a_template_is_an_error(worded: DiffusionLM, paper_data: Path) -> None:
    benchmark = paper_benchmark("gsm8k", data_dir=paper_data, model=CHAT)
    with pytest.raises(TaskError, match=r"has no chat template.*put the release's"):
        benchmark.answers(worded, 0, 1, 0)


# --- scoring


def truth(task: str, doc: Mapping[str, Any]) -> str:
    """Write a right answer."""
    if task == "gsm8k":
        return f" Adding gives {doc['answer'].split()[-1]}."
    if task.startswith("minerva_math"):
        return f" {doc['solution']} The answer is short."
    if task.startswith("humaneval"):
        return str(doc["canonical_solution"])
    return str(doc["code"])


def lie(task: str, doc: Mapping[str, Any]) -> str:
    """Write a wrong answer of the right form."""
    if task == "gsm8k":
        return " Adding gives 9999."
    if task.startswith("minerva_math"):
        return r" It is $\boxed{-1}$."
    if task.startswith("humaneval"):
        return "    return values + [1]\n"
    return "def scaled(x):\n  return x - 1"


def fenced(text: Text) -> Text:
    """Write code as a chat model closes the block that its prompt opened."""
    return lambda task, doc: f"{text(task, doc)}\n```\nThat is all.\n```python\n1/0\n```"


@pytest.mark.parametrize("task", PAPER_TASKS)
@pytest.mark.parametrize("right", [True, False])
def test_right_answers_score_one_and_wrong_ones_zero(
    task: str,
    right: bool,
    worded: DiffusionLM,
    paper_data: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told = oracle(truth if right else lie, right=right)
    monkeypatch.setattr(module, "DiffusionAdapter", told)
    benchmark = paper_benchmark(task, data_dir=paper_data, model=None, run_programs=True)
    found = benchmark.answers(worded, 0, benchmark.size(), 0)
    assert found.correct == (right,) * benchmark.size()
    assert len(set(found.ids)) == benchmark.size()
    generates = bool(SETTINGS[task].gen_length)
    assert bool(found.traces) == generates
    assert bool(found.scores) != generates


@pytest.mark.parametrize("task", ["humaneval", "mbpp"])
def test_a_chat_models_code_is_what_stands_in_the_block(
    task: str, worded: DiffusionLM, paper_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert worded.tokenizer is not None
    monkeypatch.setattr(worded.tokenizer, "chat_template", "{{ messages[-1].content }}")
    for text, expected in ((truth, True), (lie, False)):
        monkeypatch.setattr(module, "DiffusionAdapter", oracle(fenced(text)))
        benchmark = paper_benchmark(task, data_dir=paper_data, model=CHAT, run_programs=True)
        assert benchmark.answers(worded, 0, 2, 0).correct == (expected,) * 2


def test_the_block_of_an_answer() -> None:
    code = "def f(x):\n    return x"
    assert first_block(f"{code}\n```\nDone.") == f"{code}\n"
    assert first_block(code) == code
    assert first_block(f"Sure:\n```python\n{code}\n```\nDone.") == f"{code}\n"
    assert first_block(f"{code}\n```\nThen\n```python\nf(1)\n```") == f"{code}\n"


@pytest.mark.parametrize("task", ["piqa", "arc_easy", "winogrande", "mmlu"])
def test_an_exact_tie_is_no_choice(
    task: str, worded: DiffusionLM, paper_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Indifferent(Oracle):
        asked: list[Instance] = []  # noqa: RUF012

        def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
            return [(0.0, False)] * len(requests)

    monkeypatch.setattr(module, "DiffusionAdapter", Indifferent)
    found = paper_benchmark(task, data_dir=paper_data, model=None).answers(worded, 0, 4, 0)
    assert found.correct == (False,) * 4
    assert all(" | " in text for text in found.texts)


def test_acc_norm_is_by_the_length_of_a_choice(
    worded: DiffusionLM, paper_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """piqa, first item: "Close them in a tin." (20 letters, right), "Leave them ... night." (37)."""

    class Scorer(Oracle):
        asked: list[Instance] = []  # noqa: RUF012

        def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
            return [((-20.0, -36.0)[request.idx], False) for request in requests]

    monkeypatch.setattr(module, "DiffusionAdapter", Scorer)
    found = paper_benchmark("piqa", data_dir=paper_data, model=None).answers(worded, 0, 1, 0)
    # -20 / 20 < -36 / 37: the longer choice, though -20 > -36.
    assert found.texts == ("Leave them out in the rain all night.",)
    assert found.correct == (False,)
    assert found.scores == (-20.0,)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (" 2 + 3 = 5\n#### 5", True),
        (" The total is $5.", True),
        (" 1,005 less 1,000 is 5.", True),
        (" 5 pens, 6 caps", False),
        (" no number", False),
        ("", False),
    ],
)
def test_gsm8k_takes_the_last_number(
    text: str,
    expected: bool,
    worded: DiffusionLM,
    paper_data: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "DiffusionAdapter", oracle(lambda *_: text))
    found = paper_benchmark("gsm8k", data_dir=paper_data, model=None).answers(worded, 0, 1, 0)
    assert found.correct == (expected,)
    assert found.texts == (text,)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r" so $\boxed{6}$", True),
        (r" so $\boxed{\frac{12}{2}}$", True),
        (r" so $\boxed{7}$", False),
        ("", False),
    ],
)
def test_mathematics_is_compared_by_value(
    text: str,
    expected: bool,
    worded: DiffusionLM,
    paper_data: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "DiffusionAdapter", oracle(lambda *_: text))
    benchmark = paper_benchmark("minerva_math", data_dir=paper_data, model=None)
    assert benchmark.answers(worded, 0, 1, 0).correct == (expected,)


def test_lm_evals_own_minerva_examples_are_right(
    worded: DiffusionLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four published problems, answered by their solutions and by each other's."""
    settings = SETTINGS["minerva_math"]
    published = listed_samples(definitions(settings)[0].with_name("utils.py"))
    made = [{name: entry[name] for name in ("problem", "solution")} for entry in published]
    for source in sources(settings):
        write_jsonl(tmp_path / f"minerva_math/{source.config}/test.jsonl", made)
    solutions = [entry["solution"] for entry in made]
    for shift, expected in ((0, True), (1, False)):
        monkeypatch.setattr(
            module,
            "DiffusionAdapter",
            oracle(lambda _, doc, shift=shift: solutions[(doc["number"] + shift) % 4]),  # type: ignore[misc]
        )
        benchmark = paper_benchmark("minerva_math", data_dir=tmp_path, model=None)
        assert benchmark.answers(worded, 0, 4, 0).correct == (expected,) * 4


@pytest.mark.parametrize("error", [ModuleNotFoundError("`sympy`, ..."), AssertionError("4.11")])
def test_a_scorer_that_is_not_installed_says_what_to_install(
    error: Exception, paper_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(paper_lm_eval, "load_yaml", broken)
    spec = replace(
        CHAT, generation={"temperature": 0.125}
    )  # asked as in no other test: nothing is shared
    with pytest.raises(TaskError, match=r"minerva_math: .*pip install 'lm-eval\[math\]'"):
        paper_benchmark("minerva_math", data_dir=paper_data, model=spec)


# --- what is not run


def test_lm_evals_own_code_scorers_are_never_imported(paper_data: Path) -> None:
    program = (
        "import json, sys\nfrom pathlib import Path\n"
        "from dllm_qbench.evaluation.paper_benchmark import paper_benchmark\n"
        "for task in ('humaneval', 'mbpp'):\n"
        f"    paper_benchmark(task, data_dir=Path({str(paper_data)!r}), model=None, run_programs=True)\n"
        "never = 'evaluate', 'lm_eval.tasks.humaneval.utils', 'lm_eval.tasks.mbpp.utils'\n"
        "print(json.dumps([name for name in never if name in sys.modules]))"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout) == []


def test_examples_are_read_from_source_text_that_is_not_run(tmp_path: Path) -> None:
    utils = tmp_path / "utils.py"
    utils.write_text("1 / 0\ndef list_fewshot_samples():\n    return [{'a': 1}]\n")
    assert listed_samples(utils) == [{"a": 1}]
    utils.write_text("def other():\n    pass\n")
    with pytest.raises(TaskError, match=r"utils\.py: list_fewshot_samples returns no literal list"):
        listed_samples(utils)
    assert len(listed_samples(definitions(SETTINGS["mbpp"])[0].with_name("utils.py"))) == 3


@pytest.mark.parametrize("task", ["humaneval", "mbpp"])
def test_programs_are_not_run_unasked(task: str, paper_data: Path) -> None:
    with pytest.raises(TaskError, match="only when you ask for it: pass --qbench-run-programs"):
        paper_benchmark(task, data_dir=paper_data, model=None)


def test_too_few_examples_are_an_error(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "gsm8k/test.jsonl", [record("gsm8k", 0)])
    write_jsonl(tmp_path / "gsm8k/train.jsonl", [record("gsm8k", n) for n in range(3)])
    with pytest.raises(TaskError, match=r"4 examples are shown, but .*train\.jsonl has 3"):
        paper_benchmark("gsm8k", data_dir=tmp_path, model=None)
