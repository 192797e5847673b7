"""How the paper runs its ten tasks. No torch, no lm-eval: a table.

Sources:
- few-shot counts, Monte Carlo samples, lengths, steps and blocks: arXiv 2508.14896v3, tables 1, 3 and A1, and
  the commands in ``scripts/`` of FelixMessi/QDLM at a106d70; cfg 0, temperature 0, low-confidence remasking.
  Those scripts give lm-eval's own tasks, for LLaDA-Instruct as for Base, and no chat template.
- which of a task's metrics: the paper prints one number a task and does not say which. For gsm8k the
  repository's Dream.md names ``exact_match, flexible-extract``. minerva_math at 0 shots can only be
  ``math_verify``: the sentence that ``exact_match`` looks for ("Final Answer: ...") is taught by the few
  shots alone, and the paper has LLaDA-8B-Base at 21.3. Length-normalised ``acc_norm`` where lm-eval
  reports it: LLaDA's own evaluation (EVAL.md of ML-GSAI/LLaDA at b7e6c35: HellaSwag 70.5, ARC-C 45.9, PIQA
  73.6 by lm-eval) stands beside the length-normalised scores of other models, and the paper's numbers are
  within a point of it; winogrande and mmlu have ``acc`` only.
- likelihood tasks see the plain prompt from every model: LLaDA-Instruct's makers evaluate it by generation
  only (same EVAL.md), and the paper's scripts score its choices as they do Base's.
- a chat model's few shots are turns of a conversation, as in the OpenCompass configurations that
  the same file runs for LLaDA-Instruct; its code tasks are lm-eval's variants for chat models
  (``humaneval_instruct``, ``mbpp_instruct``), since a chat model answers in prose with a block of code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dllm_qbench.errors import TaskError

PROFILES = ("paper", "brief")
# Strings by which the released chat models end their turn; special tokens, written out.
TURN_ENDS = ("<|eot_id|>", "<|im_end|>")
# The brief profile: two blocks, so that what happens between blocks happens.
_BRIEF = (16, 4, 8)
_BRIEF_SAMPLES = 2
# Dream hides each token with a probability of its own, so that one mask often hides nothing and every choice
# ties. Its release scores all of these tasks with 128 masks; the paper prints no MMLU of Dream.
_DREAM_SAMPLES, _DREAM_BRIEF_SAMPLES = 128, 8


@dataclass(frozen=True)
class PaperTask:
    """A task as the paper runs it.

    Attributes:
        name: as in a cell's name.
        files: lm-eval's YAML files, relative to ``lm_eval/tasks``; a ``*`` stands for subtasks.
        chat_files: the variant for chat models, where lm-eval has one.
        shots: examples before the question.
        metric: lm-eval's name of the per-item score, 0 or 1.
        filter: the answer filter whose score counts.
        samples: Monte Carlo masks per choice; 0 where the answer is generated.
        gen_length, steps, block_length: of the sampler; 0 where nothing is generated.
        code: the answer is a program.
    """

    name: str
    files: str
    shots: int
    metric: str
    filter: str = "none"
    chat_files: str = ""
    samples: int = 0
    gen_length: int = 0
    steps: int = 0
    block_length: int = 0
    code: bool = False


def _choice(name: str, files: str, metric: str, shots: int = 0, samples: int = 128) -> PaperTask:
    return PaperTask(name, files, shots, metric, samples=samples)


_TASKS = (
    _choice("winogrande", "winogrande/default.yaml", "acc"),
    _choice("piqa", "piqa/piqa.yaml", "acc_norm"),
    _choice("arc_easy", "arc/arc_easy.yaml", "acc_norm"),
    _choice("arc_challenge", "arc/arc_challenge.yaml", "acc_norm"),
    _choice("hellaswag", "hellaswag/hellaswag.yaml", "acc_norm"),
    _choice("mmlu", "mmlu/default/mmlu_*.yaml", "acc", shots=5, samples=1),
    PaperTask(
        name="gsm8k",
        files="gsm8k/gsm8k.yaml",
        shots=4,
        metric="exact_match",
        filter="flexible-extract",
        gen_length=256,
        steps=256,
        block_length=32,
    ),
    PaperTask(
        name="minerva_math",
        files="minerva_math/minerva_math_*.yaml",
        shots=0,
        metric="math_verify",
        gen_length=256,
        steps=256,
        block_length=64,
    ),
    PaperTask(
        name="humaneval",
        files="humaneval/humaneval.yaml",
        chat_files="humaneval/humaneval_instruct.yaml",
        shots=0,
        metric="pass@1",
        filter="run",
        gen_length=512,
        steps=512,
        block_length=32,
        code=True,
    ),
    PaperTask(
        name="mbpp",
        files="mbpp/mbpp.yaml",
        chat_files="mbpp/mbpp_instruct.yaml",
        shots=3,
        metric="pass@1",
        filter="run",
        gen_length=512,
        steps=512,
        block_length=32,
        code=True,
    ),
)
SETTINGS: Mapping[str, PaperTask] = {task.name: task for task in _TASKS}


def find_paper_task(name: str) -> PaperTask:
    """Return a task's settings; ``TaskError`` lists the known ones."""
    if name not in SETTINGS:
        raise TaskError(f"task {name!r} is not one of the paper's; tasks: {', '.join(SETTINGS)}")
    return SETTINGS[name]


def sampler_settings(
    task: PaperTask, profile: str, generation: Mapping[str, Any], *, one_block: bool
) -> dict[str, Any]:
    """Return the sampler's settings for generated answers, as ``generation_kwargs`` has them.

    Args:
        task: one that generates.
        profile: ``"paper"``, or ``"brief"`` for 16 tokens in 4 steps.
        generation: what the model's release adds or changes (algorithm, temperature, ...).
        one_block: Dream's sampler has no blocks.
    """
    length, steps, block = (
        _BRIEF if profile == "brief" else (task.gen_length, task.steps, task.block_length)
    )
    return {
        "gen_length": length,
        "steps": steps,
        "block_length": length if one_block else block,
        "temperature": 0.0,
        **generation,
    }


def mask_samples(task: PaperTask, profile: str, *, dream: bool) -> int:
    """Return the Monte Carlo masks per choice; 0 where answers are generated."""
    if dream and task.samples:
        return _DREAM_BRIEF_SAMPLES if profile == "brief" else _DREAM_SAMPLES
    return min(task.samples, _BRIEF_SAMPLES) if profile == "brief" else task.samples


def require_profile(profile: str) -> str:
    """Return a known profile's name; ``TaskError`` lists them."""
    if profile not in PROFILES:
        raise TaskError(f"profile {profile!r} is unknown; profiles: {', '.join(PROFILES)}")
    return profile
