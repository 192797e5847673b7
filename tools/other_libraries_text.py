"""What docs/other_libraries.md says around its tables."""

TEXT = """\
# Other libraries' quantizers

<!-- written by: python -m tools.other_libraries table -->

Six other libraries' quantizers on the embedded LLaDA, on a CPU. Each got the same canvases for
calibration as ours (in batches without padding), ran in an environment of its own, and was measured and
audited as a user's own quantizer is: what is evaluated is the library's arithmetic. Their cells are
baselines of their own, `baselines/others/`.

```sh
tox -e others-torchao         # or -llmcompressor, -modelopt, -quanto, -bitsandbytes, -hqq
pytest -m others --qbench-baselines=baselines/others   # what is installed here; the rest is skipped
```

Accuracies in %, on the same items and masks for all; in brackets what quantization costs, in percent of
full precision's accuracy, with its 90 % interval. *Own SQNR*: each linear alone on full precision's
inputs, in dB, the mean over the 28 linears and the lowest. *Answers that differ*: over the three tasks, how
many only theirs has right (+) and only ours, in the row below (-).

{{comparison}}

## Why they differ

- **The grid's end.** torchao and llm-compressor give a symmetric grid of b bits all 2^b codes and the scale
  2 absmax / (2^b - 1); the largest magnitude then lies between two levels. ModelOpt, quanto and ours take
  absmax / (2^(b-1) - 1), where it is a level. At 8 bits nobody sees that; at 4 bits the step is 7 % finer,
  which is 0.6 dB.
- **Zero points.** With whole ones, torchao and llm-compressor give our rounding to nearest, to a few ties.
  quanto and HQQ keep real ones, so 0 is no level of theirs; the grid audit is told so (`grid="levels"`) and
  counts levels. NF4 has no steps at all and is treated alike.
- **GPTQ's massive tokens.** llm-compressor's Hessian counts every token alike. On a masked diffusion model a
  few massive tokens outweigh all others at down_proj, and GPTQ trades the others' accuracy for theirs: its
  lowest own SQNR is a down projection's. Ours caps such tokens. Told not to, and to take columns in the
  library's order, ours lands where the library does: the third row.
- **Static activations.** ModelOpt's INT8 takes one activation scale a linear from calibration. The massive
  tokens set it, and at each down projection 98 % of all values and more round to 0: accuracy collapses. Its
  SmoothQuant takes the worst of that away and still loses much more than ours; a scale for each token (ours,
  torchao, llm-compressor) has no such trouble.
- **AWQ's objective.** ModelOpt's search minimises the summed squared error of a layer's outputs, each
  linear on its own. At down_proj that sum is the massive tokens': it falls by 17 to 30 dB, while the mean
  token's gets worse than without any search. With plain rounding at the four down projections alone, 87
  instead of 64 % of the first 200 math items are right. It also has no clip search, and a symmetric grid.
- **What SmoothQuant smooths.** llm-compressor's default, for an architecture that it does not know, is behind
  the two norms; ours also smooths before o_proj and down_proj.
- **LLM.int8.** Channels that hold a 6 or more anywhere in a batch are multiplied in 16 bits: it stands above
  the others at 8 bits because part of it is not at 8 bits. It follows that what it makes of a canvas
  depends on the others in its batch (logits by 0.8 %, where full precision's are the same bits).

## Each of them broken on purpose

One wrong setting each, as a person would make it; the library runs as it is. Judged on {{items}} items by
the sound one's own baseline.

{{faults}}

## What was met on the way

- bitsandbytes' layers of 4 bits compute in bfloat16 on a CPU that has AVX-512 BF16, whatever
  `compute_dtype` says (outputs 0.3 % off). The coverage audit said that inputs are rounded where the scheme
  leaves them alone; the subject switches that kernel off.
- In training mode, which a new layer is in, LLM.int8 on a CPU leaves its inputs as they are: accuracy would
  have been that of W8A16.
- compressed-tensors' dynamic rounding by token takes one scale for all of a tensor `[N, I]`: it counts
  dimensions. Adopted layers get `[1, N, I]`.
- quanto's tensors of 4 bits fail in torch's inference mode and cannot be deep-copied.
- llm-compressor's AWQ stops on a machine without an accelerator: it asks for pinned memory.
- Its sequential pipeline traces the model and calls its parts one by one; attention stayed bidirectional in
  every block (audit `calibration_contract`, which watches the calls).
- GPTQModel was not run. 7.7.0 is a source distribution that requires torch 2.14.1 or newer, and knows models
  by their type; LLaDA's is not among them.
"""
