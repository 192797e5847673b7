#!/usr/bin/env bash
# The full tier as a Slurm array: submit.sh PARTS RESULTS [pytest's arguments]
#
#   bash submit.sh 8 /scratch/$USER/qbench -m full --qbench-device=cuda --qbench-models-dir=/data/models
#
# From the folder with your tests, in an environment where the suite is installed. Cells of one quantized
# model stay in one part. When all parts are through, RESULTS holds records.jsonl, summary.md and a JUnit
# file a part.
set -euo pipefail

if [[ $# -lt 2 || ! $1 =~ ^[1-9][0-9]*$ ]]; then
    echo "usage: submit.sh PARTS RESULTS [pytest's arguments]" >&2
    exit 2
fi
parts=$1
export QBENCH_RESULTS=$2
shift 2
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

array=$(sbatch --parsable --export=ALL --array="1-$parts" "$here/array.sbatch" "$@")
# afterany: what the finished parts measured is merged even where one part was lost.
sbatch --export=ALL --dependency="afterany:${array%%;*}" "$here/merge.sbatch"
